"""A small app behind the guard of keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Request

from featkit.serve.guard import KeyGuard, charge_images
from featkit.serve.keyring import Keyring
from featkit.serve.refusals import add_error_handlers


def bearer(token: str) -> dict[str, str]:
    """Return the headers of a request with a key."""
    return {"Authorization": f"Bearer {token}"}


def echo_app(keyring: Keyring, *, num_images: int = 0) -> FastAPI:
    """Return a guarded app that reads bodies and charges for `num_images`."""
    app = FastAPI()
    add_error_handlers(app)
    app.add_middleware(KeyGuard, keyring=keyring)

    @app.post("/v1/embed")
    async def embed(request: Request) -> int:
        length = len(await request.body())
        charge_images(request, num_images)
        return length

    @app.post("/v1/search")
    async def search(body: Annotated[dict[str, str], Body()]) -> int:
        return len(body)

    return app
