"""Draw what a backbone sees in a few held-out images while it trains: the principal components of
its patch tokens, and attention.

Colors are the first three principal components of the patch tokens of all images together, as in
DINOv2 (arXiv 2304.07193, figure 1, without removing the background), scaled to equal spread.
Components have no sign and change order as the network learns. Therefore the three are rotated
together (orthogonal Procrustes, Schönemann 1966) to be nearest to an earlier snapshot, and the
first snapshot's to the images' own colors, so that a color keeps its meaning over time. Attention
is the class token's in the last block.

Nothing is random and the run's state does not change, so later steps are the same with or without a
snapshot. Letters: P patches of all images, D width, (h, w) patches of one, (H, W) pixels.
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
MAX_SNAPSHOTS = 12
# Images are enlarged to a grid of MIN_GRID patches a side, but at most MAX_TIMES the native size.
MIN_GRID, MAX_TIMES = 24, 3
ROUNDING = 1e-6  # spread of equal features, relative to the largest value
# Percentiles of a component that become 0 and 255; a few outliers would gray all other patches.
FULL_RANGE = (2.0, 98.0)


class Snapshots:
    """Draw the same images at several steps into `folder`, and keep at most MAX_SNAPSHOTS of them,
    evenly spread.

    images, names: decoded images (H, W, 3) uint8 of any size; the first NUM_IMAGES are drawn.
    enlarge: prepare them at a multiple of the geometry's size; False for a backbone of a fixed
    size. every: steps between snapshots. The newest is kept, and those at multiples of 1, 2, 4 ...
    times `every`, fewer as the run gets longer.
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
        """Draw the images as `backbone` sees them after `step` steps; None without images.

        Removes snapshots of later steps, left by a run that was then resumed from an earlier
        checkpoint.
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
        patch_tokens, attention = tokens_and_attention(backbone, self.images, self.geometry)
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
        """Return the colors of the newest earlier snapshot that both an unbroken and a resumed run
        would have kept."""
        lasting = [
            snapshot
            for snapshot in earlier
            if is_kept(snapshot.step, newest=2 * step, every=self.every)
        ]
        kept = lasting or earlier[:1]
        return read_pca(kept[-1], len(self.images)) if kept else None


def enlarged(geometry: Geometry) -> Geometry:
    """Return the geometry at the smallest multiple of its size with MIN_GRID patches a side, at
    most MAX_TIMES."""
    grid = min(geometry.height, geometry.width) // geometry.patch
    times = min(max(math.ceil(MIN_GRID / max(grid, 1)), 1), MAX_TIMES)
    return dataclasses.replace(
        geometry,
        height=geometry.height * times,
        width=geometry.width * times,
        resize_to=geometry.resize_to * times,
    )


def is_kept(step: int, *, newest: int, every: int) -> bool:
    """Return whether the snapshot of `step` is kept once that of `newest` exists.

    It is if it is the newest or a multiple of the stride: the smallest of `every` times 1, 2, 4 ...
    with at most MAX_SNAPSHOTS - 2 strides up to `newest`. The stride depends on nothing else, so a
    resumed run keeps the same steps as an unbroken one.
    """
    stride = every
    while newest > stride * (MAX_SNAPSHOTS - 2):
        stride *= 2
    return step == newest or step % stride == 0


def tokens_and_attention(
    backbone: Backbone, images: Sequence[np.ndarray], geometry: Geometry
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Return patch tokens (h, w, D) float32 and attention (heads, h, w) of each prepared image;
    None for attention without a class token.

    Processes one image at a time, since training needs the memory. The modules' training modes
    are restored.
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
    """Turn tokens (h, w, D) of each image into colors (h, w, 3) uint8, by one PCA over all patches.

    reference: colors (h, w, 3) of each image to stay near to. A component is 0 at percentile
    FULL_RANGE[0] of all patches and 255 at FULL_RANGE[1].
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
    """Project tokens (P, D), centered, on their three directions of most variance, the most first:
    (P, 3) float64.

    Signs are the eigensolver's. Values that are not finite count as zero, and so does a spread
    within float32's rounding.
    """
    finite = np.nan_to_num(tokens.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    centered = finite - finite.mean(axis=0)
    _, directions = np.linalg.eigh(centered.T @ centered)  # (D, D), by rising variance
    scores = centered @ directions[:, ::-1][:, :3]
    scores[:, scores.std(axis=0) <= ROUNDING * np.abs(finite).max()] = 0.0
    return np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))


def laid_onto(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Standardize `scores` (P, 3) and rotate or mirror them to be nearest to `reference` (P, 3).

    Orthogonal Procrustes: with S and T standardized, the R with the least |S R - T|² is U Vᵀ for
    the singular vectors of Sᵀ T.
    """
    standardized = _standardized(scores)
    left, _, right = np.linalg.svd(standardized.T @ _standardized(reference))
    return np.asarray(standardized @ (left @ right))


def patch_colors(image: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Return the mean color (h, w, 3) of each patch of an image (H, W, 3) uint8, whose sides the
    grid divides."""
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
