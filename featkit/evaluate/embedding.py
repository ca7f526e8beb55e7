"""Embed the images of a source block by block, and keep their raw pixels as a baseline.

Letters: N images that could be read, (H, W) pixels, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from featkit.errors import InputError
from featkit.evaluate.baselines import PIXELS_WIDTH, pixels_of
from featkit.geometry import Geometry
from featkit.images import THUMBNAIL_SIDE, decode
from featkit.modelfile import Manifest
from featkit.sources import Source

IMAGES_A_BLOCK = 16
T = TypeVar("T")
# number of images done, and how many of them failed
OnProgress: TypeAlias = Callable[[int, int], None]
# left, top, right, bottom, in pixels of the upright image
Box: TypeAlias = tuple[float, float, float, float]


class ImageModel(Protocol):
    """A model to evaluate: an Embedder, or a torch backbone."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the model's file, or the one that an export would write."""
        ...

    @property
    def geometry(self) -> Geometry:
        """The recipe that prepares images for the model."""
        ...

    def infer(self, images: np.ndarray, /) -> np.ndarray:
        """Return unit vectors (N, D) float32 of prepared images (N, H, W, 3) uint8."""
        ...


@dataclass(frozen=True)
class Embedded(Generic[T]):
    """Embedded images.

    vectors: (N, D) float32, unit length. pixels: (N, 3072) uint8, from `baselines.pixels_of`.
    known: what `know` returned for each image, such as its label.
    """

    vectors: np.ndarray
    pixels: np.ndarray
    known: list[T]

    def __len__(self) -> int:
        return len(self.known)


def no_progress(_done: int, _failed: int) -> None:
    """Ignore progress; the default `on_progress`."""


def read_blocks(
    source: Source, read: Callable[[int], T], failures: list[tuple[str, str]]
) -> Iterator[list[T]]:
    """Yield blocks of IMAGES_A_BLOCK results of `read`, which takes an item's index.

    An item for which it raises InputError is left out and added to `failures` as (key, reason).
    """
    block: list[T] = []
    for number in range(len(source)):
        try:
            block.append(read(number))
        except InputError as error:
            failures.append((source.key(number), str(error)))
        if len(block) == IMAGES_A_BLOCK:
            yield block
            block = []
    if block:
        yield block


def embed_images(
    source: Source,
    model: ImageModel,
    know: Callable[[int], T],
    failures: list[tuple[str, str]],
    *,
    box: Callable[[int], Box] | None = None,
    on_progress: OnProgress = no_progress,
) -> Embedded[T]:
    """Embed the readable images of a source in order, and add the others to `failures`.

    know: returns what to keep about item i, such as its label. It is called before the image is
    decoded and may skip the item by raising InputError.
    box: returns the region of item i to embed. Without it the whole image is embedded, decoded as
    `Embedder.embed` does.

    Memory holds a block of images, and a vector and 3 kB for each image.
    """
    side = max(model.geometry.shorter_side, THUMBNAIL_SIDE)
    before = len(failures)

    def read(number: int) -> tuple[T, np.ndarray, np.ndarray]:
        known, key = know(number), source.key(number)
        if box is None:
            pixels = decode(source.read(number), name=key, shorter_side=side).pixels
        else:
            pixels = cut(decode(source.read(number), name=key).pixels, box(number), name=key)
        return known, model.geometry.apply(pixels), pixels_of(Image.fromarray(pixels))

    vectors, raw, known = [], [], []
    for block in read_blocks(source, read, failures):
        vectors.append(model.infer(np.stack([image for _, image, _ in block])))
        raw.append(np.stack([pixels for _, _, pixels in block]))
        known += [what for what, _, _ in block]
        failed = len(failures) - before
        on_progress(len(known) + failed, failed)
    if not known:
        return Embedded(
            np.zeros((0, model.manifest.width), np.float32),
            np.zeros((0, PIXELS_WIDTH), np.uint8),
            [],
        )
    return Embedded(np.concatenate(vectors), np.concatenate(raw), known)


def cut(pixels: np.ndarray, box: Box, *, name: str) -> np.ndarray:
    """Crop an image (H, W, 3) to a box, rounded to whole pixels.

    Raises InputError if the box and the image do not overlap.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = (round(side) for side in box)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        sides = ", ".join(f"{side:g}" for side in box)
        raise InputError(
            f"{name} has {width}×{height} pixels, none of them in the box {sides}; check that the"
            " image and the box belong together."
        )
    return pixels[top:bottom, left:right]
