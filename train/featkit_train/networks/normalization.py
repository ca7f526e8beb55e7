"""Normalize pixels by each channel's mean and standard deviation, and convert between two
normalizations."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel


def normalize(pixels: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (pixels - mean) / std for each channel of (B, 3, S, S) floats in 0 .. 1."""
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def renormalize(pixels: Tensor, *, given: Statistics, wanted: Statistics) -> Tensor:
    """Convert normalized pixels (B, 3, S, S) from the `given` to the `wanted` statistics."""
    if given == wanted:
        return pixels
    (mean, std), shape = given, (1, 3, 1, 1)
    plain = pixels * pixels.new_tensor(std).view(shape) + pixels.new_tensor(mean).view(shape)
    return normalize(plain, mean=wanted[0], std=wanted[1])
