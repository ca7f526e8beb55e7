"""The nearest of many vectors to each of many vectors, in bounded memory: exactly, or by codes.

    n vectors, m others (the same ones if an index is compared with itself), k nearest, D width

Exact comparison multiplies tiles of vectors in float32. If vectors are compared with themselves,
each product serves both sides. The comparison proceeds in panels; between two of them the state is
complete, so that it can be saved and continued.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featkit.index.searcher import Neighbors, Rows, Searcher

PANEL, TILE = 8192, 2048  # vectors; their product takes 64 MB
SLICE = 512  # vectors of a panel whose hits are collected at once
QUERIES_AT_ONCE = 1024
FIRST_HITS, MAX_HITS = 16, 1000  # of a search by codes
EMPTY = -1


@dataclass(frozen=True)
class Bounds:
    """Which of a vector's neighbors are kept.

    Those that score at least `copy`, and the first `few` that score at least `candidate`, but at
    most `most` in all.
    """

    candidate: float
    copy: float
    few: int
    most: int


@dataclass(frozen=True)
class Side:
    """The vectors of some items of one index: row i is that of item ids[i]; ids ascend."""

    rows: Rows
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors of a range of positions, (n, D) float32."""
        return self.rows.take(self.ids[start:stop])


class Nearest:
    """The neighbors found so far of n vectors: positions (n, k) int32 and scores (n, k) float32,
    best first, filled up with -1 and -inf.

    least: (n,) float32, the score that a further neighbor must exceed.
    """

    def __init__(self, count: int, bounds: Bounds) -> None:
        self.bounds = bounds
        self.positions = np.full((count, bounds.most), EMPTY, np.int32)
        self.scores = np.full((count, bounds.most), -np.inf, np.float32)
        below = np.nextafter(np.float32(bounds.candidate), np.float32(-np.inf))
        self.least = np.full(count, below, np.float32)

    def add(self, rows: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> None:
        """Add neighbors: scores[i] is that of vector rows[i] with the other at positions[i].

        A pair is added once. Of equal scores the ones added first are kept.
        """
        if len(rows) == 0:
            return
        changed = np.unique(rows)
        old = self.positions[changed]
        is_kept = old != EMPTY
        owners = np.concatenate([np.repeat(changed, is_kept.sum(axis=1)), rows])
        all_positions = np.concatenate([old[is_kept], positions.astype(np.int32)])
        all_scores = np.concatenate([self.scores[changed][is_kept], scores])
        order = np.lexsort((all_positions, -all_scores, owners))
        owners, all_positions, all_scores = owners[order], all_positions[order], all_scores[order]
        place = np.arange(len(owners)) - np.searchsorted(owners, owners)
        bounds = self.bounds
        keep = (place < bounds.most) & ((place < bounds.few) | (all_scores >= bounds.copy))
        owners, place = owners[keep], place[keep]
        self.positions[changed], self.scores[changed] = EMPTY, -np.inf
        self.positions[owners, place] = all_positions[keep]
        self.scores[owners, place] = all_scores[keep]
        enough = np.minimum(self.scores[changed, bounds.few - 1], np.float32(bounds.copy))
        self.least[changed] = np.maximum.reduce(
            [self.least[changed], _below(enough, bounds), self.scores[changed, -1]]
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what `restore` takes."""
        is_kept = self.positions != EMPTY
        return {
            "counts": is_kept.sum(axis=1, dtype=np.int32),
            "positions": self.positions[is_kept],
            "scores": self.scores[is_kept],
            "least": self.least,
        }

    def restore(self, saved: dict[str, np.ndarray]) -> None:
        """Take over a saved state."""
        is_kept = np.arange(self.bounds.most) < saved["counts"][:, None]
        self.positions[is_kept], self.scores[is_kept] = saved["positions"], saved["scores"]
        self.least = saved["least"]

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all pairs found: rows (p,) and positions (p,) int64."""
        rows, places = np.nonzero(self.positions != EMPTY)
        return rows, self.positions[rows, places].astype(np.int64)


def _below(enough: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the score to exceed where the first few are known: theirs, but any that reaches
    `copy` is kept."""
    just_below = np.nextafter(np.float32(bounds.copy), np.float32(-np.inf))
    below: np.ndarray = np.where(enough >= np.float32(bounds.copy), just_below, enough)
    return below


# Exactly ------------------------------------------------------------------------------------------


def compare_exactly(
    nearest: Nearest, side: Side, other: Side | None, *, first: int = 0
) -> Iterator[tuple[int, float]]:
    """Compare all vectors with all others, or with each other, from position `first` on.

    After each panel, yield how many vectors are complete in this sense: the same call continues
    from there; and which share of the work is done.
    """
    total = len(side)
    others = side if other is None else other
    buffer = np.empty((PANEL, TILE), np.float32)
    for start in range(first, total, PANEL):
        stop = min(start + PANEL, total)
        panel = side.take(start, stop)
        for left in range(start if other is None else 0, len(others), TILE):
            right = min(left + TILE, len(others))
            tile = others.take(left, right)
            scores = buffer[: len(panel), : len(tile)]
            np.matmul(panel, tile.T, out=scores)
            _collect(nearest, scores, start, left, is_mirrored=other is None)
        yield stop, _share_done(stop, total, is_mirrored=other is None)


def _share_done(done: int, total: int, *, is_mirrored: bool) -> float:
    left = (total - done) / max(1, total)
    return 1 - left * left if is_mirrored else 1 - left


def _collect(
    nearest: Nearest, scores: np.ndarray, start: int, left: int, *, is_mirrored: bool
) -> None:
    """Add what a tile of scores has to offer to its rows, and to its columns if it is mirrored."""
    height, width = scores.shape
    if is_mirrored and left < start + height:  # each pair once, and none of a vector with itself
        scores[np.tril(np.ones((height, width), bool), start - left)] = -np.inf
    rows_least = _tightened(nearest.least[start : start + height], scores, nearest.bounds)
    columns_least = (
        _tightened(nearest.least[left : left + width], scores.T, nearest.bounds)
        if is_mirrored
        else None
    )
    for top in range(0, height, SLICE):
        part = scores[top : top + SLICE]
        is_new = part > rows_least[top : top + SLICE, None]
        rows, columns = np.nonzero(is_new)
        nearest.add(rows + (start + top), columns + left, part[rows, columns])
        if columns_least is not None:
            rows, columns = np.nonzero(part > columns_least)
            nearest.add(columns + left, rows + (start + top), part[rows, columns])


def _tightened(least: np.ndarray, scores: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the scores to exceed, (rows,), raised to what the rows themselves have to offer if
    many of theirs would be added."""
    if len(scores) == 0 or scores.shape[1] < bounds.most:
        return least
    step = max(1, len(scores) // 64)
    share = np.mean(scores[::step] > least[::step, None])
    if share * scores.shape[1] < 2 * bounds.few:
        return least
    ranked = np.partition(scores, (-bounds.most, -bounds.few), axis=1)
    enough = np.minimum(ranked[:, -bounds.few], np.float32(bounds.copy))
    offered = np.maximum(enough, ranked[:, -bounds.most])
    # the ones that are equal to it are added
    tightened: np.ndarray = np.maximum(least, np.nextafter(offered, np.float32(-np.inf)))
    return tightened


# By codes -----------------------------------------------------------------------------------------


def compare_by_codes(
    nearest: Nearest,
    side: Side,
    other: Side,
    searcher: Searcher,
    allowed: np.ndarray,
    *,
    is_self: bool,
    first: int = 0,
) -> Iterator[tuple[int, float]]:
    """Search the others for each vector from position `first` on, and yield as `compare_exactly`.

    allowed: which ids of the other index may be found, (N,) bool: those of `other`, or more.
    """
    for start in range(first, len(side), QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, len(side))
        search_some(
            nearest, np.arange(start, stop), side, other, searcher, allowed, is_self=is_self
        )
        yield stop, stop / len(side)


def search_some(
    nearest: Nearest,
    chosen: np.ndarray,
    side: Side,
    other: Side,
    searcher: Searcher,
    allowed: np.ndarray,
    *,
    is_self: bool,
    rows: np.ndarray | None = None,
) -> None:
    """Search for the vectors at some positions. rows: theirs in `nearest`, if they differ."""
    rows = chosen if rows is None else rows
    vectors = side.rows.take(side.ids[chosen])
    open_rows = np.arange(len(chosen))
    k = FIRST_HITS
    results: dict[int, Neighbors] = {}
    while len(open_rows):
        found = searcher.search(vectors[open_rows], other.rows, k=k, allowed=allowed)
        results.update(zip(open_rows.tolist(), found, strict=True))
        unfinished = [
            len(each.ids) == k < MAX_HITS and each.scores[-1] >= nearest.bounds.copy
            for each in found
        ]
        open_rows = open_rows[np.array(unfinished, bool)]
        k = min(4 * k, MAX_HITS)
    owners = np.repeat(np.arange(len(chosen)), [len(results[i].ids) for i in range(len(chosen))])
    ids = np.concatenate([results[i].ids for i in range(len(chosen))])
    scores = np.concatenate([results[i].scores for i in range(len(chosen))])
    positions = np.minimum(np.searchsorted(other.ids, ids), len(other) - 1)
    keep = (scores > nearest.least[rows[owners]]) & (other.ids[positions] == ids)
    if is_self:
        keep &= ids != side.ids[chosen][owners]
    nearest.add(rows[owners[keep]], positions[keep], scores[keep])


# How long it takes --------------------------------------------------------------------------------


def expected_seconds(side: Side, other: Side | None) -> float:
    """Return how long an exact comparison would take, from the products of two tiles."""
    others = side if other is None else other
    panel, tile = side.take(0, PANEL), others.take(0, TILE)
    times: list[float] = []
    for _ in range(2):  # the first time warms up
        started = time.perf_counter()
        scores = panel @ tile.T
        for _ in range(2):
            np.count_nonzero(scores > 1)
        times.append(time.perf_counter() - started)
    num_products = len(side) * len(others) / (2 if other is None else 1)
    return float(min(times) * num_products / max(1, scores.size))
