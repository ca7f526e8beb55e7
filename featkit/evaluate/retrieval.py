"""How well queries find the one gallery item that is right for each: recall@k, mean average
precision, bootstrap intervals.

Ties count as if their order were drawn by lot, in expectation: a model that gives every image the
same vector scores exactly chance, whatever the order of the gallery, and so do equal hashes.
"""

# Q queries, G items of the gallery, D width, P images

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

ToVectors: TypeAlias = Callable[[np.ndarray], np.ndarray]

QUERY_BLOCK, GALLERY_BLOCK = 1024, 4096
TIE = 1e-6  # of a cosine; what float32 products of unit vectors are good to


@dataclass(frozen=True)
class Places:
    """Where the right item stands for each query: how many items score better, how many the same
    (itself too). (Q,) int64."""

    better: np.ndarray
    tied: np.ndarray

    def __len__(self) -> int:
        return len(self.better)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (N, D) at unit length, float32; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def unchanged(rows: np.ndarray) -> np.ndarray:
    """The `to_vectors` of rows that are vectors already."""
    return rows


def find_places(
    queries: np.ndarray,
    gallery: np.ndarray,
    right: np.ndarray,
    *,
    to_vectors: ToVectors = unchanged,
) -> Places:
    """Rank by inner product. queries (Q, ...) and gallery (G, ...) rows; right (Q,) the gallery row
    each query wants.

    to_vectors: rows (N, ...) to unit rows (N, D) float32, where the rows are kept as something
    smaller. It is given a block at a time, and scores are made a block of queries by a block of the
    gallery at a time, so memory does not grow with Q * G.

    Scores within TIE of each other are the same, since their last bits depend on where in a matrix
    they were computed. ValueError for numbers that are not finite: they would compare as neither
    better nor worse.
    """

    def vectors(rows: np.ndarray) -> np.ndarray:
        found = to_vectors(rows)
        if not np.isfinite(found).all():
            raise ValueError("vectors to rank must be finite")
        return found

    better, tied = np.zeros(len(queries), np.int64), np.ones(len(queries), np.int64)
    for first in range(0, len(queries), QUERY_BLOCK):
        asked = slice(first, first + QUERY_BLOCK)
        query_block = vectors(queries[asked])
        wanted = np.einsum("qd,qd->q", query_block, vectors(gallery[right[asked]]))[:, None]
        for start in range(0, len(gallery), GALLERY_BLOCK):
            block = vectors(gallery[start : start + GALLERY_BLOCK])
            scores = query_block @ block.T
            others = np.arange(start, start + len(block)) != right[asked, None]
            better[asked] += ((scores > wanted + TIE) & others).sum(axis=1)
            tied[asked] += ((np.abs(scores - wanted) <= TIE) & others).sum(axis=1)
    return Places(better, tied)


def recall_at_k(places: Places, k: int) -> np.ndarray:
    """(Q,) float64: 1 where the right item is among the first k, 0 where not; ties that reach over
    k count by their share."""
    return np.asarray(np.clip((k - places.better) / places.tied, 0.0, 1.0))


def average_precision(places: Places) -> np.ndarray:
    """(Q,) float64. With one right item it is 1 / rank; over ties the mean of that over the ranks
    they share."""
    harmonic = np.concatenate(
        [[0.0], np.cumsum(1 / np.arange(1, (places.better + places.tied).max(initial=0) + 1))]
    )
    return np.asarray(
        (harmonic[places.better + places.tied] - harmonic[places.better]) / places.tied
    )


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, num_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of a mean, drawing whole images with replacement.

    values (P, E): E queries of each of P images, whose fates hang together; (P,) is one each.
    Returns the quantiles (1 - level) / 2 and (1 + level) / 2 of `num_resamples` means.

        for each resample:  mean(values[rng.integers(0, P, P)])
    """
    images = values.reshape(len(values), -1).mean(axis=1)
    rng = np.random.default_rng(seed)
    means = [images[rng.integers(0, len(images), len(images))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
