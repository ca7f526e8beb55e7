"""Masks that hide blocks of patches from a student, drawn as in BEiT (arXiv 2106.08254, algorithm
1) and iBOT.

Letters: (h, w) patches, P = h * w.
"""

from __future__ import annotations

import math

import numpy as np

from featkit_train.config import IbotConfig

LEAST_BLOCK = 4  # patches
TRIES = 10


def draw_mask(rng: np.random.Generator, *, grid: tuple[int, int], config: IbotConfig) -> np.ndarray:
    """Draw a mask (h, w) bool, True for hidden patches.

    It is empty with probability 1 - mask_probability. Otherwise the share of hidden patches is
    uniform in mask_ratio.
    """
    if rng.random() >= config.mask_probability:
        return np.zeros(grid, bool)
    num_masked = int(rng.uniform(*config.mask_ratio) * grid[0] * grid[1])
    return block_mask(rng, grid=grid, num_masked=num_masked, aspect=config.mask_aspect)


def block_mask(
    rng: np.random.Generator, *, grid: tuple[int, int], num_masked: int, aspect: float
) -> np.ndarray:
    """Draw rectangles, which may overlap, until `num_masked` patches are hidden: (h, w) bool.

    A rectangle's area is uniform between LEAST_BLOCK and the number of patches left to hide, its
    height over width log-uniform in aspect .. 1 / aspect. Ends with fewer hidden patches if TRIES
    rectangles in a row do not fit, as the released code does.
    """
    mask = np.zeros(grid, bool)
    num_left = num_masked
    while num_left > 0:
        for _ in range(TRIES):
            block = _draw_block(rng, grid=grid, largest=num_left, aspect=aspect)
            if block is not None and 0 < (new := int((~mask[block]).sum())) <= num_left:
                mask[block] = True
                num_left -= new
                break
        else:
            break
    return mask


def _draw_block(
    rng: np.random.Generator, *, grid: tuple[int, int], largest: int, aspect: float
) -> tuple[slice, slice] | None:
    """Draw a rectangle inside the grid; None if it is as high or as wide as the grid."""
    area = rng.uniform(min(LEAST_BLOCK, largest), largest)
    reach = abs(math.log(aspect))
    ratio = math.exp(rng.uniform(-reach, reach))
    height, width = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
    if height >= grid[0] or width >= grid[1]:
        return None
    top, left = int(rng.integers(grid[0] - height + 1)), int(rng.integers(grid[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)
