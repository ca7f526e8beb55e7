"""The search page as an app: the routes of featkit.serve and static files, mounted with Gradio."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it on import

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
# With this policy the browser blocks requests to other hosts, even if a later Gradio adds some.
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
    """Build the page; each tab is added by a function of its own."""
    page: gr.Blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True)
    with page:
        search_tab()
    return page


def make_demo_app(index: Index, *, limits: ServiceLimits | None = None) -> FastAPI:
    """Return the app over an index. Queries are embedded with the model stored in the index."""
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
    """ASGI middleware that blocks Gradio's own routes and adds the content policy to responses.

    Those routes accept uploads of any size, serve files and run a queue. The page needs none of
    them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer requests below GRADIO_ROUTES with 404 and forward all others."""

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
    """Serve the page until Ctrl-C. `on_ready` receives its address once it accepts requests.

    EnvironmentProblem if the port is taken; the message suggests the next free one.
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
