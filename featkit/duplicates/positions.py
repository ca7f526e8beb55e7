"""Positions in which one image, scaled, turned and mirrored, fits best into another.

    V views, G pairs of a view and another image, (H, W) pixels of a view, (h, w) of a template,
    10 templates: each of the angles, as it is and mirrored; M places of a template in a view

A template is moved over the view. The best position is that of the largest normalized
cross-correlation (Lewis, "Fast Normalized Cross-Correlation", 1995). Pairs of the same shapes are
computed together, since each array is so small that a call costs more than its arithmetic.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from featkit.duplicates.views import LEAST_DEVIATION, Look

SCALES = tuple(0.88**step for step in range(8))  # 1 to 0.41
ANGLES = (0, -7, 7, -14, 14)  # degrees
LEAST_SIDE = 7  # of a template: smaller ones agree with anything
IS_SINGLE_THREADED = os.environ.get("OPENBLAS_NUM_THREADS") == "1"
SINGLE_THREADED = 2**17  # multiplications; half of what makes OpenBLAS start threads
VIEWS_AT_ONCE = 16
KEPT_TEMPLATES = 2048  # at 20 kB for each image and shape of a view


class Position(NamedTuple):
    """A template in a view, with its correlation: the image turned by an angle, mirrored or not,
    scaled to (h, w) and moved by (top, left)."""

    correlation: float
    angle: int
    is_mirrored: bool
    h: int
    w: int
    top: int
    left: int


def best_positions(pairs: Sequence[tuple[Look, Look]], *, least: float) -> list[list[Position]]:
    """Return, for each pair of a view and another image, the best positions of that image.

    A list has one position for each angle at which the correlation is more than `least`.
    """
    groups: dict[tuple[tuple[int, ...], tuple[int, int]], dict[Look, list[int]]] = {}
    for number, (view, other) in enumerate(pairs):
        shapes = view.small.shape, other.image.size
        groups.setdefault(shapes, {}).setdefault(view, []).append(number)
    found: list[list[Position]] = [[] for _ in pairs]
    for group in groups.values():
        for start in range(0, len(group), VIEWS_AT_ONCE):
            some = [*group.items()][start : start + VIEWS_AT_ONCE]
            views = np.stack([view.small for view, _ in some])
            others = [[pairs[number][1] for number in numbers] for _, numbers in some]
            numbers = [number for _, each in some for number in each]
            for number, each in zip(numbers, _in_views(views, others, least), strict=True):
                found[number] = each
    return found


def _in_views(
    views: np.ndarray, others: Sequence[Sequence[Look]], least: float
) -> list[list[Position]]:
    """Return the best positions of images in views (V, H, W): of some in each view, G in all, which
    have the same size.
    """
    _, H, W = views.shape
    sums, squares = _integral(views), _integral(views * views)
    templates = [_templates(other, H, W) for each in others for other in each]
    view_of = np.repeat(np.arange(len(others)), [len(each) for each in others])
    best = np.full((len(templates), len(ANGLES)), least, np.float32)
    positions: list[dict[int, Position]] = [{} for _ in templates]
    for scaled in zip(*templates, strict=True):
        h, w = scaled[0].shape[1:]
        parts = _parts(views, h, w)  # (V, M, h * w)
        mean = _windows(sums, h, w) / (h * w)
        variance = _windows(squares, h, w) / (h * w) - mean * mean
        deviation = np.sqrt(np.maximum(variance, LEAST_DEVIATION**2)).astype(np.float32)
        correlations = _products(np.stack(scaled).reshape(len(scaled), -1, h * w), parts, others)
        correlations /= h * w * deviation.reshape(len(views), 1, -1)[view_of]  # (G, 10, M)
        by_angle = correlations.reshape(len(scaled), len(ANGLES), -1)  # mirrored after the others
        places = by_angle.argmax(axis=2)
        highest = np.take_along_axis(by_angle, places[:, :, None], axis=2)[:, :, 0]
        for number, angle in np.argwhere(highest > best).tolist():
            mirrored, place = divmod(int(places[number, angle]), parts.shape[1])
            top, left = divmod(place, W - w + 1)
            correlation = float(highest[number, angle])
            positions[number][angle] = Position(
                correlation, ANGLES[angle], mirrored == 1, h, w, top, left
            )
        best = np.maximum(best, highest)
    return [[*each.values()] for each in positions]


@lru_cache(maxsize=256)  # 160 kB each
def _templates(look: Look, H: int, W: int) -> list[np.ndarray]:
    """Return the templates of each scale, (10, h, w) float32: for each angle as it is and mirrored,
    with mean 0 and deviation 1, or 0 if there is no detail.
    """
    normalized: list[np.ndarray] = []
    for scaled in _scaled(look, H, W):
        pixels = scaled.astype(np.float32)  # (5, h, w)
        _, h, w = pixels.shape
        pixels -= pixels.mean(axis=(1, 2), keepdims=True)
        deviation = np.sqrt(np.square(pixels).mean(axis=(1, 2), keepdims=True))
        deviation[deviation < LEAST_DEVIATION] = np.inf
        pixels /= deviation
        normalized.append(np.stack([pixels, pixels[:, :, ::-1]], axis=1).reshape(-1, h, w))
    return normalized


@lru_cache(maxsize=KEPT_TEMPLATES)
def _scaled(look: Look, H: int, W: int) -> list[np.ndarray]:
    """Return an image turned by each angle and scaled by each scale: (5, h, w) uint8 each."""
    image = look.image
    turned = [image if angle == 0 else _turned(image, angle) for angle in ANGLES]
    fit = min(W / image.width, H / image.height)
    sizes = [
        (round(image.width * fit * scale), round(image.height * fit * scale)) for scale in SCALES
    ]
    sizes = [size for size in sizes if min(size) >= LEAST_SIDE]
    # on one canvas, which is faster than an array of each
    canvas = Image.new("L", (len(ANGLES) * W, sum(h for _, h in sizes)))
    top = 0
    for w, h in sizes:
        for number, each in enumerate(turned):
            canvas.paste(each.resize((w, h), Image.Resampling.BOX), (number * w, top))
        top += h
    pixels, templates, top = np.asarray(canvas), [], 0
    for w, h in sizes:
        rows = pixels[top : top + h, : len(ANGLES) * w].reshape(h, len(ANGLES), w)
        templates.append(rows.transpose(1, 0, 2))  # (5, h, w)
        top += h
    return templates


_scratch = threading.local()


def _parts(views: np.ndarray, h: int, w: int) -> np.ndarray:
    """Return all parts of (h, w) pixels of views (G, H, W), (G, M, h * w), until the next call.

    They are written into memory that a thread keeps, since new memory takes three times as long.
    """
    windows = sliding_window_view(views, (h, w), axis=(1, 2))
    kept = getattr(_scratch, "floats", np.empty(0, np.float32))
    if kept.size < windows.size:
        kept = _scratch.floats = np.empty(windows.size, np.float32)
    parts: np.ndarray = kept[: windows.size].reshape(windows.shape)
    np.copyto(parts, windows)
    return parts.reshape(len(views), -1, h * w)


def _products(
    templates: np.ndarray, parts: np.ndarray, others: Sequence[Sequence[Look]]
) -> np.ndarray:
    """Return the products of templates (G, 10, h * w) with all parts of their views, (G, 10, M).

    In pieces that BLAS computes in the calling thread: if threads that look started others for
    products as small as these, they would take five times as much time, most of it waiting.
    """
    M = parts.shape[1]
    products = np.empty((*templates.shape[:2], M), np.float32)
    start = 0
    for view, each in zip(parts, others, strict=True):
        stop = start + len(each)
        some = templates[start:stop].reshape(-1, templates.shape[2])  # (10 * k, h * w)
        into = products[start:stop].reshape(-1, M)
        at_once = M if IS_SINGLE_THREADED else max(1, SINGLE_THREADED // some.size)
        for first in range(0, M, at_once):
            into[:, first : first + at_once] = some @ view[first : first + at_once].T
        start = stop
    return products


def _turned(image: Image.Image, angle: int) -> Image.Image:
    """Turn an image and cut off the corners that are empty then."""
    left, top = margins(image, angle)
    turned = image.rotate(angle, resample=Image.Resampling.BILINEAR)
    return turned.crop((left, top, image.width - left, image.height - top))


def margins(image: Image.Image, angle: int) -> tuple[int, int]:
    """Return how much of a turned image is cut off on the left and at the top, and on the other
    sides.
    """
    margin = 0.16 * abs(angle) / 14
    return round(image.width * margin), round(image.height * margin)


def _integral(pixels: np.ndarray) -> np.ndarray:
    """Return sums over all upper left parts, (G, H + 1, W + 1) float64."""
    sums = np.pad(pixels.astype(np.float64), ((0, 0), (1, 0), (1, 0)))
    integral: np.ndarray = sums.cumsum(1).cumsum(2)
    return integral


def _windows(integral: np.ndarray, h: int, w: int) -> np.ndarray:
    """Return the sums over all windows of (h, w) pixels, (G, H - h + 1, W - w + 1)."""
    right = integral[:, h:, w:] - integral[:, :-h, w:]
    sums: np.ndarray = right - (integral[:, h:, :-w] - integral[:, :-h, :-w])
    return sums
