"""Images as the parts of forms, in batches that one request carries."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from featkit.errors import InputError
from featkit.images import ImageLike, is_single, load, name_of, printable, read_encoded

Part: TypeAlias = tuple[str, bytes]  # a name for messages, and the bytes of an image file


def batches(
    images: ImageLike | Iterable[ImageLike], *, max_images: int, max_bytes: int
) -> Iterator[list[Part]]:
    """Yield the parts of one image or several in order, in batches for one request each.

    Images are read when their batch is due. One that has more than `max_bytes` is a batch of its
    own. InputError, naming the value, if it is not an image; also if there are none.
    """
    batch: list[Part] = []
    num_bytes = 0
    any_given = False
    for index, image in enumerate(_listed(images)):
        any_given = True
        part = _part(image, index)
        if batch and (len(batch) == max_images or num_bytes + len(part[1]) > max_bytes):
            yield batch
            batch, num_bytes = [], 0
        batch.append(part)
        num_bytes += len(part[1])
    if not any_given:
        raise InputError("No images were given; give at least one.")
    yield batch


def _listed(images: ImageLike | Iterable[ImageLike]) -> Iterable[Any]:
    if isinstance(images, str) or is_single(images):
        return [images]
    if isinstance(images, Mapping | set | frozenset) or not isinstance(images, Iterable):
        raise InputError(f"images is {type(images).__name__}; give an image or a list of images.")
    return images


def _part(image: Any, index: int) -> Part:
    name = printable(name_of(image) or f"image {index}")
    # PNG is lossless, so the vector stays the same
    if isinstance(image, np.ndarray | Image.Image):
        buffer = io.BytesIO()
        Image.fromarray(load(image, name=name).pixels).save(buffer, "PNG", compress_level=1)
        return name, buffer.getvalue()
    return name, read_encoded(image, name=name)
