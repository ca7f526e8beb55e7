"""featkit: feature extraction and search with self-distilled vision models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featkit._version import __version__

if TYPE_CHECKING:
    from featkit.embedder import Embedder as Embedder
    from featkit.errors import FeatkitError as FeatkitError
    from featkit.index import Index as Index
    from featkit.serve.client import AsyncClient as AsyncClient
    from featkit.serve.client import Client as Client
    from featkit.syncing import sync as sync

# Imported at first use, so that `import featkit` loads neither onnxruntime nor faiss nor httpx.
_PUBLIC = {
    "AsyncClient": "featkit.serve.client",
    "Client": "featkit.serve.client",
    "Embedder": "featkit.embedder",
    "FeatkitError": "featkit.errors",
    "Index": "featkit.index",
    "sync": "featkit.syncing",
}

__all__ = ["AsyncClient", "Client", "Embedder", "FeatkitError", "Index", "__version__", "sync"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'featkit' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
