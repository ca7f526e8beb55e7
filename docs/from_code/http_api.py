"""The service's routes, from the OpenAPI schema that it serves at /openapi.json."""

from __future__ import annotations

import json
import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import Any

from featkit.embedder import Embedder
from featkit.index import Index
from featkit.models import default_model_path
from featkit.serve.app import make_app
from from_code.markdown import code, table


def routes_page() -> str:
    """Every route with what it takes and answers, then the schemas."""
    api = _schema()
    parts = ["## Routes"]
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            parts.append(_route(path, method.upper(), route))
    parts.append("## Answers")
    for name, schema in api["components"]["schemas"].items():
        if name not in (
            "HTTPValidationError",
            "ValidationError",
        ):  # FastAPI's; featkit answers with Refusal
            parts.append(_answer(name, schema))
    return "\n\n".join(parts)


def _schema() -> dict[str, Any]:
    """The schema of a service over an index, which has all routes."""
    model = default_model_path()
    with (
        tempfile.TemporaryDirectory() as folder,
        Index.create(Path(folder) / "empty.index", model=model) as index,
    ):
        schema: dict[str, Any] = make_app(
            index, Embedder(model, backend="onnxruntime", threads=1)
        ).openapi()
    return schema


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    parts = [f"### `{method} {path}`", route.get("description", route["summary"])]
    rows = [
        (code(each["name"]), each["in"], _kind(each["schema"]), each.get("description", ""))
        for each in route.get("parameters", [])
    ]
    for content, body in route.get("requestBody", {}).get("content", {}).items():
        fields = body["schema"]["properties"].items()
        rows += [
            (code(name), content, _kind(field), field.get("description", ""))
            for name, field in fields
        ]
    if rows:
        parts.append(table(("field", "in", "type", ""), rows))
    answers = [
        (
            status,
            answer["description"],
            ", ".join(_content(*each) for each in answer.get("content", {}).items()),
        )
        for status, answer in route["responses"].items()
    ]
    parts.append(
        table(("status", "", "body"), [(s, _meaning(s, text), body) for s, text, body in answers])
    )
    return "\n\n".join(parts)


def _meaning(status: str, text: str) -> str:
    """The description, without FastAPI's filler."""
    return (
        HTTPStatus(int(status)).phrase
        if text in ("Successful Response", "Validation Error")
        else text
    )


def _content(media: str, content: dict[str, Any]) -> str:
    schema = content.get("schema", {})
    return _kind(schema) if "$ref" in schema else media


def _answer(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            code(field),
            _kind(kind),
            kind.get("description", "") or ("" if field in required else "optional"),
        )
        for field, kind in schema.get("properties", {}).items()
    ]
    parts = [f"### {name}", schema.get("description", ""), table(("field", "type", ""), rows)]
    for example in schema.get("examples", []):
        parts.append(f"```json\n{json.dumps(example, indent=2)}\n```")
    return "\n\n".join(parts)


def _kind(schema: dict[str, Any]) -> str:
    """A schema's type in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return "" if name == "HTTPValidationError" else f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if schema.get("format") == "binary":
        return "file"
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = (
        ""
        if low is None and high is None
        else f" {low if low is not None else '…'} to {_large(high)}"
    )
    default = (
        f", default {schema['default']}" if schema.get("default") not in (None, "", []) else ""
    )
    return f"{schema.get('type', 'any')}{bounds}{default}"


def _large(bound: float | None) -> str:
    if bound is None:
        return "…"
    power = int(bound).bit_length() - 1
    return f"2^{power}" if bound == 2**power and power > 20 else f"{bound:g}"
