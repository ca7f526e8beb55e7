"""Edits that people make before they repost an image: named, versioned and reproducible by a seed.

The parameters of an edit are drawn first and applied later, so an edit can be printed, tested and
repeated. Lengths are relative to the image, so an edit looks the same at every size. Random numbers
are keyed by (seed, purpose, image), never by order: an image gets the same edits alone, in a folder
and in any thread.

Changing any number or order below changes every score, so raise EDITS_VERSION with it. Screenshots,
collages, stickers, perspective and moiré are left out, though copy detection benchmarks such as
DISC21 include them.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

EDITS_VERSION = 1

WORKING_SIDE = 256  # pixels of the shorter side at which edits are applied
# Pixels of the longer side. JPEG ends at 65,535, and memory would run out before that.
WORKING_LONGEST = 4096

CROP_AREA = (0.30, 0.80)  # share of the image that is kept
CROP_ASPECT = (3 / 4, 4 / 3)  # aspect ratio of the crop, as a multiple of the image's own
ROTATE_DEGREES = (-20.0, 20.0)
COLOR_FACTOR = (0.7, 1.3)  # of brightness, contrast and saturation; 1 changes nothing
JPEG_QUALITY = 30
# standard deviation as a share of the shorter side: 1.5 to 3 pixels at 256
BLUR_RADIUS = (0.006, 0.012)
TEXT_HEIGHT = (0.10, 0.20)  # height of the letters, as a share of the shorter side
TEXTS = (
    "SALE",
    "follow for more",
    "© all rights reserved",
    "Best of summer",
    "READ THIS",
    "when you see it",
    "breaking news",
    "sample 0815",
    "No filter!",
    "10 out of 10",
)


class Edit(Protocol):
    """An edit with its parameters drawn, and the name it has in a report's breakdown."""

    name: ClassVar[str]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return an edited copy of an RGB image."""
        ...


@dataclass(frozen=True)
class Crop:
    """Keep a box of `area` of the image, with `aspect` times its aspect ratio.

    `across` and `down` (0 .. 1) give the position of the box.
    """

    name: ClassVar[str] = "crop"
    area: float
    aspect: float
    across: float
    down: float

    @classmethod
    def draw(cls, random: Random) -> Crop:
        """Draw the area, then an aspect ratio with which a box of that area fits the image."""
        area = random.uniform(*CROP_AREA)
        narrowest, widest = max(CROP_ASPECT[0], area), min(CROP_ASPECT[1], 1 / area)
        aspect = math.exp(random.uniform(math.log(narrowest), math.log(widest)))
        return cls(area, aspect, random.random(), random.random())

    def __call__(self, image: Image.Image) -> Image.Image:
        """Crop at whole pixels, keeping at least one."""
        width = max(1, round(image.width * math.sqrt(self.area * self.aspect)))
        height = max(1, round(image.height * math.sqrt(self.area / self.aspect)))
        left, top = (
            round((image.width - width) * self.across),
            round((image.height - height) * self.down),
        )
        return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Rotate:
    """Rotate counter-clockwise about the center; the size stays and the corners become black."""

    name: ClassVar[str] = "rotate"
    degrees: float

    @classmethod
    def draw(cls, random: Random) -> Rotate:
        """Draw the angle uniformly from ROTATE_DEGREES."""
        return cls(random.uniform(*ROTATE_DEGREES))

    def __call__(self, image: Image.Image) -> Image.Image:
        """Rotate with bilinear interpolation."""
        return image.rotate(self.degrees, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Flip:
    """Mirror the image horizontally."""

    name: ClassVar[str] = "flip"

    @classmethod
    def draw(cls, random: Random) -> Flip:  # noqa: ARG003
        """Return a flip; `draw_compound` decides whether to use one."""
        return cls()

    def __call__(self, image: Image.Image) -> Image.Image:
        """Mirror the image."""
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True)
class Color:
    """Scale brightness, contrast and saturation, in this order; a factor of 1 changes nothing."""

    name: ClassVar[str] = "color"
    brightness: float
    contrast: float
    saturation: float

    @classmethod
    def draw(cls, random: Random) -> Color:
        """Draw each factor uniformly from COLOR_FACTOR."""
        return cls(
            random.uniform(*COLOR_FACTOR),
            random.uniform(*COLOR_FACTOR),
            random.uniform(*COLOR_FACTOR),
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply Pillow's ImageEnhance."""
        image = ImageEnhance.Brightness(image).enhance(self.brightness)
        image = ImageEnhance.Contrast(image).enhance(self.contrast)
        return ImageEnhance.Color(image).enhance(self.saturation)


@dataclass(frozen=True)
class Jpeg:
    """Save the image as a small JPEG file and open it again."""

    name: ClassVar[str] = "jpeg"
    quality: int

    @classmethod
    def draw(cls, random: Random) -> Jpeg:  # noqa: ARG003  # as for Flip
        """Return an edit of JPEG_QUALITY."""
        return cls(JPEG_QUALITY)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Compress with Pillow's default chroma subsampling."""
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=self.quality)
        return Image.open(buffer).convert("RGB")


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; `radius` is the standard deviation as a share of the shorter side."""

    name: ClassVar[str] = "blur"
    radius: float

    @classmethod
    def draw(cls, random: Random) -> Blur:
        """Draw the radius uniformly from BLUR_RADIUS."""
        return cls(random.uniform(*BLUR_RADIUS))

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blur with Pillow's repeated box filters."""
        return image.filter(ImageFilter.GaussianBlur(self.radius * min(image.size)))


@dataclass(frozen=True)
class Text:
    """Draw a line of text on the image, light with a dark outline or dark with a light one."""

    name: ClassVar[str] = "text"
    words: str
    height: float
    across: float
    down: float
    light: bool

    @classmethod
    def draw(cls, random: Random) -> Text:
        """Draw one of TEXTS, a size from TEXT_HEIGHT, and a position uniformly."""
        words = TEXTS[int(random.random() * len(TEXTS))]
        return cls(
            words,
            random.uniform(*TEXT_HEIGHT),
            random.random(),
            random.random(),
            random.random() < 0.5,
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        """Draw the text in Pillow's default font, reduced if it is wider than the image."""
        image = image.copy()
        draw = ImageDraw.Draw(image)
        size = max(1, round(self.height * min(image.size)))
        length = draw.textlength(self.words, font=_font(size))
        if length > 0.95 * image.width:
            size = max(1, int(size * 0.95 * image.width / length))
        left, top, right, bottom = draw.textbbox((0, 0), self.words, font=_font(size))
        ink, rim = ("white", "black") if self.light else ("black", "white")
        place = (
            (image.width - (right - left)) * self.across - left,
            (image.height - (bottom - top)) * self.down - top,
        )
        draw.text(
            place, self.words, fill=ink, font=_font(size), stroke_width=size // 12, stroke_fill=rim
        )
        return image


_DRAW: dict[str, Callable[[Random], Edit]] = {
    kind.name: kind.draw for kind in (Crop, Rotate, Flip, Color, Jpeg, Blur, Text)
}
SINGLE_EDITS = tuple(_DRAW)  # the names, in the order of a report's breakdown
FINISHES = ("jpeg", "blur", "text")  # a compound edit ends with one of them


def working_image(pixels: np.ndarray) -> Image.Image:
    """Return the image for edits and the gallery, from pixels (H, W, 3) uint8.

    It is reduced to a shorter side of WORKING_SIDE, but never enlarged.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, WORKING_SIDE / min(height, width), WORKING_LONGEST / max(height, width))
    image = Image.fromarray(pixels)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return (
        image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        if size != image.size
        else image
    )


def random_for(seed: int, purpose: str, key: str) -> Random:
    """Return a random generator for one image and one purpose."""
    # Python's generator guarantees the same sequence in later versions; numpy's does not.
    digest = hashlib.sha256(f"{EDITS_VERSION}\0{seed}\0{purpose}\0{key}".encode()).digest()
    return Random(int.from_bytes(digest, "big"))


def draw_single(name: str, *, seed: int, key: str) -> Edit:
    """Draw the edit of this name (one of SINGLE_EDITS) for the image `key`."""
    # the stream's name is part of EDITS_VERSION: changing it would draw different edits
    stream = "colour" if name == Color.name else name  # quoted
    return _DRAW[name](random_for(seed, stream, key))


def draw_compound(*, seed: int, key: str, number: int) -> tuple[Edit, ...]:
    """Draw compound edit `number` of the image `key`.

    It rotates, crops, flips with probability ½, changes the colors, and ends with one of FINISHES.
    """
    random = random_for(seed, f"compound {number}", key)
    rotate, crop = Rotate.draw(random), Crop.draw(random)
    flip = (Flip(),) if random.random() < 0.5 else ()
    color = Color.draw(random)
    finish = _DRAW[FINISHES[int(random.random() * len(FINISHES))]](random)
    return (rotate, crop, *flip, color, finish)


def apply_edits(image: Image.Image, edits: Sequence[Edit]) -> Image.Image:
    """Apply edits one after the other to a copy of `image`."""
    for edit in edits:
        image = edit(image)
    return image


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
