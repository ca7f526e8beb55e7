"""Levels of other than eight bits: which is white, and that none is taken for another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featkit.images.levels import BLOCK_LEVELS, to_bytes, white_of
from tests.images import draw_image
from tests.sentences import refused

GRAY = np.asarray(draw_image(3).convert("L"))


def scaled(white: float, dtype: Any) -> np.ndarray:
    """GRAY with that level for 255, never overflowing on the way."""
    levels = GRAY.astype(np.float64) * white / 255
    return levels.astype(dtype) if np.dtype(dtype).kind == "f" else np.floor(levels).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "whites"),
    [
        (np.uint16, (255, 1023, 4095, 16383, 65535)),
        (np.int16, (255, 1023, 4095, 16383, 32767)),
        (np.uint32, (255, 1023, 4095, 16383, 65535, 2**32 - 1)),
        (np.int32, (255, 1023, 4095, 16383, 65535, 2**31 - 1)),
        (np.float16, (1, 255, 1023, 4095, 16383)),
        (np.float32, (1, 255, 1023, 4095, 16383, 65535)),
        (np.float64, (1, 255, 1023, 4095, 16383, 65535)),
        (np.int8, (127,)),
    ],
)
def test_levels_of_any_depth_are_those_of_eight_bits(dtype: Any, whites: tuple[float, ...]) -> None:
    for white in whites:
        levels = scaled(white, dtype)
        assert GRAY.max() < 255  # so the highest level is not white itself
        found = white_of(levels, name="x")
        assert found == white
        rounding = 2 if np.dtype(dtype).itemsize < 4 else 1
        assert np.abs(to_bytes(levels, white=found).astype(int) - GRAY).max() <= rounding


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64, np.uint32])
def test_white_is_255_and_black_0(dtype: Any) -> None:
    for white in (1, 255, 1023, 4095, 65535, 1e9):
        if np.dtype(dtype).itemsize == 2 and white > 65535:
            continue
        levels = np.array([[0, white]], dtype)
        assert to_bytes(levels, white=white).tolist() == [[0, 255]]


def test_a_dark_image_of_bytes_in_sixteen_bits_stays_dark() -> None:
    dark = (GRAY // 20).astype(np.uint16)  # no level above 14
    for factor in (256, 257):
        assert (dark * factor).max() < 4095
        assert white_of(dark * factor, name="x") == 65535
    np.testing.assert_array_equal(to_bytes(dark * 257, white=65535), dark)


def test_what_a_file_declares_rules_unless_a_level_exceeds_it() -> None:
    levels = np.array([[0, 700, 3000]], np.uint16)
    assert white_of(levels, name="x", declared=65535) == 65535
    assert white_of(levels, name="x", declared=3000) == 3000
    assert white_of(levels, name="x", declared=2999) == 4095


@pytest.mark.parametrize(
    ("levels", "white"),
    [
        ([[0.0, 0.4, 0.99]], 1),
        ([[0.5] * 200 + [1.3]], 1),  # a light brighter than white
        ([[0.5, 1.7, 2.5]], 255),  # no rule fits; as before
        ([[0.0, 3.0, 7.0]], 255),  # labels
        ([[float("nan"), float("inf"), 0.5]], 1),
        ([[0.0, 100_000.0]], 100_000),
        ([[0.0, 0.0]], 1),
        ([[-0.01, 0.9]], 1),
    ],
)
def test_the_white_of_floats(levels: list[list[float]], white: float) -> None:
    assert white_of(np.array(levels, np.float32), name="x") == white


def test_infinite_and_huge_levels_are_accepted() -> None:
    levels = np.array([[0.0, 1e300, np.inf, -np.inf, np.nan]])
    assert to_bytes(levels, white=white_of(levels, name="x")).tolist() == [[0, 255, 0, 0, 0]]


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (np.array([[-32768, 0, 32767]], np.int16), "x has levels from -32,768 to 32,767"),
        (np.array([[-1000, 3000]], np.int16), "x has levels from -1,000 to 3,000"),
        (np.array([[-1.0, 1.0]], np.float32), "x has levels from -1 to 1"),
        (np.array([[-5, -3]], np.int32), "x has levels from -5 to -3"),
        (np.array([[-128, 127]], np.int8), "x has levels from -128 to 127"),
    ],
)
def test_levels_far_below_zero_are_refused(levels: np.ndarray, words: str) -> None:
    with refused(words, "the level of black is unknown"):
        white_of(levels, name="x")


def test_many_rows_are_the_same_as_few() -> None:
    rows = BLOCK_LEVELS // 500 + 3
    levels = np.random.default_rng(0).integers(0, 4096, (rows, 500), np.uint16)
    whole = to_bytes(levels, white=4095)
    np.testing.assert_array_equal(whole[-5:], to_bytes(levels[-5:], white=4095))
    levels[-1, -1] = 5000
    assert white_of(levels, name="x") == 16383
