"""Errors in the shape of OpenAI's API, for the one route that has it.

{"error": {"message": "one sentence", "type": "invalid_request_error", "param": "input",
           "code": null}}
"""

from __future__ import annotations

from pydantic import BaseModel
from starlette.types import Scope

OPENAI_ROUTE = "/v1/embeddings"
CODES = {
    401: "invalid_api_key",
    403: "insufficient_permissions",
    429: "rate_limit_exceeded",
}


class OpenAIError(BaseModel):
    """The reason why a request was refused."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIRefusal(BaseModel):
    """A refusal of `/v1/embeddings`, in OpenAI's shape."""

    error: OpenAIError


def is_openai(scope: Scope) -> bool:
    """Return whether a request is to the route with OpenAI's shape."""
    path: str = scope.get("path", "")
    return path.endswith(OPENAI_ROUTE)


def openai_status(status: int) -> int:
    """Return the status that OpenAI's API has for one of featkit's."""
    return 400 if status == 422 else status


def openai_refusal(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> OpenAIRefusal:
    """Return the body of a refusal with this status."""
    if status == 429:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if status >= 500 else "invalid_request_error"
    code = code or CODES.get(status)
    return OpenAIRefusal(error=OpenAIError(message=message, type=kind, param=param, code=code))
