"""Every refusal has the one shape that OpenAPI promises."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from featkit.serve.openai_errors import OPENAI_ROUTE
from featkit.serve.refusals import BadImages, Unavailable, add_error_handlers
from featkit.serve.schemas import Refusal, RefusedImage
from tests.featkit.serve.conftest import png

IMAGE = [("files", ("a.png", png(1)))]


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("DELETE", "/v1/items", {}, 405),
        ("GET", "/v1/items/99", {}, 404),
        ("GET", "/v1/items/x", {}, 404),
        ("GET", "/v1/items/11/thumbnail", {}, 404),
        ("GET", "/v1/items?limit=no", {}, 422),
        ("GET", "/v1/items/1/neighbors?k=0", {}, 422),
        ("POST", "/v1/search", {"files": IMAGE, "data": {"k": "0"}}, 422),
        ("POST", "/v1/search", {"files": [("files", ("a.png", b"no image"))]}, 422),
        ("POST", "/v1/embed", {"json": {}}, 415),
        ("POST", "/v1/embed", {"content": b"x" * 200_000}, 413),
    ],
)
def test_every_refusal_has_the_promised_shape(
    client: TestClient, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    answer = client.request(method, path, **options)
    assert answer.status_code == status
    assert {*answer.json()} == {"detail", "images"}
    assert Refusal.model_validate(answer.json(), strict=True).detail


@pytest.mark.parametrize(
    ("error", "status", "images"),
    [
        (BadImages([RefusedImage(name="a", reason="a is bad.")]), 422, 1),
        (Unavailable("Not now."), 503, 0),
        (HTTPException(418, "I am a teapot."), 418, 0),
        (MemoryError(), 503, 0),
        (ZeroDivisionError("/secret"), 500, 0),
    ],
)
def test_errors_of_a_route_have_the_promised_shape(
    error: Exception, status: int, images: int
) -> None:
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    def fail() -> None:
        raise error

    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert (answer.status_code, len(answer.json()["images"])) == (status, images)
    assert Refusal.model_validate(answer.json(), strict=True).detail
    assert "secret" not in answer.text


def test_openapi_promises_refusals_only(client: TestClient) -> None:
    spec = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in spec["components"]["schemas"]
    refused = {"$ref": "#/components/schemas/Refusal"}
    for path, methods in spec["paths"].items():
        if path == OPENAI_ROUTE:  # with a shape of its own
            continue
        for route in methods.values():
            for status, answer in route["responses"].items():
                if status.startswith("4") or (
                    status == "503" and path not in ("/healthz", "/readyz")
                ):
                    assert answer["content"]["application/json"]["schema"] == refused
