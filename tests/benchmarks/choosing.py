"""The yardsticks that featkit-tiny is chosen by.

kNN on the held-out images of `things`, and edited copies of the first 400 of `photos`. The
retrieval sets and the last 200 of `photos` take no part, so that they can judge the choice.

Letters: N images, P photographs with V views of each, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.evaluate.copies import EmbeddedViews, embed_views, find_originals
from featkit.evaluate.embedding import Embedded, ImageModel, embed_images
from featkit.evaluate.knn import majority_vote, nearest
from featkit.evaluate.labels import LABEL, labels_of
from featkit.evaluate.retrieval import unit_rows
from featkit.sources import Source, concatenate, evenly, open_source, subset
from featkit.whitening import Whitening, fit_whitening
from tests.benchmarks.photos import data_folder, open_part

NEIGHBORS, DIM, POWER, NUM_FITTED = 20, 256, 0.75, 4000
NUM_COPIED = 400


@dataclass(frozen=True)
class Photographs:
    """The images to learn from, and those to choose by."""

    learned: Source
    gallery: Source
    test: Source
    copied: Source


def open_photographs(folder: Path, *, quick: bool = False) -> Photographs:
    """Open them; a few if quick. The list of those to copy is written to `folder`."""
    data = data_folder()
    gallery, more = (open_source(data / f"things/train-0000{number}.parquet") for number in (0, 1))
    test = open_source(data / "things/val-00000.parquet")
    photos = sorted((data / "photos").iterdir())[: 10 if quick else NUM_COPIED]
    copied = open_part(photos, folder / "photos.txt")
    if quick:
        gallery, test = subset(gallery, range(60)), subset(test, range(60))
        return Photographs(gallery, gallery, test, copied)
    return Photographs(concatenate([gallery, more]), gallery, test, copied)


@dataclass(frozen=True)
class EmbeddedPhotographs:
    """The vectors of one model, before any whitening."""

    gallery: Embedded[str]
    test: Embedded[str]
    views: EmbeddedViews


def embed_photographs(photographs: Photographs, model: ImageModel) -> EmbeddedPhotographs:
    """Embed what is chosen by."""
    failures: list[tuple[str, str]] = []
    gallery, test = (
        embed_images(source, model, labels_of(source, LABEL), failures)
        for source in (photographs.gallery, photographs.test)
    )
    views = embed_views(photographs.copied, model, failures)
    assert not failures
    return EmbeddedPhotographs(gallery, test, views)


def whitening_of(
    embedded: EmbeddedPhotographs,
    *,
    power: float = POWER,
    dim: int = DIM,
    parts: tuple[int, ...] = (),
) -> Whitening:
    """Fit a whitening to some of the gallery, which is a part of the training images."""
    rows = evenly(len(embedded.gallery), most=NUM_FITTED)
    vectors = embedded.gallery.vectors[rows]
    dim = min(dim, vectors.shape[1], len(vectors) - 1)
    return fit_whitening([vectors], dim=dim, model="", power=power, parts=parts)


def scores_of(
    embedded: EmbeddedPhotographs, whitening: Whitening | None = None
) -> dict[str, float]:
    """Return kNN accuracy, by the majority of 20 neighbors, and recall@1 of copies."""
    apply: Callable[[np.ndarray], np.ndarray] = whitening.apply if whitening else unit_rows
    _, rows = nearest(
        apply(embedded.test.vectors),
        apply(embedded.gallery.vectors),
        NEIGHBORS,
        to_vectors=unit_rows,
    )
    labels = np.asarray(embedded.gallery.known)[rows]  # (N, k), the nearest first
    knn = (majority_vote(labels) == np.asarray(embedded.test.known)).mean()
    views = embedded.views
    flat = apply(views.vectors.reshape(-1, views.vectors.shape[-1]))
    whitened = dataclasses.replace(views, vectors=flat.reshape(*views.vectors.shape[:2], -1))
    copies = find_originals(whitened, "", baselines=False)[0].score.recall_at_1
    return {"things kNN": round(float(knn), 4), "copies recall@1": round(copies, 4)}
