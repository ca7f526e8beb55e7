"""Search by a graph where that pays, exactly where it does not.

    N rows, n of them in the graph, Q queries, k hits

Rows that are not in the graph (added later, or left out to measure by) are always scanned. With a
filter, few allowed rows are scanned without the graph, which costs less and is exact. If the graph
yields fewer than min(k, allowed) hits, the query is answered exactly.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from featkit.index.approximate.generation import OpenGeneration
from featkit.index.exact import ChosenRows, exact_search, rank
from featkit.index.searcher import Neighbors, Rows

MAX_VIEWS = 16  # filters whose bitmaps are kept
# Walking the graph for allowed rows needs more candidates the fewer they are: by s to this power
# for a share s (measured, random filters).
EF_POWER = -0.77
MAX_EF = 4096


@dataclass(frozen=True)
class _View:
    """The rows that a filter allows: positions of the graph as a bitmap, or None for all of them,
    and rows that are not in the graph. allowed: the filter, kept so that its id is not reused."""

    allowed: np.ndarray
    num_allowed: int
    share: float  # of the graph's rows
    bits: np.ndarray | None
    outside: np.ndarray


class GraphSearcher:
    """The index type of indexes with a generation. Thread-safe."""

    def __init__(self, generation: OpenGeneration) -> None:
        self.generation = generation
        self._views: OrderedDict[int, _View] = OrderedDict()
        self._lock = threading.Lock()

    def search(
        self, queries: np.ndarray, rows: Rows, *, k: int, allowed: np.ndarray
    ) -> list[Neighbors]:
        """Return about the nearest allowed rows for each query, by exact score, then smaller id."""
        view = self._view(allowed)
        record = self.generation.record
        num_inside = view.num_allowed - len(view.outside)
        ef = min(MAX_EF, round(record.ef * view.share**EF_POWER)) if view.share else MAX_EF
        if self._scanning_costs_less(num_inside, view.share) or k > ef:
            return exact_search(queries, rows, k=k, allowed=allowed)
        num_candidates = min(max(record.num_candidates, 2 * k), len(self.generation.ids))
        positions = self.generation.graph.search(
            queries, num_candidates=num_candidates, ef=ef, bits=view.bits
        )
        others = exact_search(
            queries, ChosenRows(rows, view.outside), k=k, allowed=np.ones(len(view.outside), bool)
        )
        found = [
            self._merged(query, rows, each[each >= 0], view.outside[other.ids], k=k)
            for query, each, other in zip(queries, positions, others, strict=True)
        ]
        short = [i for i, each in enumerate(found) if len(each.ids) < min(k, view.num_allowed)]
        if short:
            exact = exact_search(queries[short], rows, k=k, allowed=allowed)
            for i, each in zip(short, exact, strict=True):
                found[i] = each
        return found

    def _merged(
        self, query: np.ndarray, rows: Rows, positions: np.ndarray, others: np.ndarray, *, k: int
    ) -> Neighbors:
        ids = np.concatenate([self.generation.ids[positions], others])
        ranked = rank(query, rows, ids)
        return Neighbors(ranked.ids[:k], ranked.scores[:k], is_exact=False)

    def _scanning_costs_less(self, num_inside: int, share: float) -> bool:
        measured = self.generation.record.measured
        scan_ms = num_inside * measured.exact_ns / 1e6
        return num_inside == 0 or scan_ms <= measured.p50_ms * share**EF_POWER

    def _view(self, allowed: np.ndarray) -> _View:
        """Return what a filter allows; the same array is a filter that was seen before."""
        with self._lock:
            view = self._views.get(id(allowed))
            if view is not None and view.allowed is allowed:
                self._views.move_to_end(id(allowed))
                return view
        inside = allowed[self.generation.ids]
        outside = allowed.copy()
        outside[self.generation.ids] = False
        num_inside = int(np.count_nonzero(inside))
        view = _View(
            allowed=allowed,
            num_allowed=int(np.count_nonzero(allowed)),
            share=num_inside / len(inside) if len(inside) else 0.0,
            bits=None if inside.all() else np.packbits(inside, bitorder="little"),
            outside=np.flatnonzero(outside),
        )
        with self._lock:
            self._views[id(allowed)] = view
            while len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
        return view
