"""Say why a download failed by what the server answered, whichever library asked it: never a bare
"cannot be reached"."""

from __future__ import annotations

import errno
import json
import socket
import ssl
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
    404: ("has nothing of that name (404)", "check the name"),
    407: (
        "is behind a proxy that asks for a login (407)",
        "put user and password into HTTPS_PROXY",
    ),
    410: ("has removed it (410)", "check the name"),
    416: ("cannot resume the download (416)", "delete the partial file and repeat the command"),
    451: ("may not give it out here (451)", "take it from elsewhere"),
}


class Failure(NamedTuple):
    """Why a download failed: what the server or the network did, to follow its name, and what to do
    about it."""

    what: str
    advice: str
    status: int | None = None  # of HTTP, where the server answered


NO_HUB = Failure(
    "did not answer as it should: a page of another server came back, such as a login page of the"
    " network",
    "open it in a browser, log in to the network, and repeat the command",
)


def why_failed(error: BaseException) -> Failure | None:
    """Return why a download failed, by the exception and those behind it; None if none of them
    tells.

    Exceptions are known by what they carry, such as a status code, since each HTTP library has its
    own classes.
    """
    chain = list(_chain(error))
    for each in chain:
        status = _status(each)
        if status is not None:
            return _of_status(status, _headers(each))
    for each in chain:
        failure = _of_kind(each)
        if failure is not None:
            return failure
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then those that caused it, each once."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        each = waiting.pop(0)
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries: of urllib, requests, httpx, aiohttp or
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
            found: Mapping[str, Any] = headers
            return found
    return {}


def _of_status(status: int, headers: Mapping[str, Any]) -> Failure:
    if status in STATUS:
        return Failure(*STATUS[status], status)
    if status == 429:
        seconds = str(headers.get("Retry-After") or "")
        wait = f"wait {seconds} seconds" if seconds.isdigit() else "wait some minutes"
        return Failure(
            "allows no more requests for now (429)",
            f"{wait} and repeat the command, or {LOGIN}, which allows more",
            429,
        )
    if status >= 500:
        return Failure(f"has trouble of its own ({status})", "try again later", status)
    return Failure(f"refuses the request ({status})", "check the name", status)


def _of_kind(error: BaseException) -> Failure | None:
    """By the class of an exception, or of one that it is derived from."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text:
        return Failure(
            "has a certificate that is not trusted here",
            "set SSL_CERT_FILE to the certificates of your network's proxy",
        )
    if "ProxyError" in kinds:
        return Failure("is behind a proxy that lets nobody through", "check HTTPS_PROXY")
    if (
        isinstance(error, json.JSONDecodeError)
        or "JSONDecodeError" in kinds
        or "FileMetadataError" in kinds
    ):
        return NO_HUB
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(
            "was answering, but the disk is full", "free some space, or set HF_HOME to another disk"
        )
    if "Consistency check failed" in text:
        return Failure("sent another number of bytes than it promised", "repeat the command")
    if kinds & {
        "RemoteProtocolError",
        "IncompleteRead",
        "ChunkedEncodingError",
        "ReadError",
    } or isinstance(error, ConnectionResetError):
        return Failure("ended the connection before all was sent", "repeat the command")
    if isinstance(error, TimeoutError) or any("Timeout" in kind for kind in kinds):
        return Failure("does not answer in time", "try again later, or check the network")
    if (
        isinstance(error, socket.gaierror)
        or "Name or service not known" in text
        or "getaddrinfo failed" in text
    ):
        return Failure("cannot be found (its name is not resolved)", "check the network")
    return None
