"""The search page as an app: featkit.serve's routes, the page's own files, and Gradio round them."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while gradio is imported

import gradio as gr
from fastapi import FastAPI, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featkit._version import __version__
from featkit.index import Index
from featkit.serve.router import add_routes
from featkit.serve.running import address_of, bind, run
from featkit.serve.service import ServiceLimits
from featkit_demo.search_tab import STATIC, search_tab

TITLE = "featkit · search by image"
HEAD = '<link rel="stylesheet" href="page/page.css" />'
# The browser itself refuses whatever would leave the machine, also what a later Gradio might add.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self'"
    " 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self'"
    " blob:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self';"
    " frame-ancestors 'self'"
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
    add_routes(app, index, index.open_embedder(limits=limits.images), limits=limits)
    app.mount("/page", StaticFiles(directory=STATIC))
    app.add_middleware(PageGuard)
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


class PageGuard:
    """ASGI middleware: closes Gradio's own routes and puts the content policy on every answer.

    The routes are uploads without a limit, files and a queue, none of which the page's script
    needs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 below GRADIO_ROUTES, pass the rest on."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        closed = scope["type"] == "http" and scope["path"].startswith(GRADIO_ROUTES)
        app: ASGIApp = Response("Not Found", status_code=404) if closed else self.app
        await app(scope, receive, send_with_policy)


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
