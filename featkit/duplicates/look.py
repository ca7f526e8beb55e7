"""A second look at two images: does a part of one show what the other shows?

    (H, W) pixels of the larger view, (h, w) pixels of a template, N templates

1. One image, scaled, turned and mirrored in a few ways, is a template that is moved over the other,
   in both directions. The best position is that of the largest normalized cross-correlation (Lewis,
   "Fast Normalized Cross-Correlation", 1995).
2. From there, the two images are laid over each other exactly, by the affine map that maximizes
   their correlation (refining.py). Copies then agree in all their details; other images with a
   similar outline, a horizon or a worm on plain ground, do not.

The agreement is the lower end of an interval of that correlation, so a small overlap has to agree
more. It ignores brightness and contrast, of the whole and of each region.

How many edited copies and how many strangers reach SAME is measured by bench_look.py.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFilter

from featkit.duplicates.refining import local_contrast, refined_agreement

LOOK_VERSION = 2  # of the results; raise it with any number below or in refining.py
SIDE = 32  # longer side of the larger view
TEMPLATE_SIDE = 96  # longer side of the image that templates are scaled from, and of the refinement
DETAIL_RADIUS = 6  # pixels of that image: slower changes are taken off
SCALES = tuple(0.88**step for step in range(8))  # 1 to 0.41
ANGLES = (0, -7, 7, -14, 14)  # degrees
LEAST_SIDE = 7  # of a template: smaller ones agree with anything
LEAST_DEVIATION = 2.0  # gray levels: less is noise of a plain surface
PROMISING = 0.5  # correlation of a position from which the images are laid over each other exactly
SINGLE_THREADED = 2**17  # multiplications; half of what makes OpenBLAS start threads
# From here on two images show the same if the model says so too, and else from here on.
SAME, SURELY_SAME = 0.25, 0.35


@dataclass(frozen=True, eq=False)
class Look:
    """An image prepared for looks.

    small: (H, W) float32 without slow changes; image: the same, larger; fine: its local contrast,
    (h, w) float32; gray: the mean level before.
    """

    small: np.ndarray
    image: Image.Image
    fine: np.ndarray
    gray: float

    @classmethod
    def of(cls, jpeg: bytes) -> Look:
        """Prepare the bytes of a thumbnail."""
        with Image.open(io.BytesIO(jpeg)) as opened:
            image = _scaled(opened.convert("L"), TEMPLATE_SIDE)
        pixels = np.asarray(image, np.float32)
        slow = np.asarray(image.filter(ImageFilter.GaussianBlur(DETAIL_RADIUS)), np.float32)
        detail = Image.fromarray(np.clip(pixels - slow + 128, 0, 255).astype(np.uint8))
        small = np.asarray(_scaled(detail, SIDE), np.float32)
        return cls(small, detail, local_contrast(pixels), float(pixels.mean()))


class _Position(NamedTuple):
    """A template in a view, with its correlation: the image turned by an angle, mirrored or not,
    scaled to (h, w) and moved by (top, left)."""

    correlation: float
    angle: int
    is_mirrored: bool
    h: int
    w: int
    top: int
    left: int


def agreement(first: Look, second: Look, *, enough: float = 1.0) -> float:
    """Return how much two images agree, from 0 to 1.

    The search ends at the first way to lay them over each other that reaches `enough`.
    """
    plain = [each.small.std() < LEAST_DEVIATION for each in (first, second)]
    if any(plain):  # nothing to correlate: equal if both have the same gray
        is_same_gray = abs(first.gray - second.gray) < 4 * LEAST_DEVIATION
        return 1.0 if all(plain) and is_same_gray else 0.0
    positions = [
        (position, view, other)
        for view, other in ((first, second), (second, first))
        for position in _best_positions(view.small, other)
        if position.correlation >= PROMISING
    ]
    best = 0.0
    for position, view, other in sorted(positions, key=lambda each: -each[0].correlation):
        warp = _warp(position, view, other)
        best = max(best, refined_agreement(view.fine, other.fine, warp))
        if best >= enough:
            return best
    return best


def _best_positions(view: np.ndarray, other: Look) -> list[_Position]:
    """Return, for each angle, where a template of an image that is turned by it has the largest
    correlation with a part of a view."""
    H, W = view.shape
    sums, squares = _integral(view), _integral(view * view)
    best = [_Position(0.0, angle, False, 0, 0, 0, 0) for angle in ANGLES]
    for h, w, templates in _templates(other, H, W):
        parts = sliding_window_view(view, (h, w)).reshape(-1, h * w)  # (positions, h * w)
        products = _product(parts, templates)  # (positions, N)
        mean = _windows(sums, h, w) / (h * w)
        variance = _windows(squares, h, w) / (h * w) - mean * mean
        deviation = np.sqrt(np.maximum(variance, LEAST_DEVIATION**2)).reshape(-1, 1)
        correlations = (products / (h * w * deviation)).T.reshape(len(ANGLES), -1)
        for number, highest in enumerate(correlations.argmax(axis=1).tolist()):
            correlation = float(correlations[number, highest])
            if correlation > best[number].correlation:
                mirrored, place = divmod(highest, len(parts))
                top, left = divmod(place, W - w + 1)
                angle = ANGLES[number]
                best[number] = _Position(correlation, angle, mirrored == 1, h, w, top, left)
    return best


@lru_cache(maxsize=64)  # 80 kB each; the pairs of one image follow each other
def _templates(look: Look, H: int, W: int) -> list[tuple[int, int, np.ndarray]]:
    """Return (h, w, templates (N, h * w)) of each scale: for each angle as it is and mirrored, with
    mean 0 and deviation 1, or 0 if there is no detail.
    """
    image = look.image
    made: list[tuple[int, int, np.ndarray]] = []
    turned = [image if angle == 0 else _turned(image, angle) for angle in ANGLES]
    fit = min(W / image.width, H / image.height)
    for scale in SCALES:
        w, h = round(image.width * fit * scale), round(image.height * fit * scale)
        if min(h, w) < LEAST_SIDE:
            break
        pixels = np.stack(
            [np.asarray(each.resize((w, h), Image.Resampling.BOX), np.float32) for each in turned]
        )
        pixels -= pixels.mean(axis=(1, 2), keepdims=True)
        deviation = pixels.std(axis=(1, 2), keepdims=True)
        deviation[deviation < LEAST_DEVIATION] = np.inf
        pixels /= deviation
        made.append((h, w, np.stack([pixels, pixels[:, :, ::-1]], axis=1).reshape(-1, h * w)))
    return made


def _product(parts: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Return parts @ templates.T, in pieces that BLAS computes in the calling thread.

    Looks run in one thread for each processor. If each started threads for products as small as
    these, they would take five times as much time, most of it waiting.
    """
    at_once = max(1, SINGLE_THREADED // templates.size)
    pieces = [
        parts[start : start + at_once] @ templates.T for start in range(0, len(parts), at_once)
    ]
    return np.concatenate(pieces)


def _turned(image: Image.Image, angle: int) -> Image.Image:
    """Turn an image and cut off the corners that are empty then."""
    left, top = _margins(image, angle)
    turned = image.rotate(angle, resample=Image.Resampling.BILINEAR)
    return turned.crop((left, top, image.width - left, image.height - top))


def _margins(image: Image.Image, angle: int) -> tuple[int, int]:
    """Return how much is cut off on the left and at the top, and on the other sides."""
    margin = 0.16 * abs(angle) / 14
    return round(image.width * margin), round(image.height * margin)


def _warp(position: _Position, view: Look, other: Look) -> np.ndarray:
    """Return the map (3, 3) from pixels (x, y, 1) of `view.fine` to those of `other.fine`."""
    image = other.image
    left, top = _margins(image, position.angle)
    small_h, small_w = view.small.shape
    fine_h, fine_w = view.fine.shape
    warp = _scale(small_w / fine_w, small_h / fine_h)
    warp = _shift(-position.left, -position.top) @ warp
    if position.is_mirrored:
        warp = _shift(position.w, 0) @ _scale(-1, 1) @ warp
    inner_w, inner_h = image.width - 2 * left, image.height - 2 * top
    warp = _shift(left, top) @ _scale(inner_w / position.w, inner_h / position.h) @ warp
    cos, sin = np.cos(np.radians(position.angle)), np.sin(np.radians(position.angle))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])  # y points down
    center = (image.width / 2, image.height / 2)
    turned: np.ndarray = _shift(*center) @ turn @ _shift(-center[0], -center[1]) @ warp
    return turned


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _scale(x: float, y: float) -> np.ndarray:
    return np.diag([x, y, 1.0])


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
