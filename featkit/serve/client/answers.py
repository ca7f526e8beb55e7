"""Answers of a service or of something else at its address, and the errors that they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from featkit.errors import EnvironmentProblem, InputError
from featkit.filetypes import NUM_BYTES, what_is
from featkit.serve.client.clock import Deadline
from featkit.wording import counted

MAX_ANSWER_BYTES = 256 * 2**20  # after decompression; the largest answers have about a tenth
REDIRECTS = (301, 302, 303, 307, 308)
# Statuses of the service's own refusals that the caller can mend.
REFUSALS = frozenset((400, 401, 403, 404, 413, 415, 422))
# The meaning of these statuses if another server answers, and what to do.
OTHER_STATUSES = {
    401: "a proxy asks for a login; sign in there, or use the service's own address",
    403: "a proxy or firewall forbids access; use an address that this machine can reach",
    404: "there is no such route; check the address, and that `featkit serve` runs there",
    405: (
        "the route does not accept such a request; check the address, and that `featkit serve` runs"
        " there"
    ),
    407: "a proxy asks for a login; put it into the variable HTTPS_PROXY or HTTP_PROXY",
    408: "the request took too long to arrive; send fewer images at once, or try again",
    413: (
        "the request is too large for a proxy in front of the service; send fewer or smaller"
        " images, or raise its limit"
    ),
    429: "there are too many requests; wait before the next one",
    500: "the service failed; its log has the reason",
    502: "a proxy cannot reach the service; check that it runs, and try again",
    503: "the service cannot answer now; try again later",
    504: "the answer was not ready in time; send fewer images at once, or allow more time",
}


class Answer(NamedTuple):
    """A complete HTTP answer. headers: with lower-case names."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """Return whether the status is 200 to 299."""
        return 200 <= self.status < 300

    @property
    def media_type(self) -> str:
        """Return the content type in lower case, without parameters; "" if there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Unexpected(Exception):
    """A success that is not what the service would send. what: "something other than a JPEG"."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)


class Body:
    """The body of an answer as it arrives, bounded in bytes and in time."""

    def __init__(self, address: str, deadline: Deadline) -> None:
        self._address, self._deadline = address, deadline
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    def add(self, piece: bytes) -> None:
        """Add the next piece. TimeoutError past the deadline; EnvironmentProblem past the bound."""
        self._num_bytes += len(piece)
        if self._num_bytes > MAX_ANSWER_BYTES:
            raise EnvironmentProblem(
                f"{self._address} sends an answer of more than {counted(MAX_ANSWER_BYTES, 'byte')},"
                " which `featkit serve` never does; check the address and any proxy."
            )
        if self._deadline.left_s() <= 0:
            raise TimeoutError("the answer was still arriving")
        self._pieces.append(piece)

    def answer(self, status: int, headers: httpx.Headers) -> Answer:
        """Return the answer, whose body is complete."""
        return Answer(status, dict(headers), b"".join(self._pieces))


def refusal(address: str, answer: Answer, *, note: str = "") -> InputError | EnvironmentProblem:
    """Return the error for an answer that is not a success.

    It has the service's own message, or the meaning of a status that a proxy sent. note: about
    further attempts.
    """
    status = answer.status
    content = _json(answer)
    detail = _detail(content, status)
    is_own = isinstance(content.get("images"), list) and isinstance(content.get("detail"), str)
    if detail is not None and is_own and status in REFUSALS:
        return InputError(detail)
    if status in REDIRECTS:
        target = answer.headers.get("location", "another address")
        reason = (
            f"it redirects to {target[:200]}; use that address if it is the service's, or sign in"
            " there"
        )
    else:
        reason = OTHER_STATUSES.get(
            status, "`featkit serve` never sends this status; check the address and any proxy"
        )
    own = f" and says: {detail.rstrip('.')}" if detail else ""
    return EnvironmentProblem(f"{address} answered {status}{own}: {reason}{note}.")


def foreign(address: str, answer: Answer, what: str) -> EnvironmentProblem:
    """Return the error for a success that is not the service's."""
    kind = what_is(answer.content[:NUM_BYTES])
    described = kind.name if kind is not None else answer.headers.get("content-type", "")[:60]
    return EnvironmentProblem(
        f"{address} answered {answer.status} with {what} ({described or 'nothing'},"
        f" {counted(len(answer.content), 'byte')}). A proxy, a login page, another program or"
        " another version of featkit answers there; check the address."
    )


def _json(answer: Answer) -> dict[str, Any]:
    """Return the JSON object of an answer, {} if it has none."""
    try:
        content = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _detail(content: Mapping[str, Any], status: int) -> str | None:
    """Return the message of a refusal, or None for any other answer."""
    detail = content.get("detail")
    if isinstance(detail, str) and detail and (status != 404 or detail != "Not Found"):
        return detail[:2000]
    return f"{detail}"[:300] if isinstance(detail, list) and detail else None
