"""What runs a model file. One protocol, one small file for each engine."""

from featkit.backends.base import Backend
from featkit.backends.opening import open_backend

__all__ = ["Backend", "open_backend"]
