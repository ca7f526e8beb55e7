"""Keys in OpenAPI's description of a service that has them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from featkit.serve.guard import PROBES, scope_for
from featkit.serve.openai_errors import OPENAI_ROUTE

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `featkit keys`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
EITHER: list[dict[str, list[str]]] = [{name: []} for name in SCHEMES]


def describe_keys(app: FastAPI) -> None:
    """Add to the app's OpenAPI schema how a key is sent, and what is answered without one."""
    without_keys = app.openapi

    def with_keys() -> dict[str, Any]:
        schema = without_keys()
        schema["components"]["securitySchemes"] = SCHEMES
        for path, methods in schema["paths"].items():
            for method, route in methods.items():
                _describe(route, method.upper(), path)
        return schema

    # as FastAPI's documentation extends a schema
    app.openapi = with_keys  # type: ignore[method-assign]


def _describe(route: dict[str, Any], method: str, path: str) -> None:
    if path in PROBES:
        return
    route["security"] = EITHER
    body = "OpenAIRefusal" if path == OPENAI_ROUTE else "Refusal"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
    for status, description in (
        ("401", "The request has no valid key."),
        ("403", f"The key lacks the scope {scope_for(method, path)}."),
        ("429", "The key has sent too much lately; Retry-After has the seconds to wait."),
        ("503", "The service cannot read its keys now."),
    ):
        route["responses"].setdefault(status, {"description": description, "content": content})
