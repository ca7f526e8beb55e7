"""Lay two images over each other exactly, and measure how much they agree there.

    (H, W) pixels of the view, n pixels of the overlap, p = 6 parameters of the affine map

The map is found by Gauss-Newton steps that maximize the correlation of the view with the warped
image: ECC, Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation
Coefficient Maximization" (2008), forward additive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

CONTRAST_RADIUS = 5  # pixels: contrast is relative to the squares of this radius around them
NOISE = 6.0  # gray levels: less contrast is not enhanced
MAX_STEPS = 12
PATIENCE = 3  # steps before one has to gain
LEAST_GAIN = 1e-4
DAMPING = 1e-3
LEAST_OVERLAP = 150  # pixels
SINGULAR = 1e-9  # determinant of a map that shrinks all to a line
FAR = 1e6  # pixels: a map with such a number has no overlap
# Neighboring pixels are alike, so that 25 count as one sample; the half width of the interval.
PIXELS_PER_SAMPLE, DEVIATIONS = 25, 3.3


def local_contrast(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (H, W) float32 relative to the mean and the deviation of their surroundings."""
    differences = pixels - _local_mean(pixels)
    deviation = np.sqrt(_local_mean(differences * differences) + NOISE**2)
    contrast: np.ndarray = (differences / deviation).astype(np.float32)
    return contrast


@dataclass(frozen=True, eq=False)
class Contrast:
    """The local contrast of an image, (H, W) float32, and its slopes across and down."""

    pixels: np.ndarray
    layers: tuple[Image.Image, Image.Image, Image.Image]  # the pixels, across, down

    @classmethod
    def of(cls, gray: np.ndarray) -> Contrast:
        """Take it from levels of gray, (H, W)."""
        pixels = local_contrast(gray)
        has_slopes = min(pixels.shape) > 1
        down, across = np.gradient(pixels) if has_slopes else (pixels * 0, pixels * 0)
        first, second, third = (Image.fromarray(each) for each in (pixels, across, down))
        return cls(pixels, (first, second, third))


def refined_agreement(view: Contrast, image: Contrast, warp: np.ndarray) -> float:
    """Return how much a view and an image agree where they overlap, from 0 to 1.

    warp: (3, 3), a first map from pixels (x, y, 1) of the view to those of the image.

    It is the lower end of an interval of the correlation r over n pixels with detail, by Fisher's
    transformation: tanh(atanh r - 3.3 / sqrt(n / 25)).
    """
    correlation, detailed = _refined(view, image, warp)
    if detailed == 0:
        return 0.0
    z = math.atanh(min(correlation, 1 - 1e-6)) - DEVIATIONS / math.sqrt(
        detailed / PIXELS_PER_SAMPLE
    )
    return max(0.0, math.tanh(z))


def _refined(view: Contrast, image: Contrast, warp: np.ndarray) -> tuple[float, int]:
    """Return the largest correlation that the steps reach, and how many pixels have detail there:
    all of the overlap in an image full of detail, few if it shows one outline on plain ground.
    """
    H, W = view.pixels.shape
    x, y = _coordinates(H, W)
    to_center = np.array([[1 / W, 0, -0.5], [0, 1 / H, -0.5], [0, 0, 1]])
    best, detailed = 0.0, 0
    for step in range(MAX_STEPS + 1):
        box, inside = _overlap(warp, view.pixels.shape, image.pixels.shape)
        if len(inside) < LEAST_OVERLAP:
            break
        here = slice(box.top, box.bottom), slice(box.left, box.right)
        target = view.pixels[here].reshape(-1)[inside]
        values = _warped(image.layers[0], warp, box)[inside]
        target, values = target - target.mean(), values - values.mean()
        norms = math.sqrt(target @ target), math.sqrt(values @ values)
        if min(norms) == 0:
            break
        correlation = float(target @ values) / (norms[0] * norms[1])
        if correlation > best + LEAST_GAIN:
            best, detailed = correlation, _detailed(np.square(target) + np.square(values))
        elif step > PATIENCE:
            break
        if step == MAX_STEPS:
            break
        jacobian = np.empty((6, len(inside)), np.float32)  # (p, n)
        for rows, layer in ((slice(0, 3), image.layers[1]), (slice(3, 6), image.layers[2])):
            slopes = _warped(layer, warp, box)[inside]
            jacobian[rows] = slopes
            jacobian[rows][0] *= x[here].reshape(-1)[inside]
            jacobian[rows][1] *= y[here].reshape(-1)[inside]
        jacobian -= jacobian.mean(axis=1, keepdims=True)
        change = _step(jacobian, target, values)
        warp = warp + np.vstack([change.reshape(2, 3), np.zeros(3)]) @ to_center
    return best, detailed


class _Box(NamedTuple):
    """A part of a view, in pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int


def _overlap(
    warp: np.ndarray, shape: tuple[int, ...], other: tuple[int, ...]
) -> tuple[_Box, np.ndarray]:
    """Return a part of a view that a map takes to all it covers of an image, and the positions in
    it, row by row, of the pixels that fall into the image: (n,) int64. shape: of the view.
    """
    H, W = shape
    h, w = other
    left, top, right, bottom = 0, 0, W, H
    (a, b, c), (d, e, f) = warp[:2].tolist()
    if not np.abs(warp).max() < FAR:  # or NaN
        return _Box(0, 0, 0, 0), np.zeros(0, np.int64)
    if abs(determinant := a * e - b * d) > SINGULAR:
        corners = [(x - c, y - f) for x in (0, w) for y in (0, h)]
        xs = [(e * x - b * y) / determinant for x, y in corners]
        ys = [(a * y - d * x) / determinant for x, y in corners]
        left, right = max(0, math.floor(min(xs)) - 1), min(W, math.ceil(max(xs)) + 1)
        top, bottom = max(0, math.floor(min(ys)) - 1), min(H, math.ceil(max(ys)) + 1)
    if left >= right or top >= bottom:
        return _Box(0, 0, 0, 0), np.zeros(0, np.int64)
    x, y = np.arange(left, right) + 0.5, np.arange(top, bottom)[:, None] + 0.5
    across, down = a * x + (b * y + c), d * x + (e * y + f)
    is_inside = (across >= 0) & (across < w) & (down >= 0) & (down < h)
    return _Box(left, top, right, bottom), np.flatnonzero(is_inside)


@lru_cache(maxsize=64)
def _coordinates(H: int, W: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of each pixel, (H, W) float32, from -1/2 to 1/2, so that all parameters of a
    map have similar effects.
    """
    y, x = ((np.indices((H, W), np.float32) + 0.5) / [[[H]], [[W]]] - 0.5).astype(np.float32)
    return x, y


def _detailed(energy: np.ndarray) -> int:
    """Return how many pixels the energy, (n,), is spread over: twice its participation ratio, which
    is about n / 2 for pixels with a normal distribution, and at most n.
    """
    return min(len(energy), round(2 * float(energy.sum()) ** 2 / float(energy @ energy)))


def _step(jacobian: np.ndarray, target: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the change of the parameters, (p,), that maximizes the correlation of the target with
    the linearized values; all without their means.
    """
    hessian = (jacobian @ jacobian.T).astype(np.float64)
    hessian += np.eye(len(hessian)) * (DAMPING * np.trace(hessian) / len(hessian) + 1e-9)
    # one product of a matrix: for a vector, BLAS would start threads
    of_values, of_target = np.stack([values, target]) @ jacobian.T
    projected, projected_target = np.linalg.solve(hessian, np.stack([of_values, of_target], 1)).T
    numerator = values @ values - of_values @ projected
    denominator = target @ values - of_target @ projected
    if denominator > 0 and numerator > 0:
        gain = numerator / denominator
    else:  # the gain that gives both the same norm
        gain = np.linalg.norm(values) / np.linalg.norm(target)
    change: np.ndarray = gain * projected_target - projected
    return change


def _warped(layer: Image.Image, warp: np.ndarray, box: _Box) -> np.ndarray:
    """Return a layer where a map takes the pixels of a part of a view, row by row: (n,) float32."""
    (a, b, c), (d, e, f) = warp[:2].tolist()
    x, y = box.left, box.top
    data = (a, b, a * x + b * y + c, d, e, d * x + e * y + f)
    size = box.right - box.left, box.bottom - box.top
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.asarray(layer.transform(size, affine, data, bilinear)).reshape(-1)


def _local_mean(pixels: np.ndarray) -> np.ndarray:
    """Return the means over the squares around the pixels, mirrored at the borders."""
    size = 2 * CONTRAST_RADIUS + 1
    mean = pixels.astype(np.float64)
    for axis in (0, 1):
        margins = [(0, 0), (0, 0)]
        margins[axis] = (CONTRAST_RADIUS + 1, CONTRAST_RADIUS)
        sums = np.pad(mean, margins, mode="symmetric").cumsum(axis)
        count = mean.shape[axis]
        upper = np.take(sums, np.arange(size, size + count), axis)
        mean = (upper - np.take(sums, np.arange(count), axis)) / size
    return mean
