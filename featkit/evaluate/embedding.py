"""Images of a source as vectors of a model, beside their raw pixels, a block at a time.

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
# how many images were met, and how many of them failed
OnProgress: TypeAlias = Callable[[int, int], None]
# left, top, right, bottom, in the upright image's own pixels
Box: TypeAlias = tuple[float, float, float, float]


class ImageModel(Protocol):
    """What is evaluated: an Embedder, or a backbone in torch."""

    @property
    def manifest(self) -> Manifest:
        """What the model file says of itself, or would."""
        ...

    @property
    def geometry(self) -> Geometry:
        """How images are brought to its size."""
        ...

    def infer(self, images: np.ndarray, /) -> np.ndarray:
        """Prepared images (N, H, W, 3) uint8 to unit vectors (N, D) float32."""
        ...


@dataclass(frozen=True)
class Embedded(Generic[T]):
    """vectors (N, D) float32 of unit length; pixels (N, 3072) uint8, as baselines.pixels_of; what
    is known of each."""

    vectors: np.ndarray
    pixels: np.ndarray
    known: list[T]

    def __len__(self) -> int:
        return len(self.known)


def no_progress(_done: int, _failed: int) -> None:
    """The `on_progress` of who does not want to know."""


def read_blocks(
    source: Source, read: Callable[[int], T], failures: list[tuple[str, str]]
) -> Iterator[list[T]]:
    """What `read` makes of each item's number, IMAGES_A_BLOCK items at a time.

    An item for which it raises an InputError is added to `failures`, as its key and why, and left
    out.
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
    """The images that can be read, in the source's order; the others are added to `failures`.

    know: what is to be known of an item, by its number; asked before the image is decoded, and
    may refuse it by an InputError. box: the part of an item that is looked at, by its number; else
    all of it, decoded as `Embedder.embed` does. Memory holds a block of images, and of each its
    vector and 3 kB.
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
    """The part of an image (H, W, 3) within a box, rounded to whole pixels. InputError where none
    of it is inside."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = (round(side) for side in box)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        sides = ", ".join(f"{side:g}" for side in box)
        raise InputError(
            f"{name} has {width}×{height} pixels, none of them in the box {sides}; it is another"
            " image."
        )
    return pixels[top:bottom, left:right]
