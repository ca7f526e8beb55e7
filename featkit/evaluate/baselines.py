"""Baselines that a model must beat: comparing images without any learning.

Raw pixels are the simplest embedding. The perceptual hash is what copy detectors without a model
use (pHash of Zauner, 2010, "Implementation and benchmarking of perceptual image hash functions", in
the variant of the Python library imagehash).
"""

# N images, G images of the gallery, Q queries

from __future__ import annotations

import numpy as np
from PIL import Image

from featkit.evaluate.retrieval import unit_rows

PIXELS_SIDE = 32
PIXELS_WIDTH = PIXELS_SIDE * PIXELS_SIDE * 3
HASH_SIDE, HASH_KEPT = 32, 8
# The names of baselines in reports.
CENTERED_PIXELS, PLAIN_PIXELS = "centered pixels", "plain pixels"
PERCEPTUAL_HASH, CHANCE = "perceptual hash", "chance"


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the whole image, stretched to 32 × 32, as one row (3072,) uint8."""
    small = image.resize((PIXELS_SIDE, PIXELS_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(small).reshape(-1)


def pixel_vectors(pixels: np.ndarray, mean: np.ndarray | float) -> np.ndarray:
    """Subtract `mean` from rows (N, 3072) uint8 and return unit vectors, float32.

    mean: that of the gallery, (3072,), or 0 for plain pixels.
    """
    return unit_rows(pixels.astype(np.float32) - np.float32(mean))


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Return 64 bits as (8,) uint8, one for each of the 8 × 8 lowest frequencies in gray.

    The image is resized to 32 × 32. A bit is set if its frequency is above the median.
    """
    gray = image.convert("L").resize(
        (HASH_SIDE, HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0
    )
    frequencies = DCT @ np.asarray(gray, np.float64) @ DCT.T
    return np.packbits(frequencies > np.median(frequencies))


def hash_vectors(hashes: np.ndarray) -> np.ndarray:
    """Return hashes (N, 8) uint8 as unit rows (N, 64) float32 of ±1/8.

    The inner product of two rows is exactly 1 - Hamming distance / 32.
    """
    return (np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1) / 8


def _low_dct(side: int, kept: int) -> np.ndarray:
    """Return the first `kept` rows (kept, side) of the DCT-II, cos(pi * k * (2 n + 1) / (2 side)).

    They are not normalized, since a hash depends on the order of values only.
    """
    k, n = np.arange(kept)[:, None], np.arange(side)[None, :]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * side))


DCT = _low_dct(HASH_SIDE, HASH_KEPT)
