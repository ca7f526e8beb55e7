"""Property-based fuzzing of parsers: hypothesis mutates valid files, and the parser must return a
result or raise a FeatkitError.

The test of a parser is a few lines. It runs a few hundred cases by default, and FULL cases as a
slow test:

    @pytest.mark.parametrize("cases", CASES)
    def test_any_bytes_are_a_tar_or_refused(cases: int, tmp_path: Path) -> None:
        fuzz(parse, [valid_tar(), other_tar()], cases=cases, repair=with_checksums)

Any other exception fails the test, and so does a case that exceeds the limits of processor time or
memory. hypothesis then shrinks the mutations and prints the smallest. Cases are drawn with a fixed
seed, so that a run can be repeated.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featkit.errors import FeatkitError

FAST, FULL = 200, 10_000
CASES = (FAST, pytest.param(FULL, marks=(pytest.mark.slow, pytest.mark.timeout(3600))))

MAX_SECONDS = 5.0  # processor time of one case
MAX_BYTES = 512 * 2**20  # memory beyond that of the process before the first case
HEAD = 1024  # formats describe themselves in their first bytes, so mutations favor them
# Numbers that break lengths and offsets, in both byte orders.
EDGES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)
EDGE_BYTES = tuple(
    edge.to_bytes(size, order)
    for edge in EDGES
    for size in (1, 2, 4, 8)
    if edge < 256**size
    for order in ("big", "little")
)  # fmt: skip
TOKENS = (
    b"",
    b"\0",
    b"\n",
    b"\xff" * 16,
    b"\0" * 512,
    b"-1",
    b"9" * 20,
    b"NaN",
    b"../",
    b"{",
    b"}",
    b'"',
    b"\xc3\x28",
)


class Mutation(NamedTuple):
    """One change of a file. place: the offset, modulo the length of the file."""

    kind: str
    place: int
    length: int
    payload: bytes

    def apply(self, data: bytes) -> bytes:
        """Return the changed bytes."""
        at = self.place % (len(data) + 1)
        end = min(len(data), at + self.length)
        if self.kind == "flip" and at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << self.length % 8)]) + data[at + 1 :]
        if self.kind == "overwrite":
            return data[:at] + self.payload + data[at + len(self.payload) :]
        if self.kind == "insert":
            return data[:at] + self.payload + data[at:]
        if self.kind == "remove":
            return data[:at] + data[end:]
        if self.kind == "repeat":
            return data[:end] + data[at:end] + data[end:]
        if self.kind == "truncate":
            return data[:at]
        return data


_places = st.one_of(st.integers(0, HEAD), st.integers(0, 2**31))
_payloads = st.one_of(st.sampled_from(EDGE_BYTES), st.sampled_from(TOKENS), st.binary(max_size=16))
_kinds = st.sampled_from(
    ("flip", "overwrite", "overwrite", "insert", "remove", "repeat", "truncate")
)
_mutations = st.lists(
    st.builds(Mutation, _kinds, _places, st.integers(0, 4096), _payloads), min_size=1, max_size=6
)


def fuzz(
    parse: Callable[[bytes], object],
    seeds: Sequence[bytes],
    *,
    cases: int,
    repair: Callable[[bytes], bytes] = lambda data: data,
    max_seconds: float = MAX_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Call `parse` with `cases` mutations of the valid files `seeds`, which it must accept
    unchanged.

    repair: corrects checksums after a mutation, in half of the cases, so that the code behind them
    is reached. AssertionError for a case over its limits. Any exception of `parse` except
    FeatkitError is raised again.
    """
    for seed in seeds:
        parse(seed)
    _forget_peak()
    highest_before = _highest_bytes()

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, len(seeds) - 1), _mutations, st.booleans())
    def check(i: int, mutations: list[Mutation], repaired: bool) -> None:
        data = seeds[i]
        for mutation in mutations:
            data = mutation.apply(data)
        if repaired:
            data = repair(data)
        started = time.process_time()
        with suppress(FeatkitError):
            parse(data)
        seconds, used = time.process_time() - started, _highest_bytes() - highest_before
        assert seconds <= max_seconds, f"{seconds:.1f} s of processor time for {len(data):,} bytes"
        assert used <= max_bytes, f"{used:,} bytes of memory for {len(data):,} bytes"

    check()


def _forget_peak() -> None:
    """Reset the peak memory, if the system can: earlier tests may have used more than any case
    will."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM


def _highest_bytes() -> int:
    """Return the peak memory since `_forget_peak`, or since the start if it cannot be reset."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
