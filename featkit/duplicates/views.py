"""Thumbnails, prepared for looks at them (look.py)."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from featkit.errors import InputError
from featkit.wording import first_line

SMALL_SIDE = 32  # longer side of the view that templates are moved over
SIDE = 96  # longer side of the image that templates are scaled from, and of the refinement
DETAIL_RADIUS = 6  # pixels of that image: slower changes are taken off
LEAST_DEVIATION = 2.0  # gray levels: less is noise of a plain surface


@dataclass(frozen=True, eq=False)
class Look:
    """An image prepared for looks.

    small: (H, W) float32 without slow changes; image: the same, larger; pixels: (h, w) uint8, as
    large, with all changes; gray: their mean.
    """

    small: np.ndarray
    image: Image.Image
    pixels: np.ndarray
    gray: float

    @classmethod
    def of(cls, jpeg: bytes) -> Look:
        """Prepare the bytes of a thumbnail. InputError if they cannot be decoded."""
        image = _scaled(gray_image(jpeg), SIDE)
        pixels = np.asarray(image, np.float32)
        slow = np.asarray(image.filter(ImageFilter.GaussianBlur(DETAIL_RADIUS)), np.float32)
        detail = Image.fromarray(np.clip(pixels - slow + 128, 0, 255).astype(np.uint8))
        small = np.asarray(_scaled(detail, SMALL_SIDE), np.float32)
        return cls(small, detail, np.asarray(image), float(pixels.mean()))

    @property
    def is_plain(self) -> bool:
        """Return whether there is nothing to correlate."""
        return bool(self.small.std() < LEAST_DEVIATION)


def gray_image(jpeg: bytes) -> Image.Image:
    """Return a thumbnail's levels of gray. InputError if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(jpeg)) as opened:
            return opened.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"A thumbnail is damaged ({first_line(error)}); run `featkit check` on its index."
        ) from error


def _scaled(image: Image.Image, longer_side: int) -> Image.Image:
    scale = longer_side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
