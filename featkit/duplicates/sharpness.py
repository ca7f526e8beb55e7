"""The sharpness of an image, from its thumbnail."""

from __future__ import annotations

import numpy as np

from featkit.duplicates.views import gray_image
from featkit.errors import InputError
from featkit.index import Index, Item

PLAIN = 1.0  # variance of gray levels: less is a plain surface


def sharpness(jpeg: bytes) -> float:
    """Return the variance of the Laplacian of a thumbnail (Pech-Pacheco et al. 2000), divided by
    that of the gray levels, so that contrast does not matter. InputError if it cannot be decoded.
    """
    gray = np.asarray(gray_image(jpeg), np.float64)
    if min(gray.shape) < 3:
        return 0.0
    neighbors = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    laplacian = neighbors - 4 * gray[1:-1, 1:-1]
    return float(laplacian.var() / max(PLAIN, gray.var()))


def sharpness_of(index: Index, item: Item) -> float:
    """Return the sharpness of an item of an index, 0 without a thumbnail that can be decoded."""
    jpeg = index.read(lambda state: state.catalogue.thumbnail(item.id))
    try:
        return sharpness(jpeg) if jpeg else 0.0
    except InputError:
        return 0.0
