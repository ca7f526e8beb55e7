"""The fuzzer finds other exceptions, slow cases, large cases, and seeds that are refused."""

from __future__ import annotations

import time

import numpy as np
import pytest

from featkit.errors import FeatkitError, InputError
from tests.fuzzing import FAST, Mutation, fuzz

VALID = b"\x04data" + b"\0" * 40


def sound(data: bytes) -> bytes:
    """Read a length and that many bytes; refuse shorter data."""
    if not data or len(data) < 1 + data[0]:
        raise InputError("cut.bin ends too early; copy it again.")
    return data[1 : 1 + data[0]]


def test_a_sound_parser_passes() -> None:
    fuzz(sound, [VALID], cases=FAST)


def test_a_foreign_exception_is_raised() -> None:
    with pytest.raises(IndexError):
        fuzz(lambda data: data[data[0]], [VALID], cases=FAST)


def test_a_slow_case_fails() -> None:
    def slow(data: bytes) -> None:
        until = time.process_time() + (0.02 if data[:1] != VALID[:1] else 0)
        while time.process_time() < until:
            pass

    with pytest.raises(AssertionError, match="of processor time"):
        fuzz(slow, [VALID], cases=FAST, max_seconds=0.01)


def test_a_case_that_takes_memory_fails() -> None:
    def greedy(data: bytes) -> float:
        return float(np.ones(2**26 if data[:1] != VALID[:1] else 1).sum())

    with pytest.raises(AssertionError, match="bytes of memory"):
        fuzz(greedy, [VALID], cases=FAST, max_bytes=2**28)


def test_a_seed_has_to_be_valid() -> None:
    with pytest.raises(FeatkitError):
        fuzz(sound, [b""], cases=1)


def test_a_repair_reaches_what_a_checksum_guards() -> None:
    def guarded(data: bytes) -> None:
        if len(data) < 2 or data[0] != sum(data[1:]) % 256:
            raise InputError("sum.bin is damaged; copy it again.")
        assert data[1] != 255

    def mend(data: bytes) -> bytes:
        return bytes([sum(data[1:]) % 256]) + data[1:]

    with pytest.raises(AssertionError):
        fuzz(guarded, [mend(VALID)], cases=10 * FAST, repair=mend)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("flip", b"abbdef"), ("overwrite", b"abXYef"), ("insert", b"abXYcdef"), ("remove", b"abf"),
        ("repeat", b"abcdecdef"), ("truncate", b"ab"),
    ],
)  # fmt: skip
def test_each_mutation_does_what_its_name_says(kind: str, expected: bytes) -> None:
    length = 0 if kind == "flip" else 3
    assert Mutation(kind, 2 + 7, length, b"XY").apply(b"abcdef") == expected
