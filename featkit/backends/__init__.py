"""What runs a model file. One protocol, one small file for each engine."""

from featkit.backends.base import Backend, Cancel, Cancelled
from featkit.backends.opening import open_backend

__all__ = ["Backend", "Cancel", "Cancelled", "open_backend"]
