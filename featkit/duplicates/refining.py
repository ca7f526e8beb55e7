"""Lay two images over each other exactly, and measure how much they agree there.

    (H, W) pixels of the view, n pixels of the overlap, p = 6 parameters of the affine map

The map is found by Gauss-Newton steps that maximize the correlation of the view with the warped
image: ECC, Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation
Coefficient Maximization" (2008), forward additive.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

CONTRAST_RADIUS = 5  # pixels: contrast is relative to the squares of this radius around them
NOISE = 6.0  # gray levels: less contrast is not enhanced
MAX_STEPS = 12
PATIENCE = 3  # steps before one has to gain
LEAST_GAIN = 1e-4
DAMPING = 1e-3
LEAST_OVERLAP = 150  # pixels
# Neighboring pixels are alike, so that 25 count as one sample; the half width of the interval.
PIXELS_PER_SAMPLE, DEVIATIONS = 25, 3.3


def local_contrast(pixels: np.ndarray) -> np.ndarray:
    """Return pixels (H, W) float32 relative to the mean and the deviation of their surroundings."""
    differences = pixels - _local_mean(pixels)
    deviation = np.sqrt(_local_mean(differences * differences) + NOISE**2)
    contrast: np.ndarray = (differences / deviation).astype(np.float32)
    return contrast


def refined_agreement(view: np.ndarray, image: np.ndarray, warp: np.ndarray) -> float:
    """Return how much a view and an image agree where they overlap, from 0 to 1.

    view, image: local contrast, (H, W) float32. warp: (3, 3), a first map from pixels (x, y, 1) of
    the view to those of the image.

    It is the lower end of an interval of the correlation r over n pixels with detail, by Fisher's
    transformation: tanh(atanh r - 3.3 / sqrt(n / 25)).
    """
    correlation, detailed = _refined(view, image, warp)
    if detailed == 0:
        return 0.0
    z = np.arctanh(min(correlation, 1 - 1e-6)) - DEVIATIONS / np.sqrt(detailed / PIXELS_PER_SAMPLE)
    return max(0.0, float(np.tanh(z)))


def _refined(view: np.ndarray, image: np.ndarray, warp: np.ndarray) -> tuple[float, int]:
    """Return the largest correlation that the steps reach, and how many pixels have detail there:
    all of the overlap in an image full of detail, few if it shows one outline on plain ground.
    """
    H, W = view.shape
    down, across = np.gradient(image) if min(image.shape) > 1 else (image * 0, image * 0)
    layers = [Image.fromarray(each) for each in (image, across, down, np.ones_like(image))]
    # Coordinates from -1/2 to 1/2, so that all parameters have similar effects.
    y, x = ((np.indices((H, W), np.float32) + 0.5) / [[[H]], [[W]]] - 0.5).astype(np.float32)
    to_center = np.array([[1 / W, 0, -0.5], [0, 1 / H, -0.5], [0, 0, 1]])
    best, detailed = 0.0, 0
    for step in range(MAX_STEPS + 1):
        warped, gx, gy, inside = (_warped(layer, warp, W, H) for layer in layers)
        is_inside = inside > 0.99
        count = int(np.count_nonzero(is_inside))
        if count < LEAST_OVERLAP:
            break
        target, values = view[is_inside], warped[is_inside]
        target, values = target - target.mean(), values - values.mean()
        norms = float(np.linalg.norm(target)), float(np.linalg.norm(values))
        if min(norms) == 0:
            break
        correlation = float(target @ values) / (norms[0] * norms[1])
        if correlation > best + LEAST_GAIN:
            best, detailed = correlation, _detailed(np.square(target) + np.square(values))
        elif step > PATIENCE:
            break
        gx, gy, px, py = gx[is_inside], gy[is_inside], x[is_inside], y[is_inside]
        jacobian = np.stack([gx * px, gx * py, gx, gy * px, gy * py, gy], axis=1)  # (n, p)
        change = _step(jacobian - jacobian.mean(axis=0), target, values)
        warp = warp + np.vstack([change.reshape(2, 3), np.zeros(3)]) @ to_center
    return best, detailed


def _detailed(energy: np.ndarray) -> int:
    """Return how many pixels the energy, (n,), is spread over: twice its participation ratio, which
    is about n / 2 for pixels with a normal distribution, and at most n.
    """
    return min(len(energy), round(2 * float(energy.sum()) ** 2 / float(energy @ energy)))


def _step(jacobian: np.ndarray, target: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the change of the parameters, (p,), that maximizes the correlation of the target with
    the linearized values; all without their means.
    """
    hessian = (jacobian.T @ jacobian).astype(np.float64)
    hessian += np.eye(len(hessian)) * (DAMPING * np.trace(hessian) / len(hessian) + 1e-9)
    # one product of a matrix: for a vector, BLAS would start threads
    of_values, of_target = (jacobian.T @ np.stack([values, target], axis=1)).T
    projected = np.linalg.solve(hessian, of_values)
    numerator = values @ values - of_values @ projected
    denominator = target @ values - of_target @ projected
    if denominator > 0 and numerator > 0:
        gain = numerator / denominator
    else:  # the gain that gives both the same norm
        gain = np.linalg.norm(values) / np.linalg.norm(target)
    change: np.ndarray = np.linalg.solve(hessian, gain * of_target - of_values)
    return change


def _warped(layer: Image.Image, warp: np.ndarray, width: int, height: int) -> np.ndarray:
    data = tuple(warp[:2].ravel().tolist())
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.asarray(layer.transform((width, height), affine, data, bilinear))


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
