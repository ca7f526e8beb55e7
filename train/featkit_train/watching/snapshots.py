"""What a backbone sees in a few held-out photographs, drawn while it learns: PCA of its patch
tokens, and attention.

The colors are the first three principal components of the patch tokens of all images together,
as DINOv2 shows them (arXiv 2304.07193, figure 1, without its removal of the background), each
brought to the same spread. Components have no sign, and change places as the network learns; so the
three are turned together (orthogonal Procrustes, Schönemann 1966) until they are nearest to an
earlier snapshot, the first one's to the photographs' own colors. A color so keeps its meaning
over time. Attention is the class token's in the last block.

Nothing is random, and nothing of the run is changed: an image drawn or not, the steps that follow
are the same. Letters: P patches of all images, D width, (h, w) patches of one, (H, W) pixels.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from featkit.atomic import remove_partials
from featkit.geometry import Geometry
from featkit_train.networks.base import Backbone
from featkit_train.networks.inference import evaluating
from featkit_train.networks.normalization import normalize
from featkit_train.watching.snapshot_files import (
    Snapshot,
    Tiles,
    list_snapshots,
    read_pca,
    write_photographs,
    write_snapshot,
)

NUM_IMAGES = 6
MOST_SNAPSHOTS = 12
# patches a side that are worth looking at; how many times the native size that may be
LEAST_GRID, MOST_TIMES = 24, 3
ROUNDING = 1e-6  # of the largest number, the spread of features that are all the same
# percentiles of a component that become 0 and 255: a few outliers would gray all the rest
FULL_RANGE = (2.0, 98.0)


class Snapshots:
    """Draws the same images again and again into `folder`, and keeps at most MOST_SNAPSHOTS
    steps, evenly spread.

    images: decoded, (H, W, 3) uint8 of any size, with their names; the first NUM_IMAGES are
    taken. They are prepared by `geometry` at a multiple of its size, unless `enlarge` is False: for
    a backbone that knows one size only.
    every: steps between two snapshots; kept are multiples of it (by 2, 4, 8 ... as the run goes on)
    and the newest.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[np.ndarray],
        names: Sequence[str],
        geometry: Geometry,
        *,
        every: int,
        enlarge: bool = True,
    ) -> None:
        if len(images) != len(names):
            raise ValueError(f"{len(images)} images have {len(names)} names")
        if every < 1:
            raise ValueError(f"a snapshot every {every} steps")
        self.folder, self.every = folder, every
        self.geometry = enlarged(geometry) if enlarge else geometry
        self.names = [str(name) for name in names[:NUM_IMAGES]]
        self.images = [self.geometry.apply(image) for image in images[:NUM_IMAGES]]

    def draw(self, backbone: Backbone, step: int) -> Snapshot | None:
        """Draw the images as `backbone` sees them after `step` steps; None where there is nothing
        to draw.

        Snapshots of later steps, which a run left that is now resumed from an earlier checkpoint,
        are removed.
        """
        if not self.images:
            return None
        remove_partials(self.folder)
        write_photographs(self.folder, self.images, self.names)
        earlier = []
        for snapshot in list_snapshots(self.folder):
            if snapshot.step < step:
                earlier.append(snapshot)
            else:
                shutil.rmtree(snapshot.folder)
        patch_tokens, attention = look(backbone, self.images, self.geometry)
        grids = [tokens.shape[:2] for tokens in patch_tokens]
        reference = self._reference(earlier, step)
        if reference is None or [colors.shape[:2] for colors in reference] != grids:
            reference = [
                patch_colors(image, grid) for image, grid in zip(self.images, grids, strict=True)
            ]
        colored = joint_pca_colors(patch_tokens, reference)
        drawn = write_snapshot(
            self.folder, step, [Tiles(*tiles) for tiles in zip(colored, attention, strict=True)]
        )
        for snapshot in earlier:
            first = snapshot.step == earlier[0].step
            if not first and not is_kept(snapshot.step, newest=step, every=self.every):
                shutil.rmtree(snapshot.folder)
        return drawn

    def _reference(self, earlier: Sequence[Snapshot], step: int) -> list[np.ndarray] | None:
        """Colors of the newest earlier snapshot that is there whether or not the run was stopped a
        while after `step`."""
        lasting = [
            snapshot
            for snapshot in earlier
            if is_kept(snapshot.step, newest=2 * step, every=self.every)
        ]
        kept = lasting or earlier[:1]
        return read_pca(kept[-1], len(self.images)) if kept else None


def enlarged(geometry: Geometry) -> Geometry:
    """The same view of an image at the least whole multiple of the size that gives LEAST_GRID
    patches, or MOST_TIMES it."""
    grid = min(geometry.height, geometry.width) // geometry.patch
    times = min(max(math.ceil(LEAST_GRID / max(grid, 1)), 1), MOST_TIMES)
    return dataclasses.replace(
        geometry,
        height=geometry.height * times,
        width=geometry.width * times,
        resize_to=geometry.resize_to * times,
    )


def is_kept(step: int, *, newest: int, every: int) -> bool:
    """Whether the snapshot of `step` stays when that of `newest` is there: it is that one, or lies
    on the grid.

    The grid's stride is the least of `every` times 1, 2, 4 ... with at most MOST_SNAPSHOTS - 2
    strides up to `newest`. It depends on nothing else, so that a run that was stopped and resumed
    keeps the same steps as one that was not.
    """
    stride = every
    while newest > stride * (MOST_SNAPSHOTS - 2):
        stride *= 2
    return step == newest or step % stride == 0


def look(
    backbone: Backbone, images: Sequence[np.ndarray], geometry: Geometry
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Patch tokens (h, w, D) float32 of each prepared image, and attention (heads, h, w), None
    without a class token.

    One image at a time, so that memory stays small beside training; the backbone's training modes
    come back as they were.
    """
    device = next(backbone.parameters()).device
    tokens: list[np.ndarray] = []
    attention: list[np.ndarray | None] = []
    with torch.no_grad(), evaluating(backbone):
        for image in images:
            pixels = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 255
            normalized = normalize(pixels, mean=geometry.mean, std=geometry.std)
            seen = backbone.activations(
                normalized, layers=(backbone.depth,), attention=backbone.has_attention
            )
            tokens.append(seen.features[0].patch_tokens[0].float().cpu().numpy())
            attention.append(
                None if seen.attention is None else seen.attention[0].float().cpu().numpy()
            )
    return tokens, attention


def joint_pca_colors(
    patch_tokens: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """(h, w, D) tokens of each image to (h, w, 3) uint8 colors, by one PCA over the patches of
    all.

    reference: (h, w, 3) of each image, the colors to keep to. Components run from dark at
    percentile FULL_RANGE[0] of all patches to bright at FULL_RANGE[1].
    """
    scores = pca_scores(
        np.concatenate([tokens.reshape(-1, tokens.shape[-1]) for tokens in patch_tokens])
    )
    wanted = np.concatenate([colors.reshape(-1, 3) for colors in reference]).astype(np.float64)
    colors = _to_bytes(laid_onto(scores, wanted))
    ends = np.cumsum([tokens.shape[0] * tokens.shape[1] for tokens in patch_tokens])
    parts = np.split(colors, ends[:-1])
    return [
        part.reshape(*tokens.shape[:2], 3) for part, tokens in zip(parts, patch_tokens, strict=True)
    ]


def pca_scores(tokens: np.ndarray) -> np.ndarray:
    """(P, D) to (P, 3) float64: the centered tokens along the three directions of most variance, the
    most first.

    Signs are the eigensolver's. What is not finite counts as zero, and so does a spread that is
    float32's rounding.
    """
    finite = np.nan_to_num(tokens.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    centered = finite - finite.mean(axis=0)
    _, directions = np.linalg.eigh(centered.T @ centered)  # (D, D), by rising variance
    scores = centered @ directions[:, ::-1][:, :3]
    scores[:, scores.std(axis=0) <= ROUNDING * np.abs(finite).max()] = 0.0
    return np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))


def laid_onto(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`scores` (P, 3), standardized and turned or mirrored as a whole, so that they are nearest to
    `reference` (P, 3).

    the orthogonal R with the least |S R - T|², which is U Vᵀ for the singular vectors of Sᵀ T; S
    and T are standardized
    """
    standardized = _standardized(scores)
    left, _, right = np.linalg.svd(standardized.T @ _standardized(reference))
    return np.asarray(standardized @ (left @ right))


def patch_colors(image: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(H, W, 3) uint8 to (h, w, 3): the mean color of each patch of a grid that divides the
    image."""
    height, width = grid
    rows, columns = image.shape[0] // height, image.shape[1] // width
    blocks = image[: height * rows, : width * columns].reshape(height, rows, width, columns, 3)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _standardized(columns: np.ndarray) -> np.ndarray:
    deviation = columns.std(axis=0)
    return np.asarray((columns - columns.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))


def _to_bytes(scores: np.ndarray) -> np.ndarray:
    low, high = np.percentile(scores, FULL_RANGE, axis=0)
    spread = np.where(high > low, high - low, 1.0)
    shares = np.where(high > low, (scores - low) / spread, 0.5)
    return np.round(np.clip(shares, 0, 1) * 255).astype(np.uint8)
