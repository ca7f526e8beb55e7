"""The attempts of one call: what to send next, when to wait, and when to give up.

`attempts` is a generator without I/O. It yields what is to be done, and the client that drives it
sends back what came of it. Waits grow exponentially with full jitter (M. Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015), on top of what Retry-After asks for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias, TypeVar

import httpx

from featkit.errors import EnvironmentProblem, FeatkitError
from featkit.serve.client.answers import Answer, Body, Unexpected, foreign, refusal
from featkit.serve.client.calls import Call
from featkit.serve.client.clock import Clock, Deadline
from featkit.wording import counted

Result = TypeVar("Result")
Failure: TypeAlias = httpx.RequestError | httpx.InvalidURL | TimeoutError
FAILURES = (httpx.RequestError, httpx.InvalidURL, TimeoutError)

DEADLINE_HEADER = "X-Request-Deadline-Ms"
MAX_DEADLINE_MS = 24 * 3600 * 1000  # the most that the service accepts
RETRIED_STATUSES = (429, 503)  # the request was refused before any work
# The connection broke or was refused. A timeout is not retried: a service that is slow would get
# the same work twice.
RETRIED_FAILURES = (httpx.NetworkError, httpx.RemoteProtocolError)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
LONGEST_RETRY_AFTER_S = 60.0  # a client that is asked to wait longer gives up


@dataclass(frozen=True)
class Policy:
    """The options of a client that hold for every attempt. timeout_s: for the next bytes."""

    address: str
    timeout_s: float
    max_attempts: int


@dataclass(frozen=True)
class Wait:
    """The client sleeps."""

    seconds: float


@dataclass(frozen=True)
class Send:
    """The client sends a request, and returns the Answer or a Failure.

    timeout_s: for the next bytes. left_s: for the whole answer, infinity without a deadline.
    """

    method: str
    route: str
    arguments: dict[str, Any]
    timeout_s: float
    left_s: float
    body: Body


def attempts(
    call: Call[Result], policy: Policy, deadline: Deadline
) -> Generator[Send | Wait, Answer | Failure | None, Result]:
    """Yield what to do for a call, and return its result.

    Raises InputError with the service's own message if it refuses the request, and
    EnvironmentProblem if there is no answer in time or it is not the service's.
    """
    max_attempts = policy.max_attempts if call.is_retried else 1
    for attempt in range(1, max_attempts + 1):
        left_s = deadline.left_s()
        if left_s <= 0:
            raise _too_late(policy, deadline)
        send = _send(call, policy, deadline, left_s)
        outcome = yield send
        assert outcome is not None  # the client answers each Send
        if isinstance(outcome, Answer) and outcome.is_success:
            try:
                return call.parse(outcome)
            except Unexpected as error:
                raise foreign(policy.address, outcome, error.what) from error
        asked_s = retry_after_s(outcome, deadline.clock) if isinstance(outcome, Answer) else None
        wait_s = _wait_s(outcome, attempt, asked_s, deadline.clock)
        if wait_s is None or attempt == max_attempts:
            raise _error(outcome, send, policy, deadline, _note(attempt, asked_s))
        if wait_s >= deadline.left_s():
            hurry = f"; the deadline of {deadline.given_s:g} s leaves no time to try again"
            raise _error(outcome, send, policy, deadline, _note(attempt, asked_s) + hurry)
        yield Wait(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _send(call: Call[Any], policy: Policy, deadline: Deadline, left_s: float) -> Send:
    arguments = dict(call.arguments)
    if left_s < math.inf:
        left_ms = min(max(1, int(left_s * 1000)), MAX_DEADLINE_MS)
        arguments["headers"] = {**arguments.get("headers", {}), DEADLINE_HEADER: str(left_ms)}
    return Send(
        call.method,
        call.route,
        arguments,
        min(policy.timeout_s, left_s),
        left_s,
        Body(policy.address, deadline),
    )


def _wait_s(
    outcome: Answer | Failure, attempt: int, asked_s: float | None, clock: Clock
) -> float | None:
    """Return the seconds until the next attempt, None if there must be none."""
    backoff_s = clock.uniform(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)))
    if not isinstance(outcome, Answer):
        return backoff_s if isinstance(outcome, RETRIED_FAILURES) else None
    if outcome.status not in RETRIED_STATUSES or (asked_s or 0) > LONGEST_RETRY_AFTER_S:
        return None
    return (asked_s or 0) + backoff_s


def retry_after_s(answer: Answer, clock: Clock) -> float | None:
    """Return the seconds that Retry-After asks to wait (RFC 9110, section 10.2.3), None without.

    It has seconds or a date; anything else counts as absent.
    """
    text = answer.headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]{1,15}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        # the obsolete format of asctime has no zone; all of them mean UTC
        moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, moment - clock.now())


def _note(attempt: int, asked_s: float | None) -> str:
    asked = f" (it asks to wait {asked_s:,.0f} s)" if asked_s else ""
    return asked + (f" ({counted(attempt, 'attempt')})" if attempt > 1 else "")


def _error(
    outcome: Answer | Failure, send: Send, policy: Policy, deadline: Deadline, note: str
) -> FeatkitError:
    if isinstance(outcome, Answer):
        return refusal(policy.address, outcome, note=note)
    if isinstance(outcome, TimeoutError | httpx.TimeoutException):
        error = (
            _too_late(policy, deadline)
            if send.timeout_s < policy.timeout_s or isinstance(outcome, TimeoutError)
            else EnvironmentProblem(
                f"{policy.address} did not answer within {policy.timeout_s} s"
                f" ({type(outcome).__name__}); send fewer images at once, or give the client a"
                " longer timeout_s."
            )
        )
    else:  # also an answer that is cut off or cannot be decompressed
        error = EnvironmentProblem(
            f"{policy.address} does not answer ({outcome}); check that `featkit serve` runs"
            f" there{note}."
        )
    error.__cause__ = outcome
    return error


def _too_late(policy: Policy, deadline: Deadline) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{policy.address} did not answer within the deadline of {deadline.given_s:g} s; send fewer"
        " images at once, or allow more by deadline_s."
    )
