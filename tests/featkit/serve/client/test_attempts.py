"""Retries, waits and deadlines, on a clock that only moves when the client sleeps."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.errors import EnvironmentProblem, InputError
from featkit.serve.client import answers
from featkit.serve.client.answers import Answer
from featkit.serve.client.attempts import retry_after_s
from featkit.serve.client.clock import Clock
from tests.featkit.serve.client.scripts import FakeClock, Script, answer, embedded
from tests.sentences import refused

BUSY = '{"detail": "The service has more to do than it can take.", "images": []}'


@pytest.mark.parametrize("status", [429, 503])
def test_busy_service_is_asked_again_after_growing_waits(status: int) -> None:
    script = Script(answer(status, BUSY), answer(status, BUSY), answer())
    assert script.client().items().total == 3
    assert script.clock.slept == [0.5, 1.0]


def test_every_attempt_sends_the_same_images() -> None:
    script = Script(answer(503), httpx.ReadError("reset"), embedded([[1.0]]))
    script.client().embed([b"the image"])
    assert len(script.bodies) == 3
    contents = [
        body.replace(request.headers["content-type"].rpartition("=")[2].encode(), b"")
        for request, body in zip(script.requests, script.bodies, strict=True)
    ]
    assert b"the image" in contents[0]
    assert len(set(contents)) == 1


def test_endless_503_ends_with_the_last_attempt() -> None:
    script = Script(answer(503, BUSY))
    with refused("503", "more to do", "(8 attempts)", error=EnvironmentProblem):
        script.client(max_attempts=8).items()
    assert len(script.requests) == 8
    assert script.clock.slept == [0.5, 1, 2, 4, 8, 8, 8]


def test_jitter_may_shorten_a_wait_to_nothing() -> None:
    script = Script(answer(503), answer())
    script.clock.fraction = 0
    script.client().items()
    assert script.clock.slept == [0]


def test_jitter_is_uniform() -> None:
    drawn = [Clock().uniform(8) for _ in range(400)]
    assert 0 <= min(drawn) < 1
    assert 7 < max(drawn) <= 8


def test_retry_after_is_waited_for() -> None:
    script = Script(answer(429, retry_after="7"), answer())
    script.client().items()
    assert script.clock.slept == [7.5]


def test_retry_after_may_be_a_date() -> None:
    script = Script(answer(503), answer())
    date = formatdate(script.clock.now() + 20, usegmt=True)
    script.outcomes[0].headers["retry-after"] = date  # type: ignore[union-attr]
    script.client().items()
    assert script.clock.slept == [20.5]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (" 12 ", 12),
        ("Tue, 14 Nov 2023 22:30:00 GMT", 0),  # the clock shows 22:30:00
        ("Tue, 14 Nov 2023 22:30:30 GMT", 30),
        ("Tue, 14 Nov 2023 23:30:30 +0100", 30),
        ("Tue Nov 14 22:30:30 2023", 30),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1.5", None),
        ("1e9", None),
        ("٣", None),
        ("9" * 400, None),
        ("Wed, 99 Foo 2015", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
    ],
)
def test_retry_after_is_parsed(text: str, seconds: float | None) -> None:
    clock = FakeClock()
    clock.seconds = 1_700_001_000 - 1_700_000_000
    assert retry_after_s(Answer(503, {"retry-after": text}, b""), clock) == seconds


@given(st.text(max_size=40) | st.from_regex(r"\w{3}, \d\d \w{3} \d{1,5} [\d:]{0,8} [-+\w]{0,5}"))
def test_no_retry_after_breaks_the_client(text: str) -> None:
    waited = retry_after_s(Answer(503, {"retry-after": text}, b""), FakeClock())
    assert waited is None or waited >= 0


@pytest.mark.parametrize("wait", ["3600", "999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_too_long_a_retry_after_is_reported_instead(wait: str) -> None:
    script = Script(answer(503, retry_after=wait))
    with refused("503", "it asks to wait", error=EnvironmentProblem):
        script.client().items()
    assert script.clock.slept == []


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("closed without an answer"),
    ],
)
def test_broken_connections_are_tried_again(error: Exception) -> None:
    script = Script(error, error, answer())
    script.client().items()
    assert script.clock.slept == [0.5, 1.0]
    script = Script(error)
    with refused("does not answer", "(5 attempts)", error=EnvironmentProblem):
        script.client().items()


@pytest.mark.parametrize(
    "outcome",
    [
        httpx.ReadTimeout("slow"),
        httpx.DecodingError("not gzip"),
        answer(500),
        answer(502),
        answer(404),
        answer(302, location="https://login.example"),
        answer(200, "<html>"),
        answer(200, '{"status": "ok", "mod'),
    ],
)
def test_other_failures_are_not_tried_again(outcome: Any) -> None:
    script = Script(outcome)
    with refused(error=EnvironmentProblem):
        script.client().items()
    assert len(script.requests) == 1


@pytest.mark.parametrize("outcome", [answer(503, BUSY), httpx.ConnectError("refused")])
def test_the_present_state_is_asked_for_once(outcome: Any) -> None:
    script = Script(outcome)
    with refused(error=EnvironmentProblem):
        script.client().health()
    assert (len(script.requests), script.clock.slept) == (1, [])


def test_the_services_refusal_is_not_tried_again() -> None:
    script = Script(answer(422, '{"detail": "k is 0.", "images": []}'))
    with refused("k is 0.", error=InputError):
        script.client().items()
    assert len(script.requests) == 1


def test_requests_say_how_much_time_is_left() -> None:
    script = Script(answer(503), answer(503), answer())
    script.client(deadline_s=9.0).items(deadline_s=2.0)
    left = [request.headers["x-request-deadline-ms"] for request in script.requests]
    assert left == ["2000", "1500", "500"]
    timeouts = [request.extensions["timeout"]["read"] for request in script.requests]
    assert timeouts == [2.0, 1.5, 0.5]


def test_without_a_deadline_none_is_sent() -> None:
    script = Script(answer())
    script.client(timeout_s=7).items()
    assert "x-request-deadline-ms" not in script.requests[0].headers
    assert script.requests[0].extensions["timeout"]["connect"] == 7


def test_nobody_sleeps_past_the_deadline() -> None:
    script = Script(answer(503, BUSY, retry_after="2"))
    with refused("deadline of 2 s leaves no time", "more to do", error=EnvironmentProblem):
        script.client().items(deadline_s=2)
    assert script.clock.slept == []
    script = Script(httpx.ConnectError("refused"))
    with refused("deadline of 3 s leaves no time", error=EnvironmentProblem):
        script.client(deadline_s=3).items()
    assert script.clock.slept == [0.5, 1.0]


def test_one_deadline_holds_for_all_requests_of_a_list() -> None:
    script = Script(answer(503), embedded([[1.0]]), answer(503), embedded([[1.0]]))
    script.client(images_per_request=1).embed([b"a", b"b"], deadline_s=2)
    left = [request.headers["x-request-deadline-ms"] for request in script.requests]
    assert left == ["2000", "1500", "1500", "1000"]


def test_reading_images_takes_time_from_the_deadline() -> None:
    script = Script(embedded([[1.0]]))

    def images() -> Iterator[bytes]:
        script.clock.seconds += 5
        yield b"a"

    with refused("within the deadline of 2 s", error=EnvironmentProblem):
        script.client().embed(images(), deadline_s=2)
    assert script.requests == []


def test_a_trickling_answer_ends_with_the_deadline() -> None:
    script = Script(answer())

    def trickle() -> Iterator[bytes]:
        while True:
            script.clock.seconds += 1
            yield b" "

    script.outcomes = [httpx.Response(200, content=trickle())]
    with refused("within the deadline of 3 s", error=EnvironmentProblem):
        script.client().items(deadline_s=3)


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 1000)

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 300

    script = Script(httpx.Response(200, content=endless()))
    with refused("more than 1,000 bytes", error=EnvironmentProblem):
        script.client().items()


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "2", True])
def test_deadlines_are_positive_numbers(value: Any) -> None:
    script = Script(answer())
    with refused("deadline_s is", "above 0"):
        script.client(deadline_s=value)
    with refused("deadline_s is", "above 0"):
        script.client().items(deadline_s=value)
    with refused("timeout_s is", "above 0"):
        script.client(timeout_s=value)


@pytest.mark.parametrize("name", ["max_attempts", "images_per_request", "bytes_per_request"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
def test_limits_are_whole_numbers_from_one(name: str, value: Any) -> None:
    with refused(f"{name} is {value!r}; it must be"):
        Script(answer()).client(**{name: value})
