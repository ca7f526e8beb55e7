"""The service as a FastAPI app."""

from __future__ import annotations

from fastapi import FastAPI

from featkit._version import __version__
from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.metrics import add_metrics
from featkit.serve.router import add_routes
from featkit.serve.service import ServiceLimits

DESCRIPTION = (
    "Embeds images and searches an index with them. Images are sent as bytes; no route takes a path"
    " or a URL."
)


def make_app(
    index: Index | None, embedder: Embedder, *, limits: ServiceLimits | None = None
) -> FastAPI:
    """Return the service: all routes, /metrics and /openapi.json.

    index: None for a service that only embeds. InputError if the index is of another model.
    """
    # without FastAPI's documentation pages, since they load scripts from other servers
    app = FastAPI(
        title="featkit", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None
    )
    service = add_routes(app, index, embedder, limits=limits)
    add_metrics(app, service.admission)
    return app
