"""Whether another engine or precision gives a model's vectors: cosines, neighbors and copies
found, on photographs.

The reference is what a model file is proven by, ONNX Runtime in the file's own precision. Every
image is embedded by each run as `Embedder.embed` would, and so are compound edits of it
(edits.py), which look for their original.
"""

# P images, E edits of each, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featkit.backends import Run
from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.evaluate.edits import WORKING_SIDE, apply_edits, draw_compound, working_image
from featkit.evaluate.embedding import OnProgress, no_progress, read_blocks
from featkit.evaluate.retrieval import bootstrap_interval, find_places, recall_at_k
from featkit.images import decode
from featkit.sources import Source

# The least cosine, over all images, at which vectors may meet the reference's: at 0.9995 no score
# moves by more than 0.032, the sine of the angle between the two, and most by far less.
# featkit-tiny in bf16 has 0.99998 in the mean over 600 photographs, but one of them has 0.9985, so
# it does not pass; 2 of the 600 change their nearest neighbor and no copy is lost.
LEAST_COSINE = 0.9995
NUM_EDITS = 4
BOUND = 0.9  # an interval from 5 % to 95 %, of which the upper end is told
QUERY_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A run compared with the reference. Cosines are of the two vectors of an image.

    neighbors_changed: share of the images whose nearest one among the others is another.
    recall_at_1: share of the edited images, embedded by this run, that find their original among
    the reference's vectors, as when one made an index and the other searches it.
    recall_lost_at_most: the upper 95 % bound of recall_lost, by a paired bootstrap over the
    images.
    """

    run: Run
    num_images: int
    num_queries: int
    least_cosine: float
    mean_cosine: float
    neighbors_changed: float
    recall_at_1: float
    recall_lost: float
    recall_lost_at_most: float

    @property
    def holds(self) -> bool:
        """Whether vectors of the two may meet."""
        return self.least_cosine >= LEAST_COSINE


def compare_runs(
    source: Source,
    reference: Embedder,
    others: Sequence[Embedder],
    *,
    seed: int = 0,
    num_edits: int = NUM_EDITS,
    on_progress: OnProgress = no_progress,
) -> tuple[list[Agreement], list[tuple[str, str]]]:
    """Each of `others`, of the same model, against the reference; and the images that could not
    be read, and why.

    The others may be of another file of that model, in a lower precision.

    Memory holds a block of images and every view's vectors. InputError when fewer than two
    images can be read.
    """
    embedders = [reference, *others]
    collected: list[list[np.ndarray]] = [[] for _ in embedders]
    failures: list[tuple[str, str]] = []

    def read(number: int) -> np.ndarray:
        return _views(
            source.read(number), reference, key=source.key(number), seed=seed, num_edits=num_edits
        )

    count = 0
    for block in read_blocks(source, read, failures):
        for blocks, embedder in zip(collected, embedders, strict=True):
            blocks.append(embedder.infer(np.concatenate(block)))
        count += len(block)
        on_progress(count + len(failures), len(failures))
    if count < 2:
        raise InputError(
            f"{source.name} has {count} readable images; runs are compared on at least 2."
        )
    views = [np.concatenate(blocks).reshape(count, 1 + num_edits, -1) for blocks in collected]
    return [
        _compare(embedder.run, found, views[0])
        for embedder, found in zip(others, views[1:], strict=True)
    ], failures


def _views(data: bytes, embedder: Embedder, *, key: str, seed: int, num_edits: int) -> np.ndarray:
    original = working_image(decode(data, name=key, shorter_side=WORKING_SIDE).pixels)
    edited = [
        apply_edits(original, draw_compound(seed=seed, key=key, number=number))
        for number in range(num_edits)
    ]
    return np.stack(
        [
            embedder.prepare(data, name=key),
            *(embedder.geometry.apply(np.asarray(view)) for view in edited),
        ]
    )


def _compare(run: Run, found: np.ndarray, expected: np.ndarray) -> Agreement:
    """Views (P, 1 + E, D) of one run and of the reference."""
    gallery = np.ascontiguousarray(expected[:, 0])
    cosines = np.einsum("pd,pd->p", found[:, 0], gallery, dtype=np.float64)
    right, right_before = (_found_at_1(views[:, 1:], gallery) for views in (found, expected))
    lost = right_before - right
    changed = _nearest_others(found[:, 0]) != _nearest_others(gallery)
    return Agreement(
        run=run,
        num_images=len(found),
        num_queries=lost.size,
        least_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        neighbors_changed=float(changed.mean()),
        recall_at_1=float(right.mean()),
        recall_lost=float(lost.mean()),
        recall_lost_at_most=bootstrap_interval(lost, level=BOUND)[1],
    )


def _found_at_1(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(P, E), 1 where an edit's nearest row of the gallery is its original."""
    right = np.repeat(np.arange(len(gallery)), queries.shape[1])
    flat = np.ascontiguousarray(queries.reshape(-1, queries.shape[-1]))
    return recall_at_k(find_places(flat, gallery, right), 1).reshape(queries.shape[:2])


def _nearest_others(vectors: np.ndarray) -> np.ndarray:
    """(P,) the row nearest to each, itself left out; memory does not grow with P * P."""
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), QUERY_BLOCK):
        scores = vectors[start : start + QUERY_BLOCK] @ vectors.T
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf
        nearest[start : start + QUERY_BLOCK] = scores.argmax(axis=1)
    return nearest
