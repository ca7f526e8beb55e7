"""kNN accuracy: classify an image by the labeled images with the nearest vectors.

The weighted vote is that of DINO (arXiv 2104.14294, section 4.1; eval_knn.py), after Wu et al.
(arXiv 1805.01978, eq. 6 and section 3.4). A plain majority vote is reported as well.

Letters: N vectors of the training part, Q of the test part, D width, k neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from featkit.evaluate.baselines import CENTERED_PIXELS, pixel_vectors
from featkit.evaluate.embedding import ImageModel, OnProgress, no_progress
from featkit.evaluate.labels import LABEL, LabeledPair, embed_labeled
from featkit.evaluate.retrieval import (
    GALLERY_BLOCK,
    QUERY_BLOCK,
    ToVectors,
    bootstrap_interval,
    unit_rows,
)
from featkit.sources import Source

NEIGHBORS = 20
TEMPERATURE = 0.07
# Three of five photographs that are training images in another size and shape correlate at 0.97 and
# more with them; of 4,300 other images, none does.
NEAR_COPY = 0.97
VOTE_BLOCK = 64  # queries whose (k, k) tables of equal labels are in memory at once


@dataclass(frozen=True, kw_only=True)
class KnnScore:
    """Accuracies of one method; `interval` is the 95 % bootstrap interval of `weighted`."""

    name: str
    k: int  # at most the number of training images
    weighted: float
    interval: tuple[float, float]
    majority: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Votes:
    """Outcomes (Q,) of both votes of k neighbors: 1.0 if a test image gets its label, else 0."""

    name: str
    k: int
    weighted: np.ndarray
    majority: np.ndarray

    @property
    def score(self) -> KnnScore:
        """The accuracies of both votes."""
        return KnnScore(
            name=self.name,
            k=self.k,
            weighted=float(self.weighted.mean()),
            interval=bootstrap_interval(self.weighted),
            majority=float(self.majority.mean()),
        )


@dataclass(frozen=True, kw_only=True)
class KnnReport:
    """The result. The model's scores come first, one for each k.

    columns: the columns that the labels came from, of the training and of the test part.
    """

    num_train: int
    num_test: int
    num_labels: int
    num_unseen: int  # test images whose label the training part does not have
    num_near_copies: int  # test images that the training part has as well
    columns: tuple[str, str]
    temperature: float
    most_frequent: float  # accuracy of always predicting the training part's most frequent label
    scores: list[KnnScore]
    failures: list[tuple[str, str]] = field(default_factory=list)

    def score(self, name: str, k: int) -> KnnScore:
        """Return one score. Raises KeyError for an unknown name or k."""
        return {(score.name, score.k): score for score in self.scores}[name, k]


def evaluate_knn(
    train: Source,
    test: Source,
    model: ImageModel,
    *,
    label: str = LABEL,
    ks: Sequence[int] = (NEIGHBORS,),
    temperature: float = TEMPERATURE,
    on_progress: OnProgress = no_progress,
) -> KnnReport:
    """Classify the images of `test` by their nearest neighbors in `train`, by model and by pixels.

    label and the errors are those of `labels.embed_labeled`. on_progress counts over both parts.
    """
    failures: list[tuple[str, str]] = []
    pair = embed_labeled(train, test, model, failures, label=label, on_progress=on_progress)
    votes = vote(pair, model.manifest.name, ks=ks, temperature=temperature)
    return report_votes(pair, votes, temperature=temperature, failures=failures)


def vote(
    pair: LabeledPair,
    name: str,
    *,
    ks: Sequence[int] = (NEIGHBORS,),
    temperature: float = TEMPERATURE,
    baselines: bool = True,
) -> list[Votes]:
    """Classify the test part by the vectors of the model `name`, and with baselines=True by pixels.

    Returns the votes of each method for each of `ks`; the model comes first.
    """
    gallery_mean = pair.train.pixels.mean(axis=0, dtype=np.float64)
    methods: list[tuple[str, np.ndarray, np.ndarray, ToVectors]] = [
        (name, pair.train.vectors, pair.test.vectors, unit_rows),
        (
            CENTERED_PIXELS,
            pair.train.pixels,
            pair.test.pixels,
            lambda rows: pixel_vectors(rows, gallery_mean),
        ),
    ]
    votes = []
    for method, gallery, queries, to_vectors in methods if baselines else methods[:1]:
        cosines, rows = nearest(queries, gallery, max(ks), to_vectors=to_vectors)
        for k in dict.fromkeys(min(k, len(gallery)) for k in ks):
            voters = pair.train_labels[rows[:, :k]]
            weighted = weighted_vote(cosines[:, :k], voters, temperature=temperature)
            votes.append(
                Votes(
                    name=method,
                    k=k,
                    weighted=(weighted == pair.test_labels).astype(np.float64),
                    majority=(majority_vote(voters) == pair.test_labels).astype(np.float64),
                )
            )
    return votes


def report_votes(
    pair: LabeledPair,
    votes: Sequence[Votes],
    *,
    temperature: float,
    failures: list[tuple[str, str]],
) -> KnnReport:
    """Return the report of votes on a pair."""
    return KnnReport(
        num_train=len(pair.train),
        num_test=len(pair.test),
        num_labels=len(pair.names),
        num_unseen=pair.num_unseen,
        num_near_copies=count_near_copies(pair),
        columns=pair.columns,
        temperature=temperature,
        most_frequent=pair.most_frequent,
        scores=[each.score for each in votes],
        failures=failures,
    )


def count_near_copies(pair: LabeledPair) -> int:
    """Return how many test images are copies of a training image, which makes any figure too good:
    of another size or compression, but not cropped or turned.

    By the correlation of their 32×32 pixels, so the evaluated model does not matter.
    """
    correlations, _ = nearest(pair.test.pixels, pair.train.pixels, 1, to_vectors=_without_own_mean)
    return int(np.count_nonzero(correlations[:, 0] >= NEAR_COPY))


def _without_own_mean(pixels: np.ndarray) -> np.ndarray:
    """Return unit vectors (N, 3072) float32 whose inner products are the images' correlations."""
    values = pixels.astype(np.float32)
    return unit_rows(values - values.mean(axis=1, keepdims=True))


def knn_accuracy(
    train_vectors: np.ndarray,
    train_labels: np.ndarray,
    test_vectors: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
) -> float:
    """Return the share of test vectors for which the weighted vote of k neighbors is right.

    train_vectors (N, D) and test_vectors (Q, D): any float dtype and any length. train_labels (N,)
    and test_labels (Q,): of the same type. If k exceeds N, all N vote. Raises ValueError as
    `nearest` does, or if there are no test vectors.
    """
    if len(test_vectors) == 0:
        raise ValueError("there are no test vectors")
    cosines, rows = nearest(test_vectors, train_vectors, k, to_vectors=unit_rows)
    voted = weighted_vote(cosines, np.asarray(train_labels)[rows], temperature=temperature)
    return float((voted == np.asarray(test_labels)).mean())


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, to_vectors: ToVectors = unit_rows
) -> tuple[np.ndarray, np.ndarray]:
    """Return the inner products (Q, k) float32 and rows (Q, k) int64 of the k nearest, best first.

    queries (Q, ...) and gallery (N, ...) are turned into vectors by `to_vectors`, block by block as
    in retrieval.find_places, so memory does not grow with Q × N. Equal products are ordered by row.
    If k exceeds N, all N rows are returned. Raises ValueError for k below 1, an empty gallery and
    non-finite numbers.

        for each query:  order = sorted(range(N), key=lambda row: (-query @ gallery[row], row))[:k]
    """
    if k < 1 or len(gallery) == 0:
        raise ValueError(f"cannot find {k} neighbors among {len(gallery)} vectors")
    k = min(k, len(gallery))
    found_scores, found_rows = (
        np.empty((len(queries), k), np.float32),
        np.empty((len(queries), k), np.int64),
    )
    for first in range(0, len(queries), QUERY_BLOCK):
        asked = slice(first, first + QUERY_BLOCK)
        query_block = _finite(to_vectors(queries[asked]))
        scores = np.zeros((len(query_block), 0), np.float32)
        rows = np.zeros((len(query_block), 0), np.int64)
        for start in range(0, len(gallery), GALLERY_BLOCK):
            block = _finite(to_vectors(gallery[start : start + GALLERY_BLOCK]))
            numbers = np.broadcast_to(
                np.arange(start, start + len(block)), (len(query_block), len(block))
            )
            scores = np.concatenate([scores, query_block @ block.T], axis=1)
            rows = np.concatenate([rows, numbers], axis=1)
            places = _best_places(scores, k)
            scores, rows = (
                np.take_along_axis(scores, places, axis=1),
                np.take_along_axis(rows, places, axis=1),
            )
        order = np.argsort(-scores, axis=1, kind="stable")
        found_scores[asked] = np.take_along_axis(scores, order, axis=1)
        found_rows[asked] = np.take_along_axis(rows, order, axis=1)
    return found_scores, found_rows


def weighted_vote(cosines: np.ndarray, labels: np.ndarray, *, temperature: float) -> np.ndarray:
    """Return the label (Q,) with the most votes; a neighbor's weight is exp(cosine / temperature).

    cosines (Q, k): best first. labels (Q, k): of the same neighbors, any type. Votes are summed in
    float64; if labels tie, the one with the nearer neighbor wins. DINOv2's code divides by the sum
    of all weights (a softmax) and DINO's does not, with the same winner.

        votes[q, label] = sum of exp((cosines[q, i] - cosines[q, 0]) / temperature)
                          over i with labels[q, i] == label
    """
    scores = cosines.astype(np.float64)
    return _most_voted(np.exp((scores - scores[:, :1]) / temperature), labels)


def majority_vote(labels: np.ndarray) -> np.ndarray:
    """Return the most frequent label (Q,) among the neighbors' labels (Q, k), nearest first.

    If labels tie, the one with the nearer neighbor wins.
    """
    return _most_voted(np.ones(labels.shape), labels)


def _most_voted(weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the label (Q,) with the largest sum of weights (Q, k); labels (Q, k) nearest first."""
    voted = np.empty(len(labels), labels.dtype)
    for start in range(0, len(labels), VOTE_BLOCK):
        block = labels[start : start + VOTE_BLOCK]
        same = block[:, :, None] == block[:, None, :]
        votes = np.where(same, weights[start : start + VOTE_BLOCK, None, :], 0.0).sum(axis=2)
        voted[start : start + VOTE_BLOCK] = block[np.arange(len(block)), votes.argmax(axis=1)]
    return voted


def _best_places(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns (Q, min(k, columns)) of the k best of each row, in ascending order.

    Among equal scores at the cut the first columns are kept.
    """
    columns = scores.shape[1]
    if columns <= k:
        return np.broadcast_to(np.arange(columns), scores.shape)
    edge = np.partition(scores, columns - k, axis=1)[:, columns - k, None]
    better, level = scores > edge, scores == edge
    room = k - better.sum(axis=1, keepdims=True)
    chosen = better | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= room))
    return np.nonzero(chosen)[1].reshape(len(scores), k)


def _finite(vectors: np.ndarray) -> np.ndarray:
    if not np.isfinite(vectors).all():
        raise ValueError("vectors to rank must be finite")
    return vectors
