"""A second look at two images: does a part of one show what the other shows?

    (H, W) pixels of the larger view, (h, w) pixels of a template, N templates

One image, scaled, turned and mirrored in a few ways, is a template that is moved over the other.
The agreement is the largest normalized cross-correlation of any position (Lewis, "Fast Normalized
Cross-Correlation", 1995), and of both directions. It ignores brightness and contrast, and the slow
changes of a sky or a wall, which agree with any other.

How many edited copies and how many strangers reach SAME is measured by bench_look.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

SIDE = 48  # longer side of the larger view
TEMPLATE_SIDE = 96  # longer side of the image that templates are scaled from
DETAIL_RADIUS = 6  # pixels of that image: slower changes are taken off
SCALES = tuple(0.92**step for step in range(12))  # 1 to 0.4
ANGLES = (0, -7, 7, -14, 14)  # degrees
LEAST_SIDE = 10  # of a template: smaller ones agree with anything
LEAST_DEVIATION = 2.0  # gray levels: less is noise of a plain surface
# From here on two images show the same if the model says so too, and else from here on.
SAME, SURELY_SAME = 0.58, 0.75


@dataclass(frozen=True)
class Look:
    """An image prepared for looks, without its slow changes.

    small: (H, W) float32; image: the same, larger; gray: the mean level before.
    """

    small: np.ndarray
    image: Image.Image
    gray: float

    @classmethod
    def of(cls, jpeg: bytes) -> Look:
        """Prepare the bytes of a thumbnail."""
        with Image.open(io.BytesIO(jpeg)) as opened:
            image = _scaled(opened.convert("L"), TEMPLATE_SIDE)
        pixels = np.asarray(image, np.float32)
        slow = np.asarray(image.filter(ImageFilter.GaussianBlur(DETAIL_RADIUS)), np.float32)
        detail = Image.fromarray(np.clip(pixels - slow + 128, 0, 255).astype(np.uint8))
        return cls(np.asarray(_scaled(detail, SIDE), np.float32), detail, float(pixels.mean()))


def agreement(first: Look, second: Look, *, enough: float = 1.0) -> float:
    """Return how much two images agree, from about 0 to 1.

    The search ends at the first way to lay them over each other that reaches `enough`.
    """
    plain = [each.small.std() < LEAST_DEVIATION for each in (first, second)]
    if any(plain):  # nothing to correlate: equal if both have the same gray
        is_same_gray = abs(first.gray - second.gray) < 4 * LEAST_DEVIATION
        return 1.0 if all(plain) and is_same_gray else 0.0
    best = 0.0
    for angle in ANGLES:
        for larger, other in ((first, second), (second, first)):
            best = max(best, _best_position(larger.small, other.image, angle))
            if best >= enough:
                return best
    return best


def _best_position(view: np.ndarray, image: Image.Image, angle: int) -> float:
    """Return the largest correlation of any template of an image with any part of a view."""
    H, W = view.shape
    spectrum = np.fft.rfft2(view)
    sums, squares = _integral(view), _integral(view * view)
    best = 0.0
    for h, w, templates in _templates(image, angle, H, W):
        padded = np.zeros((len(templates), H, W), np.float32)
        padded[:, :h, :w] = templates
        products = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(padded)), s=(H, W))
        products = products[:, : H - h + 1, : W - w + 1]  # (N, H - h + 1, W - w + 1)
        mean = _windows(sums, h, w) / (h * w)
        variance = _windows(squares, h, w) / (h * w) - mean * mean
        deviation = np.sqrt(np.maximum(variance, LEAST_DEVIATION**2))
        best = max(best, float((products / (h * w * deviation)).max()))
    return best


def _templates(
    image: Image.Image, angle: int, H: int, W: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (h, w, templates (2, h, w)) of each scale: as it is and mirrored, with mean 0 and
    deviation 1.
    """
    turned = image if angle == 0 else _turned(image, angle)
    fit = min(W / turned.width, H / turned.height)
    for scale in SCALES:
        w, h = round(turned.width * fit * scale), round(turned.height * fit * scale)
        if min(h, w) < LEAST_SIDE:
            return
        pixels = np.asarray(turned.resize((w, h), Image.Resampling.BOX), np.float32)
        deviation = pixels.std()
        if deviation >= LEAST_DEVIATION:
            template = (pixels - pixels.mean()) / deviation
            yield h, w, np.stack([template, template[:, ::-1]])


def _turned(image: Image.Image, angle: int) -> Image.Image:
    """Turn an image and cut off the corners that are empty then."""
    turned = image.rotate(angle, resample=Image.Resampling.BILINEAR)
    margin = 0.16 * abs(angle) / 14
    left, top = round(image.width * margin), round(image.height * margin)
    return turned.crop((left, top, image.width - left, image.height - top))


def _scaled(image: Image.Image, longer_side: int) -> Image.Image:
    scale = longer_side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)


def _integral(pixels: np.ndarray) -> np.ndarray:
    """Return sums over all upper left parts, (H + 1, W + 1) float64."""
    sums: np.ndarray = np.pad(pixels.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return sums


def _windows(integral: np.ndarray, h: int, w: int) -> np.ndarray:
    """Return the sums over all windows of (h, w) pixels."""
    right = integral[h:, w:] - integral[:-h, w:]
    sums: np.ndarray = right - (integral[h:, :-w] - integral[:-h, :-w])
    return sums
