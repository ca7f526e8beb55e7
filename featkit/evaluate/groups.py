"""Retrieval by groups: does a query find the images of its own group before all others?

Ties count by the expectation over a random order, as in retrieval.py, so a model that gives every
image the same vector scores exactly chance. The formulas are those of McSherry and Najork, 2008,
"Computing information retrieval performance measures efficiently in the presence of tied scores".

Letters: Q queries, G images of the gallery, D width, k places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.baselines import CENTERED_PIXELS, CHANCE, pixel_vectors
from featkit.evaluate.embedding import (
    Embedded,
    ImageModel,
    OnProgress,
    embed_images,
    no_progress,
)
from featkit.evaluate.labels import find_column, labels_of
from featkit.evaluate.retrieval import GALLERY_BLOCK, TIE, ToVectors, bootstrap_interval, unchanged
from featkit.sources import Source

RECALL_AT = (1, 5, 10)
SCORES_A_BLOCK = 2**24
OWN = np.iinfo(np.int32).min  # score given to a query's own image, below all others


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """Scores of one method of comparing images.

    interval: the 95 % bootstrap interval of the mean average precision, over queries.
    recall: for each k, the share of queries with an image of their group among the first k.
    """

    name: str
    mean_average_precision: float
    interval: tuple[float, float]
    recall: dict[int, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """Average precision (Q,) and recall (Q, len(RECALL_AT)) of each query by one method."""

    name: str
    precision: np.ndarray
    recall: np.ndarray

    @property
    def score(self) -> GroupScore:
        """The means over all queries."""
        shares = [self.recall[:, position].mean() for position in range(len(RECALL_AT))]
        return GroupScore(
            name=self.name,
            mean_average_precision=float(self.precision.mean()),
            interval=bootstrap_interval(self.precision),
            recall={k: float(share) for k, share in zip(RECALL_AT, shares, strict=True)},
        )


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """The result. The model's score comes first and chance last.

    columns: the columns that the groups came from, of the gallery and of the queries.
    """

    num_images: int
    num_groups: int  # in the gallery
    num_queries: int
    num_alone: int  # queries left out because the gallery has no other image of their group
    leave_one_out: bool  # the queries are the gallery itself, each without its own image
    columns: tuple[str, str]
    scores: list[GroupScore]
    failures: list[tuple[str, str]] = field(default_factory=list)


def evaluate_groups(
    source: Source,
    model: ImageModel,
    *,
    group: str,
    queries: Source | None = None,
    on_progress: OnProgress = no_progress,
) -> GroupReport:
    """Search `source` with each of its own images (left out of the results) or with `queries`.

    Raw pixels are measured on the same queries. group: a column of both sources; images with the
    same value match. Raises InputError if a source has no such column or no readable image, and if
    no query has a match.
    """
    failures: list[tuple[str, str]] = []
    column = find_column(source, group)
    gallery = embed_images(
        source, model, labels_of(source, column), failures, on_progress=on_progress
    )
    asked, asked_column = None, column
    if queries is not None:
        asked_column = find_column(queries, group)
        failed = len(failures)

        def after(done: int, failed_here: int) -> None:
            on_progress(len(source) + done, failed + failed_here)

        asked = embed_images(
            queries, model, labels_of(queries, asked_column), failures, on_progress=after
        )
    grouped = Grouped(gallery, asked, (column, asked_column))
    if not len(grouped.counted):
        raise no_match(source.name, column, queries=(queries or source).name)
    return report_rankings(grouped, rank(grouped, model.manifest.name), failures=failures)


class Grouped:
    """An embedded gallery and its queries, with their groups as codes.

    leave_one_out: the queries are the gallery itself, each without its own image.
    groups (G,) and wanted (A,): group codes of the gallery and of all A queries.
    rights (A,): the number of matches of each query. counted (Q,): the queries that have a match.
    """

    def __init__(
        self, gallery: Embedded[str], queries: Embedded[str] | None, columns: tuple[str, str]
    ) -> None:
        """queries: None to leave one out. columns: as in GroupReport."""
        asked = gallery if queries is None else queries
        self.gallery, self.asked, self.columns = gallery, asked, columns
        self.leave_one_out = queries is None
        names = {name: code for code, name in enumerate(dict.fromkeys(gallery.known + asked.known))}
        self.groups = np.array([names[name] for name in gallery.known], np.int64)
        self.wanted = np.array([names[name] for name in asked.known], np.int64)
        self.rights = num_right(self.wanted, self.groups, leave_one_out=self.leave_one_out)
        self.counted = np.nonzero(self.rights)[0]


def no_match(source: str, column: str, *, queries: str) -> InputError:
    """Return the error that no query has a match; source and queries are names of sources."""
    return InputError(
        f"No query of {queries} has another image of its group in {source} by the column {column};"
        " choose a column with --group whose values several images share, or more images with"
        " --limit."
    )


def rank(grouped: Grouped, name: str, *, baselines: bool = True) -> list[Ranking]:
    """Search by the vectors of the model `name`, and with baselines=True by pixels and by chance.

    The model comes first and chance last.
    """
    gallery, asked, counted = grouped.gallery, grouped.asked, grouped.counted
    gallery_mean = gallery.pixels.mean(axis=0, dtype=np.float64)
    methods: list[tuple[str, np.ndarray, np.ndarray, ToVectors]] = [
        (name, asked.vectors, gallery.vectors, unchanged),
        (
            CENTERED_PIXELS,
            asked.pixels,
            gallery.pixels,
            lambda rows: pixel_vectors(rows, gallery_mean),
        ),
    ]
    rankings = []
    for method, queries, rows, to_vectors in methods if baselines else methods[:1]:
        precision, recall = find_groups(
            queries[counted],
            rows,
            grouped.wanted[counted],
            grouped.groups,
            own=counted if grouped.leave_one_out else None,
            to_vectors=to_vectors,
        )
        rankings.append(Ranking(name=method, precision=precision, recall=recall))
    if baselines:
        others = len(gallery) - grouped.leave_one_out
        precision, recall = chance(grouped.rights[counted], others)
        rankings.append(Ranking(name=CHANCE, precision=precision, recall=recall))
    return rankings


def report_rankings(
    grouped: Grouped, rankings: Sequence[Ranking], *, failures: list[tuple[str, str]]
) -> GroupReport:
    """Return the report of rankings of a gallery."""
    return GroupReport(
        num_images=len(grouped.gallery),
        num_groups=len(np.unique(grouped.groups)),
        num_queries=len(grouped.counted),
        num_alone=len(grouped.asked) - len(grouped.counted),
        leave_one_out=grouped.leave_one_out,
        columns=grouped.columns,
        scores=[each.score for each in rankings],
        failures=failures,
    )


def num_right(wanted: np.ndarray, groups: np.ndarray, *, leave_one_out: bool) -> np.ndarray:
    """Return (Q,), the number of gallery images of each query's group, not counting itself if it is
    left out."""
    counts = np.bincount(
        groups, minlength=int(max(wanted.max(initial=0), groups.max(initial=0))) + 1
    )
    return np.asarray(counts[wanted] - leave_one_out)


def find_groups(
    queries: np.ndarray,
    gallery: np.ndarray,
    wanted: np.ndarray,
    groups: np.ndarray,
    *,
    own: np.ndarray | None = None,
    ks: Sequence[int] = RECALL_AT,
    to_vectors: ToVectors = unchanged,
) -> tuple[np.ndarray, np.ndarray]:
    """Return average precision (Q,) and recall (Q, len(ks)), float64.

    queries (Q, ...) and gallery (G, ...): rows, turned into unit rows by `to_vectors` as in
    retrieval.find_places. wanted (Q,) and groups (G,): group codes from 0; every query has a match.
    own (Q,): the gallery row that is the query itself and is skipped. Scores are rounded to
    multiples of TIE; ties count by expectation. Raises ValueError for non-finite numbers.

        for each query, averaged over the orders of tied images:
            AP = mean over matches of (matches so far) / rank
            recall@k = any match of rank <= k
    """
    members = _members(groups)
    precision, recall = np.empty(len(queries)), np.empty((len(queries), len(ks)))
    harmonic = _harmonic(len(gallery))
    step = max(1, SCORES_A_BLOCK // max(1, len(gallery)))
    for first in range(0, len(queries), step):
        asked = np.arange(first, min(first + step, len(queries)))
        scores = _rounded_scores(to_vectors(queries[asked]), gallery, to_vectors)
        if own is not None:
            scores[np.arange(len(asked)), own[asked]] = OWN
        for query, row in zip(asked, scores, strict=True):
            right = row[members[int(wanted[query])]]
            ties = _ties(np.sort(row), right[right != OWN])
            precision[query] = _expected_precision(ties, harmonic)
            recall[query] = [_expected_recall(ties, k) for k in ks]
    return precision, recall


def chance(
    rights: np.ndarray, others: int, *, ks: Sequence[int] = RECALL_AT
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `find_groups` returns if all `others` images tie; rights (Q,) of them match."""
    harmonic = _harmonic(others)
    ties = [
        _Ties(better=np.zeros(1), tied=np.array([others]), right=np.array([right]))
        for right in rights.tolist()
    ]
    return (
        np.array([_expected_precision(one, harmonic) for one in ties]),
        np.array([[_expected_recall(one, k) for k in ks] for one in ties]),
    )


@dataclass(frozen=True)
class _Ties:
    """For each distinct score of a query's matches, best first: counts of gallery images.

    better: images with a higher score. tied: images with this score. right: matches among those.
    """

    better: np.ndarray
    tied: np.ndarray
    right: np.ndarray


def _ties(rising: np.ndarray, right: np.ndarray) -> _Ties:
    """Count ties from all scores (G,) in ascending order and the scores of the matches."""
    values, counts = np.unique(right, return_counts=True)
    above, below = (
        np.searchsorted(rising, values, side="right"),
        np.searchsorted(rising, values, side="left"),
    )
    return _Ties(better=(len(rising) - above)[::-1], tied=(above - below)[::-1], right=counts[::-1])


def _expected_precision(ties: _Ties, harmonic: np.ndarray) -> float:
    """Return the average precision expected over all orders of tied images.

    Let a tie of n images with r matches follow b images with a matches. Position j of
    it holds a match with probability r / n. Then a + 1 + (j - 1) (r - 1) / (n - 1) of the b + j
    images up to there are matches.
    """
    before = np.cumsum(ties.right) - ties.right
    better, tied = ties.better.astype(np.int64), ties.tied
    # The sums over j of 1 / (b + j) and of (j - 1) / (b + j).
    inverse = harmonic[better + tied] - harmonic[better]
    rising = tied - (better + 1) * inverse
    rivals = np.divide(ties.right - 1, tied - 1, out=np.zeros(len(tied)), where=tied > 1)
    return float(
        (ties.right / tied * ((before + 1) * inverse + rivals * rising)).sum() / ties.right.sum()
    )


def _expected_recall(ties: _Ties, k: int) -> float:
    """Return the probability that the first k images include a match, by the first tie."""
    tied, right = int(ties.tied[0]), int(ties.right[0])
    reached = min(max(k - int(ties.better[0]), 0), tied)
    none = 1.0
    for place in range(reached):
        none *= max(tied - right - place, 0) / (tied - place)
    return 1.0 - none


def _rounded_scores(queries: np.ndarray, gallery: np.ndarray, to_vectors: ToVectors) -> np.ndarray:
    """Return inner products (Q, G) in multiples of TIE, int32."""
    scores = np.empty((len(queries), len(gallery)), np.int32)
    for start in range(0, len(gallery), GALLERY_BLOCK):
        block = queries @ to_vectors(gallery[start : start + GALLERY_BLOCK]).T
        if not np.isfinite(block).all():
            raise ValueError("vectors to rank must be finite")
        scores[:, start : start + GALLERY_BLOCK] = np.rint(block / TIE)
    return scores


def _members(groups: np.ndarray) -> dict[int, np.ndarray]:
    """Return the rows of each group."""
    order = np.argsort(groups, kind="stable")
    codes, starts = np.unique(groups[order], return_index=True)
    return dict(zip(codes.tolist(), np.split(order, starts[1:]), strict=True))


def _harmonic(count: int) -> np.ndarray:
    """Return the harmonic numbers (count + 1,), from 0."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, count + 1))])
