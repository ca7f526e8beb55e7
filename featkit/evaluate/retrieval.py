"""Retrieval with one match per query: recall@k, mean average precision and bootstrap intervals.

Ties count by the expectation over a random order. So a model that gives every image the same vector
scores exactly chance, whatever the order of the gallery, and so do equal hashes.
"""

# Q queries, G items of the gallery, D width, P images

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

ToVectors: TypeAlias = Callable[[np.ndarray], np.ndarray]

QUERY_BLOCK, GALLERY_BLOCK = 1024, 4096
TIE = 1e-6  # the accuracy of a cosine computed in float32


@dataclass(frozen=True)
class Places:
    """The rank of each query's match: counts (Q,) int64 of items that score better, and of items
    that tie. The match itself counts as a tie.
    """

    better: np.ndarray
    tied: np.ndarray

    def __len__(self) -> int:
        return len(self.better)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows (N, D) to unit length, float32; a row of zeros stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), np.float32)


def unchanged(rows: np.ndarray) -> np.ndarray:
    """Return `rows`; the `to_vectors` of rows that are already vectors."""
    return rows


def find_places(
    queries: np.ndarray,
    gallery: np.ndarray,
    right: np.ndarray,
    *,
    to_vectors: ToVectors = unchanged,
) -> Places:
    """Rank the match of each query by inner product.

    queries (Q, ...) and gallery (G, ...): rows. right (Q,): the matching gallery row.
    to_vectors: turns rows (N, ...), which may be stored in a smaller form, into unit rows (N, D)
    float32. It is called block by block, and scores are computed block by block, so memory does not
    grow with Q × G.

    Scores within TIE of each other tie, since their last bits depend on their position in a matrix.
    Raises ValueError for non-finite numbers, which would be neither better nor worse.
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
    """Return (Q,) float64: 1 if the match is among the first k, else 0, and a share for ties."""
    return np.asarray(np.clip((k - places.better) / places.tied, 0.0, 1.0))


def average_precision(places: Places) -> np.ndarray:
    """Return (Q,) float64: 1 / rank of the match, averaged over the ranks that a tie covers."""
    harmonic = np.concatenate(
        [[0.0], np.cumsum(1 / np.arange(1, (places.better + places.tied).max(initial=0) + 1))]
    )
    return np.asarray(
        (harmonic[places.better + places.tied] - harmonic[places.better]) / places.tied
    )


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, num_resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean, resampling whole images.

    values (P, E): E queries for each of P images, which are not independent; or (P,), one query per
    image. Returns the quantiles (1 - level) / 2 and (1 + level) / 2 of `num_resamples` means.

        for each resample:  mean(values[rng.integers(0, P, P)])
    """
    images = values.reshape(len(values), -1).mean(axis=1)
    rng = np.random.default_rng(seed)
    means = [images[rng.integers(0, len(images), len(images))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
