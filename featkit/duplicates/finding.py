"""Find the pairs of images that are the same, near copies, or similar."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import numpy as np

from featkit.duplicates.look import SAME, SURELY_SAME, Look, agreement
from featkit.errors import InputError
from featkit.index import Index, IndexState
from featkit.index.meaning import Calibration

QUERIES_AT_ONCE = 256
FIRST_HITS = 16
MAX_HITS = 4096  # of one image; more copies than these are found through each other
# Images that score less than strangers do are looked at if they are among the first.
MAX_LOOKS = 8
LOOKS_KEPT = 4096  # at 10 kB each


class Level(IntEnum):
    """How much two images have in common; a larger value is less."""

    SAME = 1  # the same bytes
    NEAR = 2  # the same content, seen by model and pixels: another size, crop, color, compression
    SIMILAR = 3  # as near as copies by the model, but the pixels do not show the same

    @property
    def word(self) -> str:
        """The name for people."""
        return {1: "same", 2: "near", 3: "similar"}[self.value]


@dataclass(frozen=True)
class Pair:
    """Two items by id, the first one smaller unless they are of two indexes.

    score: cosine similarity. agreement: of the pixels, as in look.py; None if it was not needed.
    """

    first: int
    second: int
    level: Level
    score: float
    agreement: float | None = None


def find_pairs(
    index: Index,
    calibration: Calibration,
    *,
    where: str | None = None,
    most: Level = Level.NEAR,
    against: Index | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> Iterator[Pair]:
    """Yield the pairs of an index's items up to a level, or of its items with those of another.

    where: only items of `index` that match a filter. on_progress: called with the number of items
    compared so far. InputError if `against` is of another model; FilterError for a wrong filter.

    Memory holds a few hundred vectors and thumbnails; one committed state of each index is read at
    a time, so items that are removed meanwhile may be in the result.
    """
    other = index if against is None else against  # an empty index is falsy
    if other.fingerprint != index.fingerprint or other.run != index.run:
        raise InputError(
            f"{other.path} has vectors of {other.model_name} by {other.run}, but {index.path} of"
            f" {index.model_name} by {index.run}; compare indexes of one model."
        )
    ids = index.read(lambda state: state.ids(where))
    allowed = None if against is not None else set(ids.tolist())
    seen: set[tuple[int, int]] = set()
    began = index.id, other.id
    digests = _digests(index), _digests(other)
    looks = _Looks(index), _Looks(other)
    for start in range(0, len(ids), QUERIES_AT_ONCE):
        part = ids[start : start + QUERIES_AT_ONCE]
        for first, hits in zip(part.tolist(), _near(index, other, part, calibration), strict=True):
            for second, score in hits:
                if allowed is not None:
                    # Approximate search may find a pair from one side only.
                    pair_ids = (min(first, second), max(first, second))
                    if second == first or second not in allowed or pair_ids in seen:
                        continue
                    seen.add(pair_ids)
                    pair = _judged(*pair_ids, score, digests, looks, calibration, most)
                else:
                    pair = _judged(first, second, score, digests, looks, calibration, most)
                if pair is not None and pair.level <= most:
                    yield pair
        if (index.id, other.id) != began:
            raise InputError(f"{index.path} was replaced by another index; run the command again.")
        on_progress(start + len(part), 0)


def _near(
    index: Index, other: Index, ids: np.ndarray, calibration: Calibration
) -> list[list[tuple[int, float]]]:
    """Return the items of `other` that may be copies of each item of `index`: those that score
    more than strangers, and the first that score as little as a much edited copy may."""
    vectors = index.read(lambda state: state.vectors_of(ids))
    k, results = FIRST_HITS, {}
    open_rows = list(range(len(ids)))
    while open_rows:
        found = other.read(partial(IndexState.nearest, queries=vectors[open_rows], k=k))
        for row, each in zip(open_rows, found, strict=True):
            near = each.scores >= calibration.candidate
            near[MAX_LOOKS:] &= each.scores[MAX_LOOKS:] >= calibration.copy
            results[row] = list(
                zip(each.ids[near].tolist(), each.scores[near].tolist(), strict=True)
            )
        open_rows = [row for row in open_rows if len(results[row]) == k and k < MAX_HITS]
        k *= 4
    return [results[row] for row in range(len(ids))]


def _judged(
    first: int,
    second: int,
    score: float,
    digests: tuple[dict[int, bytes], dict[int, bytes]],
    looks: tuple[_Looks, _Looks],
    calibration: Calibration,
    most: Level,
) -> Pair | None:
    """Return the pair with its level, or None if the images have too little in common."""
    digest = digests[0].get(first)
    if digest is not None and digest == digests[1].get(second):
        return Pair(first, second, Level.SAME, score)
    if most < Level.NEAR:
        return None
    views = looks[0].get(first), looks[1].get(second)
    agreed = None
    if views[0] is not None and views[1] is not None:
        enough = SAME if score >= calibration.copy else SURELY_SAME
        agreed = agreement(views[0], views[1], enough=enough)
        if agreed >= enough:
            return Pair(first, second, Level.NEAR, score, round(agreed, 3))
    if score >= calibration.copy:
        return Pair(first, second, Level.SIMILAR, score, agreed and round(agreed, 3))
    return None


def _digests(index: Index) -> dict[int, bytes]:
    """Return the digests of bytes that `featkit sync` recorded, by the ids of items."""
    return index.read(
        lambda state: {
            file.item: file.digest
            for file in state.catalogue.known_files().values()
            if file.item is not None and file.digest is not None
        }
    )


class _Looks:
    """Thumbnails of an index, prepared; the last few thousand are kept."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._kept: OrderedDict[int, Look | None] = OrderedDict()

    def get(self, item_id: int) -> Look | None:
        """Return the look of an item; None if it has no thumbnail or was removed."""
        if item_id not in self._kept:
            jpeg = self._index.read(lambda state: state.catalogue.thumbnail(item_id))
            self._kept[item_id] = Look.of(jpeg) if jpeg else None
            if len(self._kept) > LOOKS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(item_id)
        return self._kept[item_id]
