"""Failed downloads are explained by the server's answer, whichever library made the request."""

from __future__ import annotations

import email.message
import errno
import json
import socket
import ssl
import types
import urllib.error

import pytest

from featkit.downloading import why_failed


def http_error(status: int, **headers: str) -> urllib.error.HTTPError:
    message = email.message.Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return urllib.error.HTTPError("https://a/b", status, "no", message, None)


class LibraryError(Exception):
    """An error with a response, as in httpx and requests."""

    def __init__(self, status: int) -> None:
        super().__init__("no")
        self.response = types.SimpleNamespace(status_code=status, headers={"Retry-After": "9"})


@pytest.mark.parametrize(
    ("status", "what", "advice"),
    [
        (401, "login (401)", "hf auth login"),
        (403, "refuses access (403)", "accept its license"),
        (404, "nothing with that name (404)", "check the name"),
        (407, "proxy", "HTTPS_PROXY"),
        (429, "no further requests", "wait 9 seconds"),
        (418, "refuses the request (418)", "check the name"),
        (500, "an internal error (500)", "later"),
        (503, "an internal error (503)", "later"),
        (520, "an internal error (520)", "later"),
    ],
)
def test_status_is_found_in_errors_of_every_library(status: int, what: str, advice: str) -> None:
    for error in (LibraryError(status), http_error(status, Retry_After="9")):
        failure = why_failed(error)
        assert failure is not None
        assert what in failure.what
        assert advice in failure.advice
        assert failure.status == status


def test_wait_that_is_not_a_number_is_a_few_minutes() -> None:
    failure = why_failed(http_error(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"))
    assert failure is not None
    assert "wait a few minutes" in failure.advice


def test_reason_is_found_behind_other_exceptions() -> None:
    for link in ("cause", "context", "argument", "reason"):
        outer: Exception = ConnectionError("no")
        inner = LibraryError(503)
        if link == "cause":
            outer.__cause__ = inner
        elif link == "context":
            outer.__context__ = inner
        elif link == "argument":
            outer = ConnectionError(inner)
        else:
            outer = urllib.error.URLError("no")
            outer.reason = inner
        middle = ValueError("no")
        middle.__cause__ = outer
        failure = why_failed(middle)
        assert failure is not None
        assert failure.status == 503


def test_cycle_of_exceptions_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert why_failed(first) is None


class ReadTimeout(Exception):
    pass


class ProxyError(Exception):
    pass


class RemoteProtocolError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (json.JSONDecodeError("no", "<html>", 0), "a page of another server"),
        (ssl.SSLCertVerificationError("CERTIFICATE_VERIFY_FAILED"), "certificate"),
        (urllib.error.URLError(ssl.SSLError(1, "CERTIFICATE_VERIFY_FAILED")), "certificate"),
        (
            urllib.error.URLError(socket.gaierror(-2, "Name or service not known")),
            "its name is not resolved",
        ),
        (ReadTimeout(), "does not answer in time"),
        (TimeoutError(), "does not answer in time"),
        (ProxyError(), "proxy"),
        (RemoteProtocolError(), "ended the connection"),
        (ConnectionResetError(104, "reset"), "ended the connection"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (
            OSError("Consistency check failed: file should be of size 1 but has size 2"),
            "a different number of bytes",
        ),
    ],
)
def test_failure_of_the_network_is_explained(error: Exception, what: str) -> None:
    failure = why_failed(error)
    assert failure is not None
    assert what in failure.what
    assert failure.status is None


def test_other_exceptions_explain_nothing() -> None:
    for error in (ValueError("code 404"), OSError("no"), KeyError(500), LibraryError(200)):
        assert why_failed(error) is None
