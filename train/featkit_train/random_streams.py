"""Random streams keyed by their purpose, so that no draw depends on who makes it or when."""

from __future__ import annotations

import numpy as np

# The purposes. Stored runs depend on these numbers: append new ones, never reorder.
ORDER, CROPS, HELD_OUT, WEIGHTS, MASKS, NOISE, COMMON_NOISE, RESOLUTION, PERMUTED, PSEUDO = range(
    10
)


def rng_for(seed: int, purpose: int, *keys: int) -> np.random.Generator:
    """Return the random stream of one purpose and its keys (such as epoch and image index).

    Equal arguments give equal streams on every machine.
    """
    return np.random.default_rng([seed, purpose, *keys])
