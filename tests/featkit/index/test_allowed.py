"""Which ids match a filter is found once per state, within a bound of bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from featkit.index.allowed import AllowedIds


def test_a_filter_is_evaluated_once() -> None:
    allowed, calls = AllowedIds(4), []

    def find() -> list[int]:
        calls.append(1)
        return [1, 3]

    for _ in range(3):
        assert allowed.get("a", find).tolist() == [False, True, False, True]
    assert len(calls) == 1
    with pytest.raises(ValueError, match="read-only"):
        allowed.get("a", find)[0] = True


def test_the_least_recently_used_are_dropped_beyond_the_bound() -> None:
    allowed, found = AllowedIds(10, max_bytes=25), []

    def find(name: str) -> list[int]:
        found.append(name)
        return []

    for name in "abacab":
        allowed.get(name, lambda name=name: find(name))  # type: ignore[misc]
    assert found == ["a", "b", "c", "b"]


def test_one_is_kept_even_if_it_is_larger_than_the_bound() -> None:
    allowed = AllowedIds(1000, max_bytes=10)
    first = allowed.get("a", lambda: [5])
    assert allowed.get("a", lambda: [6]) is first


def test_threads_get_what_their_filter_matches() -> None:
    allowed = AllowedIds(100, max_bytes=300)

    def ask(i: int) -> bool:
        return np.flatnonzero(allowed.get(str(i % 7), lambda: [i % 7])).tolist() == [i % 7]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(700)))
