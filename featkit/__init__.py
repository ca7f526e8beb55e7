"""featkit: feature extraction and search with self-distilled vision models."""

from featkit._version import __version__

__all__ = ["__version__"]
