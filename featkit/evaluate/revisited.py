"""Revisited Oxford and Paris, Easy, Medium and Hard (Radenović et al., arXiv 1803.11285).

In Medium, easy and hard images match and junk is ignored. Easy ignores hard images as well, and
Hard ignores easy ones. Ignored images are removed from the ranking. A test compares the figures
with revisitop's compute_map, written as loops.

The protocol leaves three choices open, which featkit makes as follows and prints: one size, the
model's own, instead of several scales; ties in the order of imlist; unreadable database images
last.

Letters: Q queries, G images of the database, D width, n right images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.baselines import CENTERED_PIXELS, pixel_vectors
from featkit.evaluate.embedding import Box, ImageModel, OnProgress, embed_images, no_progress
from featkit.evaluate.ground_truth import GroundTruth, Query
from featkit.evaluate.retrieval import ToVectors, unchanged
from featkit.sources import Source, subset

PRECISION_AT = (1, 5, 10)
# By setup: the kinds that match, and the kinds that are ignored.
SETUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}


@dataclass(frozen=True, kw_only=True)
class SetupScore:
    """Means over the queries that have a match in this setup. precision: mP@k for each k."""

    num_queries: int
    mean_average_precision: float
    precision: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class RevisitedScore:
    """Scores of one method by setup (easy, medium, hard); a setup without any match is left out."""

    name: str
    setups: dict[str, SetupScore]


@dataclass(frozen=True, kw_only=True)
class RevisitedReport:
    """The result; the model's score comes first. size: (height, width) in pixels of all images."""

    num_images: int
    num_queries: int
    size: tuple[int, int]
    scores: list[RevisitedScore]
    failures: list[tuple[str, str]] = field(default_factory=list)


def evaluate_revisited(
    source: Source,
    truth: GroundTruth,
    model: ImageModel,
    *,
    on_progress: OnProgress = no_progress,
) -> RevisitedReport:
    """Rank the database for each query, cropped to its box.

    Queries and database are found in `source` by name, without folder and suffix. Memory is that of
    `embedding.embed_images`. Raises InputError if `source` lacks a name or has it twice, and if a
    query cannot be read.
    """
    places = _places(source, truth)
    boxes = [query.box for query in truth.queries]
    database, asked = (
        subset(source, [places[name] for name in names])
        for names in (truth.names, [q.name for q in truth.queries])
    )
    failures: list[tuple[str, str]] = []
    box: Callable[[int], Box] = boxes.__getitem__
    queries = embed_images(asked, model, int, failures, box=box, on_progress=on_progress)
    if failures:
        raise InputError(
            f"A query cannot be read, and the protocol needs all of them: {failures[0][1]}"
        )
    gallery = embed_images(
        database,
        model,
        int,
        failures,
        on_progress=lambda done, failed: on_progress(len(asked) + done, failed),
    )
    if not len(gallery):
        raise InputError(f"{source.name} has no readable image of the database; {failures[0][1]}")
    gallery_mean = gallery.pixels.mean(axis=0, dtype=np.float64)
    scores = []
    methods: list[tuple[str, np.ndarray, np.ndarray, ToVectors]] = [
        (model.manifest.name, queries.vectors, gallery.vectors, unchanged),
        (
            CENTERED_PIXELS,
            queries.pixels,
            gallery.pixels,
            lambda rows: pixel_vectors(rows, gallery_mean),
        ),
    ]
    for name, ours, theirs, to_vectors in methods:
        found = to_vectors(theirs)
        ranks = []
        for row in to_vectors(ours):
            cosines = np.full(len(truth.names), -np.inf)
            cosines[gallery.known] = found @ row
            ranks.append(np.argsort(-cosines, kind="stable"))
        scores.append(RevisitedScore(name=name, setups=score_setups(ranks, truth.queries)))
    return RevisitedReport(
        num_images=len(truth.names),
        num_queries=len(truth.queries),
        size=(model.geometry.height, model.geometry.width),
        scores=scores,
        failures=failures,
    )


def score_setups(ranks: list[np.ndarray], queries: list[Query]) -> dict[str, SetupScore]:
    """Return the scores of the three setups. ranks: for each query, database rows (G,), best
    first."""
    scores = {}
    for setup, (rights, ignoreds) in SETUPS.items():
        figures = []
        for ranking, query in zip(ranks, queries, strict=True):
            right, ignored = (
                np.concatenate([getattr(query, kind) for kind in kinds])
                for kinds in (rights, ignoreds)
            )
            if len(right):
                found = places_without(ranking, right, ignored)
                figures.append(
                    [trapezoid_precision(found), *(precision_at(found, k) for k in PRECISION_AT)]
                )
        if figures:
            mean, *precision = np.mean(figures, axis=0).tolist()
            scores[setup] = SetupScore(
                num_queries=len(figures),
                mean_average_precision=mean,
                precision=dict(zip(PRECISION_AT, precision, strict=True)),
            )
    return scores


def places_without(ranking: np.ndarray, right: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Return the ranks of the matches (n,), from 0 and ascending, with ignored images removed."""
    place = np.empty(len(ranking), np.int64)
    place[ranking] = np.arange(len(ranking))
    found = np.sort(place[right])
    return np.asarray(found - np.searchsorted(np.sort(place[ignored]), found))


def trapezoid_precision(places: np.ndarray) -> float:
    """Return the average precision of matches at ranks (n,), from 0 and ascending.

    It is the area under the precision-recall curve, by the trapezoidal rule:

    mean over j of  (before[j] + after[j]) / 2
    before[j] = j / places[j], and 1 at place 0;  after[j] = (j + 1) / (places[j] + 1)
    """
    number = np.arange(len(places))
    before = np.divide(number, places, out=np.ones(len(places)), where=places > 0)
    return float(((before + (number + 1) / (places + 1)) / 2).mean())


def precision_at(places: np.ndarray, k: int) -> float:
    """Return the share of matches, at ranks (n,) from 0, among the first k.

    If the last match comes before rank k, only the images up to it count:

    sum(places < last) / last  with  last = min(k, max(places) + 1)
    """
    last = min(k, int(places[-1]) + 1)
    return float((places < last).sum() / last)


def _places(source: Source, truth: GroundTruth) -> dict[str, int]:
    """Return the source's index of each name. Raises InputError for missing or repeated names."""
    needed = {*truth.names, *(query.name for query in truth.queries)}
    found: dict[str, int] = {}
    for number in range(len(source)):
        name = PurePosixPath(source.key(number)).stem
        if name in needed and found.setdefault(name, number) != number:
            raise InputError(
                f"{source.name} has {name} twice, as {source.key(found[name])} and"
                f" {source.key(number)}; keep one."
            )
    missing = sorted(needed - set(found))
    if missing:
        raise InputError(
            f"{source.name} lacks {len(missing):,} of the {len(needed):,} images that the ground"
            f" truth names, such as {missing[0]!r}; give the folder that they were extracted to."
        )
    return found
