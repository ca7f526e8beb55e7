"""Which items are read together: rows of one Parquet row group are decoded at once, other items
each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from featkit.sources.base import Source


class Locality(NamedTuple):
    """Where n items lie: group_of (n,) int64, -1 for an item that is read by itself; num_bytes (g,)
    int64 of each group."""

    group_of: np.ndarray
    num_bytes: np.ndarray


def locality_of(source: Source) -> Locality:
    """Return where a source's items lie, as its own `locality` says; without one each is read by
    itself."""
    own = getattr(source, "locality", None)
    return apart(len(source)) if own is None else own()


def apart(count: int) -> Locality:
    """Items that are each read by themselves."""
    return Locality(np.full(count, -1, np.int64), np.zeros(0, np.int64))


def joined(parts: Sequence[Source]) -> Locality:
    """The parts' items one after the other."""
    found = [locality_of(part) for part in parts]
    starts = np.cumsum([0, *(len(part.num_bytes) for part in found)])
    groups = [
        np.where(part.group_of < 0, -1, part.group_of + start)
        for part, start in zip(found, starts, strict=False)
    ]
    return Locality(np.concatenate(groups), np.concatenate([part.num_bytes for part in found]))
