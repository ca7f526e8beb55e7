"""The service as a FastAPI app."""

from __future__ import annotations

from fastapi import FastAPI

from featkit._version import __version__
from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.guard import KeyGuard
from featkit.serve.key_docs import describe_keys
from featkit.serve.keyring import Keyring
from featkit.serve.metrics import add_metrics
from featkit.serve.openai import add_openai_route
from featkit.serve.proxy import NotesRootPath
from featkit.serve.router import add_routes
from featkit.serve.service import ServiceLimits

DESCRIPTION = (
    "Embeds images and searches an index with them. Images are sent as bytes; no route takes a path"
    " or a URL."
)


def make_app(
    index: Index | None,
    embedder: Embedder,
    *,
    limits: ServiceLimits | None = None,
    keyring: Keyring | None = None,
    open_metrics: bool = False,
) -> FastAPI:
    """Return the service: all routes, /metrics and /openapi.json.

    index: None for a service that only embeds. keyring: the keys of which every request needs one;
    None answers everybody. open_metrics: answer /metrics without a key.
    InputError if the index is of another model.
    """
    # without FastAPI's documentation pages, since they load scripts from other servers
    app = FastAPI(
        title="featkit", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None
    )
    service = add_routes(app, index, embedder, limits=limits)
    add_openai_route(app)
    app.add_middleware(NotesRootPath)
    if keyring is not None:
        app.add_middleware(KeyGuard, keyring=keyring, open_metrics=open_metrics)
        describe_keys(app)
    add_metrics(app, service.admission)
    return app
