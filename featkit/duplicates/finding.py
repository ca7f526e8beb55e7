"""Find the pairs of images that are the same, near copies, or similar.

1. Images with the same bytes are known by their digests; one of them stands for all from here on.
2. The vectors give candidates: exactly, or by the codes of the index if that saves much time
   (nearest.py, candidates.py).
3. Each candidate is looked at (judging.py).

Memory is bounded whatever the size of the index, and a stopped comparison continues (work.py).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from featkit.duplicates.candidates import Comparison, OnProgress, OnStep, candidate_pairs
from featkit.duplicates.judging import Judge, Level, Pair
from featkit.duplicates.look import LOOK_VERSION
from featkit.duplicates.nearest import Bounds, Side
from featkit.duplicates.ordering import nearby_order
from featkit.duplicates.work import Work
from featkit.errors import InputError, Interrupted
from featkit.index import Index
from featkit.index.meaning import Calibration
from featkit.index.state import CommittedVectors, IndexState
from featkit.index.stored_rows import FileRows

# Images that score less than strangers do are looked at if they are among the first.
MAX_LOOKS = 8
# Of one image, copies beyond these are found through each other; the fewer, the larger the index.
FEWEST_KEPT, MOST_KEPT, KEPT_IN_ALL = 16, 256, 16_000_000
HELD_BYTES = 64 * 2**20  # vectors of small indexes, kept in memory
VERSION = 1  # of the work file


@dataclass(frozen=True)
class _Snapshot:
    """The vectors of an index at one time, and the items that are compared."""

    index: Index
    vectors: CommittedVectors
    side: Side
    digest_ids: np.ndarray  # (n,) int64, ascending
    digests: np.ndarray  # (n,) bytes

    @classmethod
    def of(cls, index: Index, where: str | None) -> _Snapshot:
        """Take one of an open index."""

        def take(state: IndexState) -> _Snapshot:
            held = state.vectors.rows
            rows = FileRows(held.file, held.num_rows, row_map=held.row_map, most_held=HELD_BYTES)
            ids = state.ids(where)
            kind = np.dtype([("id", np.int64), ("digest", "S16")])
            table = np.fromiter(state.catalogue.item_digests(), kind)
            table = table[np.isin(table["id"], ids)]
            table = table[np.argsort(table["id"])]
            return cls(index, state.vectors, Side(rows, ids), table["id"], table["digest"])

        return index.read(take)

    def without(self, ids: np.ndarray) -> _Snapshot:
        """Return the snapshot without some of the items to compare."""
        side = Side(self.side.rows, np.setdiff1d(self.side.ids, ids))
        return _Snapshot(self.index, self.vectors, side, self.digest_ids, self.digests)

    def content(self) -> list[object]:
        """Return what identifies the index and the items to compare."""
        ids = self.side.ids
        some = self.side.rows.take(ids[:: max(1, len(ids) // 100)])
        return [self.vectors.key.index_id, zlib.crc32(ids.tobytes()), zlib.crc32(some.tobytes())]


def find_pairs(
    index: Index,
    calibration: Calibration,
    *,
    where: str | None = None,
    most: Level = Level.NEAR,
    against: Index | None = None,
    exact: bool = False,
) -> list[Pair]:
    """Return the pairs of an index's items up to a level, or of its items with those of another.

    Arguments and errors are those of `finding_pairs`.
    """
    with finding_pairs(
        index, calibration, where=where, most=most, against=against, exact=exact
    ) as pairs:
        return pairs


@contextmanager
def finding_pairs(
    index: Index,
    calibration: Calibration,
    *,
    where: str | None = None,
    most: Level = Level.NEAR,
    against: Index | None = None,
    exact: bool = False,
    on_step: OnStep = lambda _step: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> Iterator[list[Pair]]:
    """Find the pairs of an index's items up to a level, or of its items with those of another.

    The block gets the pairs, by first and second item. Of items with the same bytes, the first is
    paired with each other one, and the others are in no further pair, unless two indexes are
    compared. What was found is kept until the block ends without an error.

    where: only items of `index` that match a filter. exact: compare all vectors, even if the index
    has codes that take less time. on_step: called with what is done, in words. on_progress: called
    with the unit of what is counted, the count, and the total.

    InputError if `against` is of another model, or if an index is replaced meanwhile; FilterError
    for a wrong filter; Interrupted on Ctrl-C. The indexes may be written meanwhile: items that are
    added are not compared, and items that are removed are not in the result.
    """
    other = index if against is None else against  # an empty index is falsy
    if other.fingerprint != index.fingerprint or other.run != index.run:
        raise InputError(
            f"{other.path} has vectors of {other.model_name} by {other.run}, but {index.path} of"
            f" {index.model_name} by {index.run}; compare indexes of one model."
        )
    own = _Snapshot.of(index, where)
    theirs = None if against is None else _Snapshot.of(against, None)
    pairs = _same_bytes(own) if theirs is None else _same_bytes_in_both(own, theirs)
    if most < Level.NEAR:
        yield pairs
        return
    if theirs is None:
        own = own.without(np.array([pair.second for pair in pairs], np.int64))
    comparison = Comparison(
        side=own.side,
        other=None if theirs is None else theirs.side,
        searched=(theirs or own).vectors,
        is_filtered=where is not None and theirs is None,
        bounds=_bounds(calibration, len(own.side)),
    )
    judge = Judge(index, other, calibration, most)
    work = Work(index.path, _name(own, theirs, calibration, most, exact), on_problem=on_step)
    try:
        first, second = candidate_pairs(
            comparison, exact=exact, work=work, on_step=on_step, on_progress=on_progress
        )
        known = {(pair.first, pair.second) for pair in pairs}
        pairs = pairs + _judged(judge, comparison, first, second, known, work, on_progress)
    except KeyboardInterrupt:
        raise Interrupted(
            "Stopped by Ctrl-C; the same command continues, unless the index changes."
        ) from None
    for snapshot in filter(None, (own, theirs)):
        if snapshot.index.id != snapshot.vectors.key.index_id:
            raise InputError(
                f"{snapshot.index.path} was replaced by another index; run the command again."
            )
    yield sorted(pairs)
    work.remove()


def _bounds(calibration: Calibration, count: int) -> Bounds:
    most = min(MOST_KEPT, max(FEWEST_KEPT, KEPT_IN_ALL // max(1, count)))
    return Bounds(calibration.candidate, calibration.copy, few=MAX_LOOKS, most=most)


def _name(
    own: _Snapshot,
    theirs: _Snapshot | None,
    calibration: Calibration,
    most: Level,
    exact: bool,
) -> str:
    """Return what distinguishes this comparison from others, as 16 hexadecimal digits."""
    content = own.content() + ([] if theirs is None else theirs.content())
    text = json.dumps([VERSION, LOOK_VERSION, content, asdict(calibration), most, exact])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _judged(
    judge: Judge,
    comparison: Comparison,
    first: np.ndarray,
    second: np.ndarray,
    known: set[tuple[int, int]],
    work: Work,
    on_progress: OnProgress,
) -> list[Pair]:
    """Judge all candidates but those that are known, from where the work was stopped."""
    saved = work.read()
    if "judged" in saved:  # first and second are in the order of before
        start, pairs = int(saved["judged"]), _from_array(saved["found"])
    else:
        order = nearby_order(comparison.side, comparison.others, first, second)
        start, pairs, first, second = 0, [], first[order], second[order]

    def state() -> dict[str, np.ndarray]:
        return {
            "first": first,
            "second": second,
            "judged": np.array(start + done),
            "found": _to_array(pairs),
        }

    done = 0
    for done, judged in judge.judge(first[start:], second[start:]):
        pairs += (pair for pair in judged if (pair.first, pair.second) not in known)
        on_progress("pairs", start + done, len(first))
        work.save_if_due(state)
    work.save_if_long(state)
    return pairs


PAIR_FIELDS = np.dtype(
    [
        ("first", np.int64),
        ("second", np.int64),
        ("level", np.int64),
        ("score", np.float64),
        ("agreement", np.float64),  # NaN for None
    ]
)


def _to_array(pairs: Sequence[Pair]) -> np.ndarray:
    rows = [
        (*row[:4], np.nan if row[4] is None else row[4])
        for row in ((p.first, p.second, p.level, p.score, p.agreement) for p in pairs)
    ]
    return np.array(rows, PAIR_FIELDS)


def _from_array(rows: np.ndarray) -> list[Pair]:
    return [
        Pair(first, second, Level(level), score, None if np.isnan(agreed) else agreed)
        for first, second, level, score, agreed in rows.tolist()
    ]


# The same bytes -----------------------------------------------------------------------------------


def _same_bytes(own: _Snapshot) -> list[Pair]:
    """Pair the first item with each digest with the others that have it."""
    order = np.lexsort((own.digest_ids, own.digests))
    ids, digests = own.digest_ids[order], own.digests[order]
    if len(ids) == 0:
        return []
    is_first = np.concatenate([[True], digests[1:] != digests[:-1]])
    firsts = ids[np.maximum.accumulate(np.where(is_first, np.arange(len(ids)), 0))]
    return [
        Pair(first, second, Level.SAME, 1.0)
        for first, second in zip(firsts[~is_first].tolist(), ids[~is_first].tolist(), strict=True)
    ]


def _same_bytes_in_both(own: _Snapshot, theirs: _Snapshot) -> list[Pair]:
    """Pair each item with the first few of the other index that have the same digest."""
    by_digest: dict[bytes, list[int]] = {}
    shared = np.isin(theirs.digests, own.digests)
    for item, digest in zip(
        theirs.digest_ids[shared].tolist(), theirs.digests[shared].tolist(), strict=True
    ):
        by_digest.setdefault(digest, []).append(item)
    return [
        Pair(first, second, Level.SAME, 1.0)
        for first, digest in zip(own.digest_ids.tolist(), own.digests.tolist(), strict=True)
        for second in by_digest.get(digest, ())[:FEWEST_KEPT]
    ]
