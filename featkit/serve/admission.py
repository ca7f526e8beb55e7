"""The requests that the service has accepted and not yet answered, and the bounds on them.

A request with a body is accepted before its body is read, or refused at once with 503, so that a
flood costs neither memory nor time. One that was accepted has a deadline, and its work ends when
the deadline has passed or its client has left.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featkit.backends import Cancel
from featkit.serve.proxy import route_path
from featkit.serve.refusals import BadRequest, ClientLeft, Overloaded, TooLate, answer_to, refusal

OURS = "/v1/"
WITH_A_BODY = ("POST", "PUT", "PATCH", "DELETE")
DEADLINE_HEADER = b"x-request-deadline-ms"
MOST_DEADLINE_MS, MOST_DIGITS = 24 * 3600 * 1000, 12
ACCEPTED = "featkit.accepted"  # the key of a scope that has an `Accepted`
RECENT = 0.1  # weight of the latest request in the mean duration


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds on the requests that are accepted at the same time, and on each one's time.

    requests, body_bytes: requests with a body, and the bytes of their bodies. body_s: for a body to
    arrive. deadline_s: for the answer, unless the request asks for less or more by
    X-Request-Deadline-Ms.
    """

    requests: int = 64
    body_bytes: int = 512 * 2**20
    body_s: float = 30.0
    deadline_s: float = 60.0


class Accepted:
    """One accepted request: its deadline, its part of the bounds, and whether its client is there.

    Thread-safe. cancel: ends a running call of the model.
    """

    def __init__(self, admission: Admission, *, deadline_s: float) -> None:
        self._admission = admission
        self._started = time.monotonic()
        self.deadline_s, self.deadline = deadline_s, self._started + deadline_s
        self.num_bytes = 0
        self.has_left = False
        self.cancel = Cancel()

    def check(self) -> None:
        """Raise ClientLeft or TooLate if the answer is of no use any more."""
        if self.has_left:
            raise ClientLeft
        if time.monotonic() >= self.deadline:
            raise TooLate(
                f"The answer was not ready within the deadline of {self.deadline_s:g} s; send fewer"
                " images, or allow more by X-Request-Deadline-Ms."
            )

    def grow_to(self, num_bytes: int) -> None:
        """Take room for a body of this size. Overloaded if there is none."""
        if num_bytes > self.num_bytes:
            self._admission.take_bytes(num_bytes - self.num_bytes)
            self.num_bytes = num_bytes

    def leave(self) -> None:
        """Note that the client has left."""
        if not self.has_left:
            self.has_left = True
            self._admission.count("left")
            self.cancel.set()

    def end(self) -> None:
        """Give back its part of the bounds."""
        self._admission.end(self.num_bytes, time.monotonic() - self._started)


class Admission:
    """The bounds, what is in use of them, and what was refused. Thread-safe."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.num_requests = self.num_bytes = 0
        self.counts: Counter[str] = Counter()  # requests that were refused, or whose client left
        self._mean_s = 1.0
        self._lock = threading.Lock()

    def accept(self, num_bytes: int, *, deadline_s: float) -> Accepted:
        """Accept a request whose body has `num_bytes`, 0 if that is unknown. Overloaded if not.

        The caller ends it.
        """
        accepted = Accepted(self, deadline_s=deadline_s)
        with self._lock:
            if self.num_requests >= self.bounds.requests:
                raise self._refused("requests")
            self.num_requests += 1
        try:
            accepted.grow_to(num_bytes)
        except Overloaded:
            with self._lock:
                self.num_requests -= 1
            raise
        return accepted

    def take_bytes(self, num_bytes: int) -> None:
        """Take room for bytes of a body. Overloaded if there is none."""
        with self._lock:
            if self.num_bytes + num_bytes > self.bounds.body_bytes:
                raise self._refused("bytes")
            self.num_bytes += num_bytes

    def end(self, num_bytes: int, seconds: float) -> None:
        """Give back the room of a request that took so long."""
        with self._lock:
            self.num_requests -= 1
            self.num_bytes -= num_bytes
            self._mean_s += RECENT * (seconds - self._mean_s)

    def count(self, event: str) -> None:
        """Count an event by its name."""
        with self._lock:
            self.counts[event] += 1

    def _refused(self, reason: str) -> Overloaded:
        self.counts[reason] += 1
        return Overloaded(max(1, math.ceil(self._mean_s)))


class AdmissionControl:
    """ASGI middleware that accepts requests with a body, or refuses them before it is read."""

    def __init__(self, app: ASGIApp, admission: Admission, max_request_bytes: int) -> None:
        self.app, self.admission, self.max_request_bytes = app, admission, max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_counted(scope):
            await self.app(scope, receive, send)
            return
        try:
            num_bytes = self._num_bytes(scope)
            deadline_s = _deadline_s(dict(scope["headers"]), self.admission.bounds.deadline_s)
            accepted = self.admission.accept(num_bytes, deadline_s=deadline_s)
        except BadRequest as error:
            await refusal(error.status, str(error))(scope, receive, send)
            return
        except Overloaded as error:
            await answer_to(error)(scope, receive, send)
            return
        scope[ACCEPTED] = accepted
        body = _Body(receive, accepted, self.admission.bounds.body_s)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                body.close()  # the server calls an answered request disconnected
            await send(message)

        try:
            await self.app(scope, body.receive, send_and_note)
        except asyncio.CancelledError:  # the server ends
            accepted.cancel.set()
            raise
        finally:
            body.close()
            accepted.end()

    def _num_bytes(self, scope: Scope) -> int:
        """Return the length that the body claims. BadRequest if that is too long."""
        num_bytes, most = content_length(scope), self.max_request_bytes
        if num_bytes > most:
            raise BadRequest(
                413, f"The request has {num_bytes:,} bytes, more than the limit of {most:,}."
            )
        return num_bytes


def _is_counted(scope: Scope) -> bool:
    """Return whether this is one of our requests with a body; a page has others."""
    if scope["type"] != "http" or scope["method"] not in WITH_A_BODY:
        return False
    return route_path(scope).startswith(OURS)


def content_length(scope: Scope) -> int:
    """Return the length that a request claims for its body; 0 if it claims no valid one."""
    values = {value for name, value in scope["headers"] if name == b"content-length"}
    value = values.pop() if len(values) == 1 else b""
    # int() of a very long text takes time and raises past 4,300 digits
    return int(value) if len(value) <= 18 and value.isdigit() else 0


def _deadline_s(headers: dict[bytes, bytes], default_s: float) -> float:
    text = headers.get(DEADLINE_HEADER)
    if text is None:
        return default_s
    is_number = text.isdigit() and len(text) <= MOST_DIGITS
    if not is_number or not 1 <= int(text) <= MOST_DEADLINE_MS:
        shown = text[:40].decode("latin-1")
        raise BadRequest(
            422,
            f"X-Request-Deadline-Ms is {shown!r}; it must be a whole number of milliseconds from 1"
            f" to {MOST_DEADLINE_MS:,}.",
        )
    return int(text) / 1000


def accepted_of(request: Request) -> Accepted:
    """Return the request as the middleware accepted it."""
    accepted: Accepted = request.scope[ACCEPTED]
    return accepted


class _Body:
    """The body of an accepted request: bounded in time, and then watched for the client's leaving.

    Without the watch nobody would notice, since a route that has the body receives no more.
    """

    def __init__(self, receive: Receive, accepted: Accepted, timeout_s: float) -> None:
        self._receive, self._accepted = receive, accepted
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._num_bytes = 0
        self._watch: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """Return the next message. BadRequest 408 if the body is slow; Overloaded if it does not
        fit."""
        if self._watch is not None:
            await asyncio.shield(self._watch)
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise BadRequest(
                408, f"The request did not arrive within {self._timeout_s:g} s; send it again."
            ) from None
        if message["type"] == "http.disconnect":
            self._accepted.leave()
            return message
        self._num_bytes += len(message.get("body", b""))
        self._accepted.grow_to(self._num_bytes)
        if not message.get("more_body", False):
            self._watch = asyncio.create_task(self._wait_for_leaving())
        return message

    async def _wait_for_leaving(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._accepted.leave()

    def close(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
