"""The service while its index and model are opened."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from featkit.serve.proxy import route_path
from featkit.serve.refusals import refusal

ALIVE_ROUTE = "/livez"
RETRY_AFTER_S = 2


class Starting:
    """An ASGI app that answers from the start, and becomes another app once that is made.

    Until then /livez is 200, and everything else is 503 with Retry-After. So a process that takes a
    minute to open a large index is not taken for a dead one, and gets no requests yet.
    """

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make
        self._app: ASGIApp | None = None

    def load(self) -> None:
        """Make the app. Raises what making it raises."""
        self._app = self._make()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return
        if route_path(scope) == ALIVE_ROUTE:
            answer = JSONResponse({"status": "starting"})
        else:
            answer = refusal(
                503,
                "The service is still starting; try again in a moment.",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        await answer(scope, receive, send)


async def _live(receive: Receive, send: Send) -> None:
    """Answer the server's start and end, of which the app that is made is not told."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
