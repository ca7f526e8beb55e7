"""Convert deep, signed and floating-point levels to eight bits, guessing white if necessary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from featkit.errors import InputError

# Highest levels at the depths that cameras, scanners and microscopes store in 16-bit files: 8, 10,
# 12, 14 and 16 bits.
USUAL_WHITES = (255, 1023, 4095, 16383, 65535)
MAX_BELOW_ZERO = 1 / 16  # share of the highest level; down to this it is noise, shown as black
# Largest share of the pixels of a float image with white at 1 that may be brighter highlights.
MAX_ABOVE_ONE = 0.01
BLOCK_LEVELS = 2**20


def to_bytes(levels: np.ndarray, *, white: float) -> np.ndarray:
    """Convert levels of any integer or float type to uint8.

    `white` and above become 255; zero, negative levels and NaN become 0.
    """
    if levels.dtype.kind == "u" and white == 65535:
        return _by_blocks(levels, lambda block: (np.minimum(block, 65535) >> 8).astype(np.uint8))
    if levels.dtype == np.uint16:
        table = _scaled(np.arange(65536), white)
        return _by_blocks(levels, lambda block: table[block])
    return _by_blocks(levels, lambda block: _scaled(block, white))


def white_of(levels: np.ndarray, *, name: str, declared: float | None = None) -> float:
    """Return the level of white.

    - `declared`, if the file declares its highest level and no level exceeds it.
    - Floats: 1, if at most a hundredth of the levels exceed it.
    - Integers: the highest level, rounded up to 8, 10, 12, 14 or 16 bits. A 12-bit image in a
      16-bit file would be nearly black with white at 65,535. Levels that are bytes in the upper
      half (times 256 or 257) are known to be 16 bits.
    - Between 16 and 31 bits: the highest level itself.

    Raises InputError, with `name`, for levels far below zero, since black is then unknown.
    """
    lowest, highest = _range(levels)
    if lowest < 0 and -lowest > highest * MAX_BELOW_ZERO:
        raise InputError(
            f"{name} has levels from {lowest:,.6g} to {highest:,.6g}, so the level of black is"
            " unknown; convert it so that black is 0."
        )
    if declared is not None and highest <= declared:
        return declared
    if highest <= 0:
        return 1
    if levels.dtype.kind == "f":
        if highest <= 1 or (highest < USUAL_WHITES[0] and _is_mostly_below_one(levels)):
            return 1
    elif levels.dtype.itemsize == 1:
        return float(np.iinfo(levels.dtype).max)
    elif USUAL_WHITES[0] < highest <= USUAL_WHITES[-1] and _are_shifted_bytes(levels):
        return USUAL_WHITES[-1]
    whites: tuple[int, ...] = USUAL_WHITES
    if levels.dtype.kind == "i" and levels.dtype.itemsize == 2:
        whites = (*USUAL_WHITES[:-1], 32767)
    elif levels.dtype.kind in "iu" and highest > 2**30:
        whites = (2**31 - 1, 2**32 - 1)
    return next((white for white in whites if highest <= white), highest)


def _scaled(levels: np.ndarray, white: float) -> np.ndarray:
    share = np.clip(_finite(levels).astype(np.float64) / white, 0, 1)
    return (share * 255 + 1e-6).astype(np.uint8)  # without 1e-6, white could become 254


def _finite(levels: np.ndarray) -> np.ndarray:
    return (
        np.where(np.isfinite(levels), levels, levels.dtype.type(0))
        if levels.dtype.kind == "f"
        else levels
    )


def _blocks(levels: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of rows of (H, ...), so only one block at a time is copied to a wider type."""
    rows = max(1, BLOCK_LEVELS // max(1, levels[:1].size))
    for start in range(0, len(levels), rows):
        yield slice(start, start + rows), levels[start : start + rows]


def _by_blocks(levels: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    converted = np.empty(levels.shape, np.uint8)
    for rows, block in _blocks(levels):
        converted[rows] = convert(block)
    return converted


def _range(levels: np.ndarray) -> tuple[float, float]:
    ranges = [
        (float(block.min()), float(block.max()))
        for block in (_finite(block) for _, block in _blocks(levels))
    ]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _is_mostly_below_one(levels: np.ndarray) -> bool:
    """Return whether few levels exceed 1 and some are fractions, unlike a map of class labels."""
    above = fractions = 0
    for _, block in _blocks(levels):
        finite = _finite(block)
        above += int(np.count_nonzero(finite > 1))
        fractions += int(np.count_nonzero(finite % 1))
    return fractions > 0 and above <= levels.size * MAX_ABOVE_ONE


def _are_shifted_bytes(levels: np.ndarray) -> bool:
    """Return whether all levels are bytes times 256, or times 257, as 8-bit data in 16 bits is."""
    return any(
        not any((block % factor).any() for _, block in _blocks(levels)) for factor in (257, 256)
    )
