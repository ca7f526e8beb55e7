"""The search page as an app: featkit.serve's routes, the page's own files, and Gradio round them."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Awaitable, Callable

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.base import BaseHTTPMiddleware

from featkit._version import __version__
from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.router import add_error_handlers, make_router
from featkit.serve.running import address_of, bind, run
from featkit.serve.service import ServiceLimits
from featkit_demo.search_tab import STATIC, search_tab

TITLE = "featkit · search by picture"
HEAD = '<link rel="stylesheet" href="page/page.css" />'
# The browser itself refuses whatever would leave the machine, also what a later Gradio might add.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
GRADIO_ROUTES = "/gradio_api"
SYSTEM_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
SYSTEM_MONOSPACE = ["ui-monospace", "monospace"]


def make_page() -> gr.Blocks:
    """The page, one function a tab."""
    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with page:
        search_tab()
    return page


def make_demo_app(index: Index, *, limits: ServiceLimits | None = None) -> FastAPI:
    """The page over an index, embedding queries with the model that the index carries."""
    limits = limits or ServiceLimits()
    app = FastAPI(title=TITLE, version=__version__, docs_url=None, redoc_url=None)
    add_error_handlers(app)
    app.include_router(make_router(index, Embedder(index.model_path, limits=limits.images), limits=limits))
    app.mount("/page", StaticFiles(directory=STATIC))
    app.add_middleware(BaseHTTPMiddleware, dispatch=_close_gradio_routes)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_add_content_policy)
    theme = gr.themes.Base(font=SYSTEM_FONTS, font_mono=SYSTEM_MONOSPACE)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        make_page(),
        path="/",
        theme=theme,
        head=HEAD,
        footer_links=[],
        ssr_mode=False,
        favicon_path=str(STATIC / "icon.svg"),
        max_file_size=limits.images.max_bytes,
    )
    return mounted


async def _close_gradio_routes(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """404 for Gradio's own routes, among them uploads without a limit and files: the page's script needs none of them."""
    if request.scope["path"].startswith(GRADIO_ROUTES):
        return Response("Not Found", status_code=404)
    return await call_next(request)


async def _add_content_policy(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    return response


def run_demo(
    index: Index,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    open_browser: bool = False,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the page until Ctrl-C; `on_ready` gets its address once it answers.

    EnvironmentProblem, naming the next free port, where the port is taken.
    """
    listener = bind(host, port)
    address = address_of(listener)

    def announce() -> None:
        on_ready(address)
        if open_browser:
            webbrowser.open(address)

    try:
        run(make_demo_app(index), listener, on_ready=announce)
    finally:
        listener.close()
