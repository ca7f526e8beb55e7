"""The errors of the service, and the one JSON shape of every refusal.

{"detail": "one sentence", "images": [{"name": "a.jpg", "reason": "one sentence"}]}

Only the route of OpenAI's API answers in the shape of that API, for its clients.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from featkit.errors import FeatkitError, InputError
from featkit.index import FilterError, NoSuchItem
from featkit.serve.openai_errors import is_openai, openai_refusal, openai_status
from featkit.serve.schemas import Refusal, RefusedImage

log = logging.getLogger("featkit.serve")
CLIENT_LEFT = 499  # nginx's status for it


def responses(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of a route for OpenAPI, by status: `responses(_404="No such item.")`."""
    return {
        int(status.lstrip("_")): {"model": Refusal, "description": description}
        for status, description in descriptions.items()
    }


class BadRequest(FeatkitError):
    """A request that is wrong as a whole, with the HTTP status of the answer."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class BadImages(InputError):
    """At least one image of a request cannot be used, so the whole request was refused."""

    def __init__(self, images: Sequence[RefusedImage]) -> None:
        self.images = tuple(images)
        super().__init__(" ".join(image.reason for image in self.images))


class Overloaded(FeatkitError):
    """The service has accepted as much as it may. retry_after_s: when to try again."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"The service has more to do than it can take; try again in {retry_after_s} s."
        )


class TooLate(FeatkitError):
    """The deadline of a request has passed before its answer."""


class ClientLeft(FeatkitError):
    """The client has closed the connection, so nobody waits for the answer."""

    def __init__(self) -> None:
        super().__init__("The client has left.")


class Unavailable(FeatkitError):
    """The service cannot answer now, because its index or model fails.

    The reason is in the server's log, not in the answer: it may name paths of the server.
    """


def refusal(
    status: int,
    detail: str,
    images: Sequence[RefusedImage] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the answer for a refused request."""
    return _Refused(Refusal(detail=detail, images=list(images)), status, headers)


class _Refused(JSONResponse):
    """A refusal, in OpenAI's shape if it answers a request to OpenAI's route."""

    def __init__(self, refused: Refusal, status: int, headers: Mapping[str, str] | None) -> None:
        super().__init__(refused.model_dump(), status_code=status, headers=headers)
        self._detail, self._given_headers = refused.detail, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_openai(scope):
            await super().__call__(scope, receive, send)
            return
        status = openai_status(self.status_code)
        content = openai_refusal(status, self._detail).model_dump()
        answer = JSONResponse(content, status_code=status, headers=self._given_headers)
        await answer(scope, receive, send)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with a `Refusal`, which never names a path of the server.

    The status is 422 for an image or value that cannot be used, 404 for an unknown item or route,
    503 if the service is overloaded, or its index, model or memory fails, 504 past the request's
    deadline, and 500 for anything else, with the traceback in the log. A request that is wrong as a
    whole has a status of its own.
    """
    handlers: dict[type[Exception], Any] = {
        FeatkitError: _refuse,
        MemoryError: _refuse_for_memory,
        RequestValidationError: _refuse_value,
        HTTPException: _refuse_route,
        Exception: _fail,
    }
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)


async def _refuse(_: Request, error: FeatkitError) -> JSONResponse:
    return answer_to(error)


def answer_to(error: FeatkitError) -> JSONResponse:
    """Return the answer to a request that ended in an error."""
    if isinstance(error, BadImages):
        return refusal(422, str(error), error.images)
    if isinstance(error, NoSuchItem):  # whose message names the index's path
        return refusal(404, f"There is no item {error.item}.")
    if isinstance(error, FilterError):
        return refusal(422, str(error))
    if isinstance(error, BadRequest):
        # the rest of a slow body is not waited for
        headers = {"Connection": "close"} if error.status == 408 else None
        return refusal(error.status, str(error), headers=headers)
    if isinstance(error, Overloaded):
        return refusal(503, str(error), headers={"Retry-After": str(error.retry_after_s)})
    if isinstance(error, TooLate):
        return refusal(504, str(error))
    if isinstance(error, ClientLeft):
        return refusal(CLIENT_LEFT, str(error))  # which nobody reads, except the metrics
    if isinstance(error, Unavailable):
        return refusal(503, str(error))
    log.error("featkit: %s", error)
    return refusal(503, "The service cannot answer now; the server's log has the reason.")


async def _refuse_for_memory(_: Request, error: MemoryError) -> JSONResponse:
    log.error("featkit: a request needs more memory than is free (%s)", error)
    return refusal(
        503,
        "The server does not have enough memory for this request; send fewer or smaller images, or"
        " try later.",
    )


async def _refuse_value(_: Request, error: RequestValidationError) -> JSONResponse:
    problem = error.errors()[0]
    source, *names = [str(step) for step in problem["loc"]]  # such as ("query", "limit")
    value = str(problem.get("input"))[:40]
    if source == "path":
        return refusal(404, f"There is no item {value}.")
    message = problem["msg"]
    return refusal(
        422, f"{' '.join(names) or source} is {value!r}: {message[:1].lower()}{message[1:]}."
    )


async def _refuse_route(_: Request, error: HTTPException) -> JSONResponse:
    return refusal(error.status_code, str(error.detail), headers=error.headers)


async def _fail(_: Request, _error: Exception) -> JSONResponse:  # Starlette logs the traceback
    return refusal(500, "The server failed to answer this request; its log has the reason.")
