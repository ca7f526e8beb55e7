"""Search by codes if that costs less than scanning, and exactly otherwise.

    N rows, n of them with codes, Q queries, k hits

Rows without codes (added later, or left out to measure by) are always scanned. With a filter, few
allowed rows are scanned without the codes, which costs less and is exact. If the codes yield
fewer than min(k, allowed) hits, the query is answered exactly.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featkit.index.approximate.codes import LISTS
from featkit.index.approximate.generation import OpenGeneration
from featkit.index.exact import SPARE, exact_search
from featkit.index.ranking import rank, rounding
from featkit.index.scanning import scan
from featkit.index.searcher import Neighbors, Rows
from featkit.index.some_rows import ArrayRows, ChosenRows

MAX_VIEWS = 16  # filters whose bitmaps are kept
# If at least this share is allowed, such as all but removed rows, the nearest of all are looked at.
MOST_SHARE = 0.5
# Else a query is far if, of its nearest rows without the filter, less than this part of the share
# that the filter allows on the whole is allowed.
NUM_NEAR, NEAR_SHARE = 64, 0.5
# For far queries, this many nearest rows are looked at. If k of the nearer half are allowed, they
# are the answer; else a scan gives it.
BREADTHS = (512, 2048)
FAR_CANDIDATES = 4  # times as many as of near rows are ranked
WALK_POWER = 0.7  # a walk's time grows by its effort to this power
# Finding allowed rows takes more effort the fewer they are: by s to this power for a share s, if
# they are spread at random.
EFFORT_POWER = -0.77
MAX_EFFORT = 4096
MAX_HITS = 1000  # more are found by scanning
QUERIES_AT_ONCE = 1024
MAX_OUTSIDE_BYTES = 32 * 2**20  # of rows without codes, kept for each filter


@dataclass(frozen=True)
class _View:
    """The rows that a filter allows: positions among the codes as a bitmap, or None for all of
    them, and rows without codes. allowed: the filter, kept so that its id is not reused.

    outside_rows: those rows, (n, D) float32, if they are few.
    """

    allowed: np.ndarray
    num_allowed: int
    share: float  # of the rows with codes
    bits: np.ndarray | None
    outside: np.ndarray
    outside_rows: np.ndarray | None


class CodesSearcher:
    """The index type of indexes with a generation. Thread-safe."""

    def __init__(self, generation: OpenGeneration) -> None:
        self.generation = generation
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._lock = threading.Lock()

    def search(
        self, queries: np.ndarray, rows: Rows, *, k: int, allowed: np.ndarray
    ) -> list[Neighbors]:
        """Return about the nearest allowed rows for each query, by exact score, then smaller id."""
        found: list[Neighbors] = []
        ids = self.generation.ids
        if len(ids) and ids[-1] >= len(allowed):  # of another state of this index, since restored
            return exact_search(queries, rows, k=k, allowed=allowed)
        view = self._view(allowed, rows)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            found += self._search(queries[start : start + QUERIES_AT_ONCE], rows, k=k, view=view)
        return found

    def _search(self, queries: np.ndarray, rows: Rows, *, k: int, view: _View) -> list[Neighbors]:
        num_inside = view.num_allowed - len(view.outside)
        record = self.generation.record
        num_candidates = max(record.num_candidates, 2 * k)
        # More hits, and fewer allowed rows, take more effort.
        more = (
            num_candidates / record.num_candidates * view.share**EFFORT_POWER if num_inside else 0
        )
        if k > MAX_HITS or self._scanning_costs_less(num_inside, more):
            return exact_search(queries, rows, k=k, allowed=view.allowed)
        effort = min(MAX_EFFORT, round(record.effort * more))
        found: list[Neighbors | None] = [None] * len(queries)

        def put(numbers: list[int], answers: Sequence[Neighbors | None]) -> list[int]:
            """Keep answers of k hits, or of all that are allowed; return who has none."""
            wanted = min(k, view.num_allowed)
            for i, each in zip(numbers, answers, strict=True):
                found[i] = each if each is not None and len(each.ids) == wanted else None
            return [i for i in numbers if found[i] is None]

        left: list[int] = []
        if view.bits is not None and view.share >= MOST_SHARE and record.kind is not LISTS:
            breadth = max(effort, 2 * num_candidates)
            wide = self._widely(queries, rows, num_candidates, k=k, view=view, breadth=breadth)
            far = put(list(range(len(queries))), wide)
        else:
            is_far = self._far_from(queries, view)
            left, far = np.flatnonzero(~is_far).tolist(), np.flatnonzero(is_far).tolist()
            near = self._nearly(queries[left], rows, num_candidates, k=k, view=view, effort=effort)
            left = put(left, near)
        # Far rows score more alike than codes resolve.
        many = FAR_CANDIDATES * num_candidates
        for breadth in BREADTHS:
            if far and self._walk_costs_less(breadth, num_inside):
                wide = self._widely(queries[far], rows, many, k=k, view=view, breadth=breadth)
                far = put(far, wide)
        left += far
        put(left, exact_search(queries[left], rows, k=k, allowed=view.allowed))
        return [each for each in found if each is not None]

    def _nearly(
        self,
        queries: np.ndarray,
        rows: Rows,
        num_candidates: int,
        *,
        k: int,
        view: _View,
        effort: int,
    ) -> list[Neighbors]:
        """Answer queries by the nearest codes of allowed rows."""
        if len(queries) == 0:
            return []
        positions = self.generation.codes.search(
            queries,
            num_candidates=min(num_candidates, len(self.generation.ids)),
            effort=effort,
            bits=view.bits,
        )
        found = ranked(queries, rows, self.generation.ids, positions, k=k)
        return self._with_outside(queries, rows, found, k=k, view=view)

    def _widely(
        self,
        queries: np.ndarray,
        rows: Rows,
        num_candidates: int,
        *,
        k: int,
        view: _View,
        breadth: int,
    ) -> list[Neighbors | None]:
        """Answer queries by the allowed ones among the nearest codes of all rows.

        None for a query if fewer than k of the nearer half are allowed: others may be missing.
        """
        ids = self.generation.ids
        near = self.generation.codes.search(queries, num_candidates=breadth, effort=breadth)
        is_allowed = view.allowed[ids[near]] & (near >= 0)
        enough = np.count_nonzero(is_allowed[:, : breadth // 2], axis=1) >= k
        order = np.argsort(~is_allowed, axis=1, kind="stable")[:, :num_candidates]
        positions = np.where(
            np.take_along_axis(is_allowed, order, 1), np.take_along_axis(near, order, 1), -1
        )
        found = self._with_outside(
            queries, rows, ranked(queries, rows, ids, positions, k=k), k=k, view=view
        )
        return [each if sure else None for each, sure in zip(found, enough.tolist(), strict=True)]

    def _far_from(self, queries: np.ndarray, view: _View) -> np.ndarray:
        """Return for which queries few of the nearest rows are allowed, (Q,) bool.

        There a graph gives allowed rows that it passes on its way to forbidden ones.
        """
        if view.bits is None:
            return np.zeros(len(queries), bool)
        near = self.generation.codes.search(
            queries, num_candidates=NUM_NEAR, effort=self.generation.record.effort
        )
        is_allowed = view.allowed[self.generation.ids[near]] & (near >= 0)
        share: np.ndarray = is_allowed.mean(axis=1)
        return share < NEAR_SHARE * view.share

    def _with_outside(
        self, queries: np.ndarray, rows: Rows, found: list[Neighbors], *, k: int, view: _View
    ) -> list[Neighbors]:
        """Return the k best of what was found and of the rows without codes."""
        if len(view.outside) == 0:
            return found
        least = np.array([each.scores[-1] if len(each.ids) == k else -np.inf for each in found])
        outside = self._outside(queries, rows, least.astype(np.float32), k=k, view=view)
        counts = np.count_nonzero(outside >= 0, axis=1)
        numbers = np.flatnonzero(counts)
        if len(numbers) == 0:
            return found
        width = int(counts.max())
        ids = np.full((len(numbers), k + width), -1, np.int64)
        scores = np.full((len(numbers), k + width), -np.inf, np.float32)
        ids[:, k:], scores[:, k:] = rank(queries[numbers], rows, outside[numbers, :width])
        for i, row in enumerate(numbers.tolist()):
            count = len(found[row].ids)
            ids[i, :count], scores[i, :count] = found[row].ids, found[row].scores
        order = np.lexsort((ids, -scores), axis=1)[:, :k]
        better = neighbors(*(np.take_along_axis(each, order, 1) for each in (ids, scores)))
        merged = dict(enumerate(found))
        merged.update(zip(numbers.tolist(), better, strict=True))
        return list(merged.values())

    def _outside(
        self, queries: np.ndarray, rows: Rows, least: np.ndarray, *, k: int, view: _View
    ) -> np.ndarray:
        """Return the rows without codes that may be among the k nearest of each query, (Q, R).

        least: the score that they must reach, (Q,). They come first in a row; -1 fills up.
        """
        chosen: Rows = (
            ChosenRows(rows, view.outside)
            if view.outside_rows is None
            else ArrayRows(view.outside_rows)
        )
        num = min(k + SPARE, len(view.outside))
        everything = np.ones(len(view.outside), bool)
        bits = np.packbits(everything, bitorder="little")
        scores, positions = scan(queries, chosen, k=num, bits=bits)
        margin = rounding(rows.width)
        candidates = np.where(scores >= least[:, None] - margin, view.outside[positions], -1)
        if num < len(view.outside):
            # More than those may score as much as the k-th.
            is_tied = scores[:, -1] >= np.maximum(least, scores[:, k - 1]) - margin
            tied = np.flatnonzero(is_tied)
            settled = exact_search(queries[tied], chosen, k=k, allowed=everything)
            for i, each in zip(tied.tolist(), settled, strict=True):
                candidates[i] = -1
                candidates[i, :k] = view.outside[each.ids]
        return candidates

    def _scanning_costs_less(self, num_inside: int, more: float) -> bool:
        measured = self.generation.record.measured
        return num_inside * measured.exact_ns / 1e6 <= measured.p50_ms * more

    def _walk_costs_less(self, breadth: int, num_inside: int) -> bool:
        record = self.generation.record
        walk_ms = record.measured.p50_ms * (breadth / record.effort) ** WALK_POWER
        return record.kind is not LISTS and walk_ms < num_inside * record.measured.exact_ns / 1e6

    def _view(self, allowed: np.ndarray, rows: Rows) -> _View:
        """Return what a filter allows; the same array is a filter that was seen before."""
        with self._lock:
            view = self._views.get(id(allowed))
            if view is not None and view.allowed is allowed:
                self._views.move_to_end(id(allowed))
                return view
        inside = allowed[self.generation.ids]
        is_outside = allowed.copy()
        is_outside[self.generation.ids] = False
        outside = np.flatnonzero(is_outside)
        num_inside = int(np.count_nonzero(inside))
        are_few = len(outside) * rows.width * 4 <= MAX_OUTSIDE_BYTES
        view = _View(
            allowed=allowed,
            num_allowed=int(np.count_nonzero(allowed)),
            share=num_inside / len(inside) if len(inside) else 0.0,
            bits=None if inside.all() else np.packbits(inside, bitorder="little"),
            outside=outside,
            outside_rows=np.concatenate(
                [np.zeros((0, rows.width), np.float32), *(b for _, b in rows.blocks_of(outside))]
            )
            if are_few
            else None,
        )
        with self._lock:
            self._views[id(allowed)] = view
            while len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
        return view


def ranked(
    queries: np.ndarray, rows: Rows, coded_ids: np.ndarray, positions: np.ndarray, *, k: int
) -> list[Neighbors]:
    """Return the k best candidates of each query by exact score, then smaller id.

    positions: (Q, R) among the codes, -1 for none.
    """
    ids = np.where(positions >= 0, coded_ids[positions], -1)
    return neighbors(*rank(queries, rows, ids, k=k))


def neighbors(ids: np.ndarray, scores: np.ndarray) -> list[Neighbors]:
    """Return ranked candidates (Q, R), of which -1 stands for a missing one, as hits."""
    counts = np.count_nonzero(ids >= 0, axis=1).tolist()
    return [
        Neighbors(ids[i, :count], scores[i, :count], is_exact=False)
        for i, count in enumerate(counts)
    ]
