"""The copies benchmark, which needs no labels: does an edited image find its original?

The gallery holds the original images. The queries are four seeded compound edits of each
(edits.py), and every single edit for the breakdown. Raw pixels and a perceptual hash are measured
on the same queries.

Letters: P images, E edits of each, N prepared images, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from featkit.errors import InputError
from featkit.evaluate.baselines import (
    CENTERED_PIXELS,
    PERCEPTUAL_HASH,
    PLAIN_PIXELS,
    hash_vectors,
    perceptual_hash,
    pixel_vectors,
    pixels_of,
)
from featkit.evaluate.edits import (
    EDITS_VERSION,
    SINGLE_EDITS,
    WORKING_SIDE,
    apply_edits,
    draw_compound,
    draw_single,
    working_image,
)
from featkit.evaluate.embedding import ImageModel, OnProgress, no_progress, read_blocks
from featkit.evaluate.retrieval import (
    ToVectors,
    average_precision,
    bootstrap_interval,
    find_places,
    recall_at_k,
    unchanged,
)
from featkit.geometry import Geometry
from featkit.images import decode
from featkit.sources import Source

NUM_EDITS = 4
RECALL_AT = 10
STRANGERS_ABOVE = 0.01  # share of images that another image is as near to as a copy
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class MethodScore:
    """Scores of one method of comparing images; `interval` is recall_at_1's 95 % bootstrap
    interval."""

    name: str
    recall_at_1: float
    interval: tuple[float, float]
    recall_at_10: float
    mean_average_precision: float
    single: dict[str, float]  # recall@1 of each single edit


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """The result of one method, query by query: each (P, E) float64.

    recall_at_1 and recall_at_10: 1 if the original is among the first k, a share for ties.
    precision: average precision. single: as in MethodScore.
    """

    name: str
    recall_at_1: np.ndarray
    recall_at_10: np.ndarray
    precision: np.ndarray
    single: dict[str, float]

    @property
    def score(self) -> MethodScore:
        """The means over all queries."""
        return MethodScore(
            name=self.name,
            recall_at_1=float(self.recall_at_1.mean()),
            interval=bootstrap_interval(self.recall_at_1),
            recall_at_10=float(self.recall_at_10.mean()),
            mean_average_precision=float(self.precision.mean()),
            single=self.single,
        )


@dataclass(frozen=True, kw_only=True)
class Separation:
    """The score that separates copies from strangers: 1 % of the images have another image that
    scores at least `level`, and `copies_above` of the compound edits score so with their
    original."""

    level: float
    copies_above: float


@dataclass(frozen=True, kw_only=True)
class CopiesReport:
    """The result of the benchmark; the model's score comes first."""

    num_images: int
    seed: int
    edits_version: int
    methods: list[MethodScore]
    separation: Separation
    # (key, reason) of images that could not be read
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def model(self) -> MethodScore:
        """The score of the evaluated model."""
        return self.methods[0]

    def method(self, name: str) -> MethodScore:
        """Return a method's score by name. Raises KeyError for an unknown name."""
        return {score.name: score for score in self.methods}[name]


def evaluate_copies(
    source: Source,
    embedder: ImageModel,
    *,
    seed: int = 0,
    on_progress: OnProgress = no_progress,
) -> CopiesReport:
    """Run the copies benchmark on all images of a source.

    Memory holds a block of images and, for each view of each image, the model's vector, raw pixels
    and a hash (3 kB per view). Raises InputError if fewer than two images can be read.
    """
    failures: list[tuple[str, str]] = []
    views = embed_views(source, embedder, failures, seed=seed, on_progress=on_progress)
    findings = find_originals(views, embedder.manifest.name)
    return report_findings(views, findings, seed=seed, failures=failures)


@dataclass(frozen=True, eq=False)
class EmbeddedViews:
    """All views of P images: V = 1 + E + singles, the original, its compound and single edits.

    vectors: (P, V, D) float32. pixels: (P, V, 3072) uint8. hashes: (P, V, 8) uint8.
    """

    vectors: np.ndarray
    pixels: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)


def embed_views(
    source: Source,
    embedder: ImageModel,
    failures: list[tuple[str, str]],
    *,
    seed: int = 0,
    on_progress: OnProgress = no_progress,
) -> EmbeddedViews:
    """Edit and embed the images of a source; unreadable ones go to `failures`.

    Memory and errors are those of `evaluate_copies`.
    """
    model, pixels, hashes = Collected(), Collected(), Collected()
    before = len(failures)

    def read(number: int) -> tuple[str, np.ndarray]:
        key = source.key(number)
        return key, decode(source.read(number), name=key, shorter_side=WORKING_SIDE).pixels

    count = 0
    for block in read_blocks(source, read, failures):
        views = [
            view for key, pixel_array in block for view in _views(pixel_array, seed=seed, key=key)
        ]
        model.take(
            embedder.infer(np.stack([embedder.geometry.apply(np.asarray(view)) for view in views]))
        )
        pixels.take(np.stack([pixels_of(view) for view in views]))
        hashes.take(np.stack([perceptual_hash(view) for view in views]))
        count += len(block)
        failed = len(failures) - before
        on_progress(count + failed, failed)
    if count < 2:
        raise InputError(
            f"{source.name} has {count} readable images; finding copies takes at least 2."
        )
    return EmbeddedViews(model.split(), pixels.split(), hashes.split())


def find_originals(views: EmbeddedViews, name: str, *, baselines: bool = True) -> list[Findings]:
    """Search the originals by the vectors of the model `name`, and with baselines=True by pixels
    and hashes.

    The model comes first.
    """
    findings = [_find(name, views.vectors, unchanged)]
    if baselines:
        raw = views.pixels
        gallery_mean = raw[:, 0].mean(axis=0, dtype=np.float64)
        findings += [
            _find(CENTERED_PIXELS, raw, lambda rows: pixel_vectors(rows, gallery_mean)),
            _find(PLAIN_PIXELS, raw, lambda rows: pixel_vectors(rows, 0.0)),
            _find(PERCEPTUAL_HASH, views.hashes, hash_vectors),
        ]
    return findings


def report_findings(
    views: EmbeddedViews,
    findings: Sequence[Findings],
    *,
    seed: int,
    failures: list[tuple[str, str]],
) -> CopiesReport:
    """Return the report of findings among views that were edited with `seed`."""
    return CopiesReport(
        num_images=len(views),
        seed=seed,
        edits_version=EDITS_VERSION,
        methods=[each.score for each in findings],
        separation=separation_of(views),
        failures=failures,
    )


def separation_of(views: EmbeddedViews) -> Separation:
    """Return the score that separates copies from strangers by the vectors of the model."""
    originals = views.vectors[:, 0].astype(np.float64)
    edits = views.vectors[:, 1 : 1 + NUM_EDITS].astype(np.float64)
    copies = np.einsum("ped,pd->pe", edits, originals).ravel()
    strangers = []
    for start in range(0, len(originals), ROWS_AT_ONCE):
        scores = originals[start : start + ROWS_AT_ONCE] @ originals.T
        np.fill_diagonal(scores[:, start:], -np.inf)
        strangers += scores.max(axis=1).tolist()
    level, above = copy_level(copies.tolist(), strangers)
    return Separation(level=round(level, 4), copies_above=round(above, 4))


def copy_level(copies: Sequence[float], strangers: Sequence[float]) -> tuple[float, float]:
    """Return the score that 1 % of the nearest strangers reach, and the share of copies that do.

    Without strangers the level is 1.
    """
    level = float(np.quantile(strangers, 1 - STRANGERS_ABOVE)) if len(strangers) else 1.0
    return level, float(np.mean(np.asarray(copies) >= level))


class CopyProbe:
    """Recall@1 of the copies benchmark on a fixed set of images, to watch a model while it trains.

    images: (H, W, 3) uint8 each. The images and their edits are prepared once, by `geometry`.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        geometry: Geometry,
        *,
        seed: int = 0,
        num_edits: int = NUM_EDITS,
    ) -> None:
        views = []
        for number, image in enumerate(images):
            original = working_image(image)
            edits = [
                draw_compound(seed=seed, key=str(number), number=edit) for edit in range(num_edits)
            ]
            views += [original, *(apply_edits(original, edit) for edit in edits)]
        self._shape = (len(images), 1 + num_edits)
        self.images = np.stack([geometry.apply(np.asarray(view)) for view in views])

    def recall_at_1(self, embed: Callable[[np.ndarray], np.ndarray]) -> float:
        """Return recall@1 of a model; embed maps (N, H, W, 3) uint8 to unit vectors (N, D)
        float32."""
        return self.recall_of(embed(self.images))

    def recall_of(self, vectors: np.ndarray) -> float:
        """Return recall@1 from the unit vectors (N, D) float32 of `images`."""
        views = vectors.reshape(*self._shape, vectors.shape[-1])
        return float(_recall(views[:, 0], views[:, 1:], unchanged, k=1).mean())


class Collected:
    """Rows collected block by block, with the views of an image in consecutive rows."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def take(self, rows: np.ndarray) -> None:
        """Add the rows of one block."""
        self._blocks.append(rows)

    def split(self) -> np.ndarray:
        """Return (P, 1 + E + singles, D): the original, its compound edits, its single edits."""
        rows = np.concatenate(self._blocks)
        self._blocks = [rows]  # frees the blocks
        return rows.reshape(-1, 1 + NUM_EDITS + len(SINGLE_EDITS), rows.shape[1])


def _views(pixels: np.ndarray, *, seed: int, key: str) -> list[Image.Image]:
    """Return the original, its compound edits and its single edits."""
    original = working_image(pixels)
    compounds = [
        apply_edits(original, draw_compound(seed=seed, key=key, number=number))
        for number in range(NUM_EDITS)
    ]
    singles = [
        apply_edits(original, [draw_single(name, seed=seed, key=key)]) for name in SINGLE_EDITS
    ]
    return [original, *compounds, *singles]


def _find(name: str, views: np.ndarray, to_vectors: ToVectors) -> Findings:
    gallery, compounds = views[:, 0], views[:, 1 : 1 + NUM_EDITS]
    places = find_places(
        _flat(compounds),
        gallery,
        np.repeat(np.arange(len(gallery)), NUM_EDITS),
        to_vectors=to_vectors,
    )
    single = {
        edit: float(
            _recall(gallery, views[:, 1 + NUM_EDITS + number, None], to_vectors, k=1).mean()
        )
        for number, edit in enumerate(SINGLE_EDITS)
    }
    return Findings(
        name=name,
        recall_at_1=recall_at_k(places, 1).reshape(-1, NUM_EDITS),
        recall_at_10=recall_at_k(places, RECALL_AT).reshape(-1, NUM_EDITS),
        precision=average_precision(places).reshape(-1, NUM_EDITS),
        single=single,
    )


def _recall(
    gallery: np.ndarray, queries: np.ndarray, to_vectors: ToVectors, *, k: int
) -> np.ndarray:
    """Return the recall (P * E,) of queries (P, E, ...) in a gallery (P, ...)."""
    right = np.repeat(np.arange(len(gallery)), queries.shape[1])
    return recall_at_k(find_places(_flat(queries), gallery, right, to_vectors=to_vectors), k)


def _flat(views: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(views.reshape(-1, views.shape[-1]))
