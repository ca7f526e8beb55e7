"""The pairs of items that may be copies by their vectors, found exactly or by an index's codes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from featkit.duplicates.nearest import (
    EMPTY,
    Bounds,
    Nearest,
    Side,
    compare_by_codes,
    compare_exactly,
    expected_seconds,
    search_some,
)
from featkit.duplicates.work import Work
from featkit.index.approximate.searching import CodesSearcher
from featkit.index.state import CommittedVectors
from featkit.wording import counted, duration

WORTH_S = 60.0  # codes are used if they save more than this
TOLD_S = 10.0  # shorter comparisons begin without a word
NUM_TIMED, NUM_SAMPLED = 256, 500
ROWS_AT_ONCE = 65_536
SEED = 0

OnStep = Callable[[str], None]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Comparison:
    """The items that are compared: with each other, or with those of another index.

    searched: the vectors of the index whose items are found. is_filtered: whether only some of them
    may be.
    """

    side: Side
    other: Side | None
    searched: CommittedVectors
    is_filtered: bool
    bounds: Bounds

    @property
    def others(self) -> Side:
        """The items that are found."""
        return self.side if self.other is None else self.other

    def allowed(self) -> np.ndarray:
        """Return which ids a search by codes may find, (N,) bool."""
        if not self.is_filtered:
            return self.searched.live  # a filter makes searches by codes slower
        allowed = np.zeros(len(self.searched.live), bool)
        allowed[self.others.ids] = True
        return allowed


def candidate_pairs(
    comparison: Comparison,
    *,
    exact: bool,
    work: Work,
    on_step: OnStep,
    on_progress: OnProgress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of first and second items of all candidates, (p,) int64, in ascending order.

    Without another index, the first of a pair is the smaller one. exact: compare all vectors, even
    if the index has codes that take less time. What is done is saved in `work`, and continued.
    """
    side, others = comparison.side, comparison.others
    is_self = comparison.other is None
    nearest = Nearest(len(side), comparison.bounds)
    saved = work.read()
    if "first" in saved:
        return saved["first"], saved["second"]
    if "done" in saved:
        done, by_codes = int(saved["done"]), bool(saved["by_codes"])
        nearest.restore(saved)
        on_step(f"continuing after {counted(done, 'image')}")
    else:
        done, by_codes = 0, _codes_are_worth_it(comparison, exact=exact, on_step=on_step)
    if by_codes:
        allowed = comparison.allowed()
        steps = compare_by_codes(
            nearest,
            side,
            others,
            comparison.searched.searcher,
            allowed,
            is_self=is_self,
            first=done,
        )
    else:
        steps = compare_exactly(nearest, side, comparison.other, first=done)
    for done, share in steps:
        on_progress("images", round(share * len(side)), len(side))
        work.save_if_due(partial(_saved, nearest, done, by_codes))
    pairs = _unique(nearest, len(others), is_self=is_self)
    del nearest
    return side.ids[pairs // len(others)], others.ids[pairs % len(others)]


def _saved(nearest: Nearest, done: int, by_codes: bool) -> dict[str, np.ndarray]:
    return {
        "done": np.array(done),
        "by_codes": np.array(by_codes),
        **nearest.to_arrays(),
    }


def _unique(nearest: Nearest, num_others: int, *, is_self: bool) -> np.ndarray:
    """Return all pairs, each once and in order, as row * num_others + position, (p,) int64."""
    count = len(nearest.positions)
    pairs = np.empty(np.count_nonzero(nearest.positions != EMPTY), np.int64)
    end = 0
    for start in range(0, count, ROWS_AT_ONCE):  # in parts, since all would take much memory
        part = nearest.positions[start : start + ROWS_AT_ONCE]
        rows, places = np.nonzero(part != EMPTY)
        positions = part[rows, places].astype(np.int64)
        rows += start
        if is_self:
            rows, positions = np.minimum(rows, positions), np.maximum(rows, positions)
        pairs[end : end + len(rows)] = rows * num_others + positions
        end += len(rows)
    pairs.sort()
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = pairs[1:] != pairs[:-1]
    unique: np.ndarray = pairs[is_first]
    return unique


def _codes_are_worth_it(comparison: Comparison, *, exact: bool, on_step: OnStep) -> bool:
    """Choose how to compare from times that are measured here, and say what was chosen and why."""
    side, others = comparison.side, comparison.others
    searcher = comparison.searched.searcher
    if len(side) == 0 or len(others) == 0:
        return False
    exact_s = expected_seconds(side, comparison.other)
    has_codes = isinstance(searcher, CodesSearcher)
    if exact or not isinstance(searcher, CodesSearcher) or exact_s < WORTH_S:
        if exact_s > TOLD_S:
            reason = "" if exact or has_codes else "; `featkit compact` would make it faster"
            on_step(
                f"comparing {counted(len(side), 'image')} exactly, in about"
                f" {duration(exact_s)}{reason}"
            )
        return False
    codes_s = _expected_by_codes(comparison)
    if codes_s > exact_s - WORTH_S:
        on_step(f"comparing exactly, in about {duration(exact_s)}, which is as fast as by codes")
        return False
    recall, num_pairs = measured_recall(comparison)
    on_step(
        f"comparing by {searcher.generation.record.kind.about}, in about {duration(codes_s)}; of"
        f" {counted(num_pairs, 'candidate')} of sampled images it finds {recall:.1%}. With --exact,"
        f" all are compared, in about {duration(exact_s)}"
    )
    return True


def _expected_by_codes(comparison: Comparison) -> float:
    """Return how long comparing by codes would take, from a few images."""
    side = comparison.side
    sample = _sample(len(side), 2 * NUM_TIMED)
    seconds = 0.0
    for chosen in (sample[::2], sample[1::2]):  # the first time warms up
        nearest = Nearest(len(chosen), comparison.bounds)
        started = time.perf_counter()
        _search_sampled(nearest, chosen, comparison)
        seconds = (time.perf_counter() - started) / max(1, len(chosen))
    return seconds * len(side)


def measured_recall(comparison: Comparison) -> tuple[float, int]:
    """Return the share of the exact candidates of a sample that codes find, and their number.

    Those that score as copies do, or all if there are none. An image's own search has to find
    them; a pair can also be found by the search of the other image.
    """
    side, bounds = comparison.side, comparison.bounds
    chosen = _sample(len(side), NUM_SAMPLED)
    with_itself = Bounds(bounds.candidate, bounds.copy, bounds.few + 1, bounds.most + 1)
    truth, found = Nearest(len(chosen), with_itself), Nearest(len(chosen), with_itself)
    for _ in compare_exactly(truth, Side(side.rows, side.ids[chosen]), comparison.others):
        pass
    _search_sampled(found, chosen, comparison, is_self=False)
    pairs = [_pairs_of(each, chosen, is_self=comparison.other is None) for each in (truth, found)]
    copies = {pair for pair, score in pairs[0].items() if score >= bounds.copy}
    wanted = copies or {*pairs[0]}
    return len(wanted & {*pairs[1]}) / max(1, len(wanted)), len(wanted)


def _search_sampled(
    nearest: Nearest, chosen: np.ndarray, comparison: Comparison, *, is_self: bool | None = None
) -> None:
    search_some(
        nearest,
        chosen,
        comparison.side,
        comparison.others,
        comparison.searched.searcher,
        comparison.allowed(),
        is_self=comparison.other is None if is_self is None else is_self,
        rows=np.arange(len(chosen)),
    )


def _pairs_of(
    nearest: Nearest, chosen: np.ndarray, *, is_self: bool
) -> dict[tuple[int, int], float]:
    """Return the scores of the pairs, but for those of an image with itself."""
    rows, positions = nearest.pairs()
    scores = nearest.scores[nearest.positions != EMPTY]
    return {
        (row, position): score
        for row, position, score in zip(
            rows.tolist(), positions.tolist(), scores.tolist(), strict=True
        )
        if not (is_self and chosen[row] == position)
    }


def _sample(count: int, most: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    return np.sort(rng.choice(count, min(count, most), replace=False))
