"""Measure the recall of codes, and choose how to search them.

    Q queries, k = 10 hits

The queries are rows that were left out: rows that have codes would find their own neighbors more
easily. The truth is exact search over the rows that have codes. A hit counts if its score is
at least that of the true k-th, so that equal scores do not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from featkit.index.approximate.codes import LISTS, Codes, Kind
from featkit.index.approximate.generation import Measured
from featkit.index.approximate.searching import ranked
from featkit.index.exact import exact_search
from featkit.index.searcher import Neighbors, Rows
from featkit.index.some_rows import ChosenRows

K = 10
NUM_TIMED = 200  # single queries
NUM_ROUNDS = 3  # that choose the fastest of what reaches a recall
NUM_SCANNED = 2000  # rows of the scan whose time is measured


@dataclass(frozen=True)
class Truth:
    """Queries (Q, D) float32, and the exact nearest rows of each."""

    queries: np.ndarray
    nearest: list[Neighbors]


def truth_of(rows: Rows, ids: np.ndarray, queries: np.ndarray) -> Truth:
    """Return the truth for queries among the rows with these ids."""
    allowed = np.zeros(rows.num_rows, bool)
    allowed[ids] = True
    return Truth(queries, exact_search(queries, rows, k=K, allowed=allowed))


def search(
    codes: Codes,
    ids: np.ndarray,
    rows: Rows,
    queries: np.ndarray,
    *,
    effort: int,
    num_candidates: int,
) -> list[Neighbors]:
    """Search codes as CodesSearcher does, without a filter."""
    positions = codes.search(queries, num_candidates=num_candidates, effort=effort)
    return ranked(queries, rows, ids, positions, k=K)


def recalls(found: list[Neighbors], truth: Truth, *, k: int) -> np.ndarray:
    """Return the recall@k of each query, (Q,) float64."""
    shares = []
    for each, true in zip(found, truth.nearest, strict=True):
        wanted = min(k, len(true.scores))
        least = true.scores[wanted - 1] if wanted else 0.0
        shares.append(np.count_nonzero(each.scores[:k] >= least) / max(1, wanted))
    return np.minimum(np.array(shares, np.float64), 1.0)


def lower_end(shares: np.ndarray) -> float:
    """Return the lower end of the 95 % interval of a mean over queries (normal approximation)."""
    if len(shares) < 2:
        return 0.0
    return float(shares.mean() - 1.96 * shares.std(ddof=1) / np.sqrt(len(shares)))


def tune(
    codes: Codes,
    kind: Kind,
    ids: np.ndarray,
    rows: Rows,
    truth: Truth,
    *,
    target: float,
    on_step: Callable[[str], None] = lambda _step: None,
) -> tuple[int, int, Measured]:
    """Return the effort, the number of candidates, and how the codes answer with them.

    They are the fastest whose recall@10 is at least the target by the lower end of its interval;
    the best by recall if none is.
    """
    tried: list[tuple[float, int, int]] = []  # lower end, effort, candidates
    for num_candidates in kind.candidates:
        # A graph's walk keeps all candidates anyway.
        least = 0 if kind is LISTS else num_candidates
        for effort in sorted({max(least, each) for each in kind.efforts}):
            found = search(
                codes, ids, rows, truth.queries, effort=effort, num_candidates=num_candidates
            )
            low = lower_end(recalls(found, truth, k=K))
            tried.append((low, effort, num_candidates))
            on_step(f"effort {effort}, {num_candidates} candidates: recall@10 at least {low:.4f}")
            if low >= target:
                break
    reaching = [each for each in tried if each[0] >= target] or [max(tried)]
    seconds = {each: float("inf") for each in reaching}
    for _ in range(NUM_ROUNDS if len(reaching) > 1 else 0):  # in turn: other work may disturb one
        for each in reaching:
            _, effort, num_candidates = each
            work = partial(
                search,
                codes,
                ids,
                rows,
                truth.queries,
                effort=effort,
                num_candidates=num_candidates,
            )
            seconds[each] = min(seconds[each], _seconds(work))
    _, effort, num_candidates = min(reaching, key=lambda each: seconds[each])
    return effort, num_candidates, measure(codes, ids, rows, truth, effort, num_candidates)


def measure(
    codes: Codes, ids: np.ndarray, rows: Rows, truth: Truth, effort: int, num_candidates: int
) -> Measured:
    """Measure recall and times."""
    started = time.perf_counter()
    found = search(codes, ids, rows, truth.queries, effort=effort, num_candidates=num_candidates)
    seconds = time.perf_counter() - started
    single = sorted(
        _seconds(
            partial(
                search, codes, ids, rows, query[None], effort=effort, num_candidates=num_candidates
            )
        )
        for query in truth.queries[:NUM_TIMED]
    )
    at_10 = recalls(found, truth, k=K)
    few = np.sort(np.random.default_rng(0).choice(ids, min(NUM_SCANNED, len(ids)), replace=False))
    chosen, allowed = ChosenRows(rows, few), np.ones(len(few), bool)
    scan = min(
        _seconds(partial(exact_search, query[None], chosen, k=K, allowed=allowed))
        for query in truth.queries[:5]
    )
    return Measured(
        num_queries=len(found),
        recall_at_1=round(float(recalls(found, truth, k=1).mean()), 4),
        recall_at_10=round(float(at_10.mean()), 4),
        low=round(lower_end(at_10), 4),
        p50_ms=round(1000 * single[len(single) // 2], 3),
        p99_ms=round(1000 * single[int(0.99 * (len(single) - 1))], 3),
        queries_per_s=round(len(found) / seconds, 1),
        exact_ns=round(1e9 * scan / max(1, len(few)), 1),
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
