"""A token bucket never gives out more than its rate and burst, whoever asks."""

from __future__ import annotations

import math
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from featkit.serve.rates import Rate, TokenBucket


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_the_rest_waits_its_turn() -> None:
    clock = Clock()
    bucket = TokenBucket(Rate(per_second=2, burst=4), clock=clock)
    assert [bucket.take(1) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    clock.now = 0.5
    assert (bucket.take(1), bucket.take(3)) == (0, 1.5)
    clock.now = 100.0  # no more than the burst is saved up
    assert (bucket.take(4), bucket.take(1)) == (0, 0.5)


def test_more_than_the_burst_never_passes() -> None:
    assert TokenBucket(Rate(per_second=1, burst=8)).take(8.5) == math.inf


def test_a_clock_that_jumps_back_gives_nothing_away() -> None:
    clock = Clock()
    clock.now = 50.0
    bucket = TokenBucket(Rate(per_second=1, burst=1), clock=clock)
    assert bucket.take(1) == 0
    clock.now = 10.0
    assert bucket.take(1) == 1
    clock.now = 11.0
    assert bucket.take(1) == 0


@given(
    st.floats(0.01, 100),
    st.floats(1, 100),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 60)), max_size=40),
)
def test_the_sum_stays_within_rate_and_burst(
    per_second: float, burst: float, asked: list[tuple[float, float]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(Rate(per_second=per_second, burst=burst), clock=clock)
    given_out = 0.0
    for pause, amount in asked:
        clock.now += pause
        wait = bucket.take(amount)
        given_out += amount if wait == 0 else 0
        assert given_out <= (burst + per_second * clock.now) * (1 + 1e-9)
        if 0 < wait < math.inf:  # the wait that it names is enough
            clock.now += wait * (1 + 1e-9) + 1e-9
            assert bucket.take(amount) == 0
            given_out += amount


def test_eight_threads_get_no_more_than_one() -> None:
    rate = Rate(per_second=2000, burst=50)
    started = time.monotonic()
    bucket = TokenBucket(rate)
    taken = [0] * 8
    stop = threading.Event()

    def take(number: int) -> None:
        while not stop.is_set():
            taken[number] += bucket.take(1) == 0

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert rate.burst < sum(taken) <= rate.burst + rate.per_second * (time.monotonic() - started)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "5"])
def test_a_rate_is_a_positive_number(value: object) -> None:
    for fields in ({"per_second": value, "burst": 5}, {"per_second": 5, "burst": value}):
        with pytest.raises(ValidationError):
            Rate.model_validate(fields)
