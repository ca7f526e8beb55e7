"""Explain why a download failed from the server's answer, whichever library made the request."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

LOGIN = "log in with `hf auth login`"
STATUS = {
    401: ("asks for a login (401)", f"check the name, and {LOGIN} if it is private"),
    403: (
        "refuses access (403)",
        (
            f"if it is gated, accept its license on its page and {LOGIN}; else ask whoever runs the"
            " network"
        ),
    ),
    404: ("has nothing with that name (404)", "check the name"),
    407: (
        "is behind a proxy that asks for a login (407)",
        "put user and password into HTTPS_PROXY",
    ),
    410: ("has removed it (410)", "check the name"),
    416: ("cannot resume the download (416)", "delete the partial file and repeat the command"),
    451: ("may not provide it here (451)", "get it from elsewhere"),
}


class Failure(NamedTuple):
    """Why a download failed. what: a predicate of the server, to follow its name. advice: what to
    do. status: the HTTP status, if the server answered."""

    what: str
    advice: str
    status: int | None = None


NO_HUB = Failure(
    "did not answer as expected: the answer is a page of another server, such as the login page of"
    " a network",
    "open it in a browser, log in to the network, and repeat the command",
)
DISK_FULL = Failure(
    "was answering, but the disk is full", "free some space, or set HF_HOME to another disk"
)


class _Sign(NamedTuple):
    """Parts of an exception's class name, or of its message, that show a failure."""

    failure: Failure
    in_class: tuple[str, ...] = ()
    in_message: tuple[str, ...] = ()


# The first that applies counts. Names rather than classes, since each HTTP library has its own.
SIGNS = (
    _Sign(
        Failure(
            "has a certificate that is not trusted here",
            "set SSL_CERT_FILE to the certificates of your network's proxy",
        ),
        in_class=("SSLError",),
        in_message=("CERTIFICATE_VERIFY_FAILED",),
    ),
    _Sign(
        Failure("is behind a proxy that refuses the connection", "check HTTPS_PROXY"),
        in_class=("ProxyError",),
    ),
    _Sign(NO_HUB, in_class=("JSONDecodeError", "FileMetadataError")),
    _Sign(
        Failure("sent a different number of bytes than it announced", "repeat the command"),
        in_message=("Consistency check failed",),
    ),
    _Sign(
        Failure("ended the connection before everything was sent", "repeat the command"),
        in_class=(
            "RemoteProtocolError",
            "IncompleteRead",
            "ChunkedEncodingError",
            "ReadError",
            "ConnectionResetError",
        ),
    ),
    _Sign(
        Failure("does not answer in time", "try again later, or check the network"),
        in_class=("Timeout",),
    ),
    _Sign(
        Failure("cannot be found (its name is not resolved)", "check the network"),
        in_class=("gaierror",),
        in_message=("Name or service not known", "getaddrinfo failed"),
    ),
)


def why_failed(error: BaseException) -> Failure | None:
    """Return why a download failed, from the exception and its causes; None if they do not show it.

    Exceptions are recognized by their attributes, such as a status code, since each HTTP library
    has its own classes.
    """
    causes = list(_causes(error))
    for cause in causes:
        status = _status(cause)
        if status is not None:
            return _of_status(status, _headers(cause))
    return next((failure for cause in causes if (failure := _of_kind(cause)) is not None), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and everything that caused it, each once."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an exception of urllib, requests, httpx, aiohttp or
    huggingface_hub."""
    response = getattr(error, "response", None)
    for holder, name in (
        (response, "status_code"),
        (response, "status"),
        (error, "code"),
        (error, "status"),
    ):
        value = getattr(holder, name, None)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return None


def _headers(error: BaseException) -> Mapping[str, Any]:
    for holder in (getattr(error, "response", None), error):
        headers = getattr(holder, "headers", None)
        if headers is not None and hasattr(headers, "get"):
            typed_headers: Mapping[str, Any] = headers
            return typed_headers
    return {}


def _of_status(status: int, headers: Mapping[str, Any]) -> Failure:
    if status in STATUS:
        return Failure(*STATUS[status], status)
    if status == 429:
        seconds = str(headers.get("Retry-After") or "")
        wait = f"wait {seconds} seconds" if seconds.isdigit() else "wait a few minutes"
        return Failure(
            "allows no further requests for now (429)",
            f"{wait} and repeat the command, or {LOGIN}, which allows more",
            429,
        )
    if status >= 500:
        return Failure(f"has an internal error ({status})", "try again later", status)
    return Failure(f"refuses the request ({status})", "check the name", status)


def _of_kind(error: BaseException) -> Failure | None:
    """Return the failure for an exception's error number, class or message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK_FULL
    classes = [kind.__name__ for kind in type(error).__mro__]
    message = str(error)
    for sign in SIGNS:
        if any(part in name for part in sign.in_class for name in classes) or any(
            part in message for part in sign.in_message
        ):
            return sign.failure
    return None
