"""A second look at two images: does a part of one show what the other shows?

1. One image, scaled, turned and mirrored in a few ways, is moved over the other, in both directions
   (positions.py).
2. From the best positions, the two images are laid over each other exactly, by the affine map that
   maximizes their correlation (refining.py). Copies then agree in all their details; other images
   with a similar outline, a horizon or a worm on plain ground, do not.

The agreement is the lower end of an interval of that correlation, so a small overlap has to agree
more. It ignores brightness and contrast, of the whole and of each region.

How many edited copies and how many strangers reach SAME is measured by bench_look.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from featkit.duplicates.positions import Position, best_positions, margins
from featkit.duplicates.refining import Contrast, refined_agreement
from featkit.duplicates.views import LEAST_DEVIATION, Look

# of the results; raise it with any number below or in views.py, positions.py and refining.py
LOOK_VERSION = 2
PROMISING = 0.5  # correlation of a position from which the images are laid over each other exactly
SAME_GRAY = 4 * LEAST_DEVIATION  # gray levels: two plain images with less between them are equal
# From here on two images show the same if the model says so too, and else from here on.
SAME, SURELY_SAME = 0.25, 0.35


def agreement(first: Look, second: Look, *, enough: float = 1.0) -> float:
    """Return how much two images agree, from 0 to 1.

    The search ends at the first way to lay them over each other that reaches `enough`.
    """
    return agreements([(first, second, enough)])[0]


def agreements(pairs: Sequence[tuple[Look, Look, float]]) -> list[float]:
    """Return the agreement of each of several pairs, which come with what is enough for them.

    Many pairs at once take less than half of the time that they take one after the other.
    """
    agreed = [_agreement_of_plain(first, second) for first, second, _ in pairs]
    detailed = [number for number, each in enumerate(agreed) if each is None]
    ways = [(pairs[number][0], pairs[number][1]) for number in detailed]
    ways += [(second, first) for first, second in ways]
    positions = best_positions(ways, least=PROMISING)
    for place, number in enumerate(detailed):
        candidates = [
            (position, *ways[way])
            for way in (place, place + len(detailed))
            for position in positions[way]
        ]
        agreed[number] = _best_refined(candidates, enough=pairs[number][2])
    return [each or 0.0 for each in agreed]


def _agreement_of_plain(first: Look, second: Look) -> float | None:
    """Return the agreement if one has nothing to correlate: all or nothing. Else None."""
    if not (first.is_plain or second.is_plain):
        return None
    is_same = first.is_plain and second.is_plain and abs(first.gray - second.gray) < SAME_GRAY
    return 1.0 if is_same else 0.0


def _best_refined(candidates: Sequence[tuple[Position, Look, Look]], *, enough: float) -> float:
    """Return the largest agreement from one of the positions, the most promising ones first."""
    best = 0.0
    for position, view, other in sorted(candidates, key=lambda each: -each[0].correlation):
        warp = _warp(position, view, other)
        best = max(best, refined_agreement(_contrast(view), _contrast(other), warp))
        if best >= enough:
            break
    return best


@lru_cache(maxsize=256)  # 150 kB each; the pairs of one image follow each other
def _contrast(look: Look) -> Contrast:
    return Contrast.of(look.pixels)


def _warp(position: Position, view: Look, other: Look) -> np.ndarray:
    """Return the map (3, 3) from pixels (x, y, 1) of `view.pixels` to those of `other.pixels`."""
    image = other.image
    left, top = margins(image, position.angle)
    small_h, small_w = view.small.shape
    fine_h, fine_w = view.pixels.shape
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
