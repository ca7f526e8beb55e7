"""Items that are read together: the rows of a Parquet row group are decoded at once, other items
one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from featkit.sources.base import Source


class Locality(NamedTuple):
    """The groups of n items. group_of: (n,) int64, -1 for an item that is read by itself.
    num_bytes: (g,) int64, of each group."""

    group_of: np.ndarray
    num_bytes: np.ndarray


def locality_of(source: Source) -> Locality:
    """Return a source's own `locality`; if it has none, each item is read by itself."""
    own = getattr(source, "locality", None)
    return apart(len(source)) if own is None else own()


def apart(count: int) -> Locality:
    """Return the locality of items that are read one by one."""
    return Locality(np.full(count, -1, np.int64), np.zeros(0, np.int64))


def joined(parts: Sequence[Source]) -> Locality:
    """Return the locality of the parts' items, one part after the other."""
    localities = [locality_of(part) for part in parts]
    starts = np.cumsum([0, *(len(locality.num_bytes) for locality in localities)])
    groups = [
        np.where(locality.group_of < 0, -1, locality.group_of + start)
        for locality, start in zip(localities, starts, strict=False)
    ]
    num_bytes = np.concatenate([locality.num_bytes for locality in localities])
    return Locality(np.concatenate(groups), num_bytes)
