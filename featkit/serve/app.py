"""The service as an app."""

from __future__ import annotations

from fastapi import FastAPI

from featkit._version import __version__
from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.metrics import add_metrics
from featkit.serve.router import add_error_handlers, make_router
from featkit.serve.service import ServiceLimits

DESCRIPTION = (
    "Embedding of images and search among them. Images are sent as bytes; no route takes a path"
    " or a URL."
)


def make_app(
    index: Index | None, embedder: Embedder, *, limits: ServiceLimits | None = None
) -> FastAPI:
    """The service: the router's routes, /metrics and /openapi.json. InputError when the index is of
    another model.

    FastAPI's documentation pages are left out, since they load their scripts from elsewhere.
    """
    app = FastAPI(
        title="featkit", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None
    )
    add_error_handlers(app)
    app.include_router(make_router(index, embedder, limits=limits))
    add_metrics(app)
    return app
