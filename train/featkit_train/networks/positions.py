"""Positions of patches: learned tables, resampled by each family's rule, and rotary angles.

Sizes may be symbolic here, so that an exported graph keeps height and width dynamic. That is why
everything is elementary tensor arithmetic: interpolate's scale_factor would freeze the table, and
a branch on a size or its float() would freeze the size.

Letters: (h, w) the grid of patches asked for, (G, G') the grid of the table, D width, P = h * w
patches, d width of an attention head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ResampleRule:
    """How a family resamples its position table to another grid.

    offset: added to the target size before dividing by the table's. It is 0.1 in DINO, iBOT and
    DINOv2 without registers, whose code passes `scale_factor=(h + 0.1) / G` to torch's interpolate,
    and 0 elsewhere. At the table's own size that code does not resample, so no offset applies.
    antialias: as in torch's interpolate.
    """

    offset: float = 0.0
    antialias: bool = False


def resample_table(table: Tensor, height: int, width: int, *, rule: ResampleRule) -> Tensor:
    """Resample a (G, G', D) table to (h, w, D) like bicubic torch.nn.functional.interpolate.

    The filter is separable: for each channel, `rows @ table @ columns.T` with two small matrices.
    """
    offset: float | Tensor = rule.offset
    if rule.offset:
        one = torch.ones(1, device=table.device)
        foreign = (one * height != table.shape[0]) | (one * width != table.shape[1])
        offset = torch.where(foreign, rule.offset, 0.0)
    rows = _bicubic_weights(
        height, table.shape[0], offset=offset, antialias=rule.antialias, like=table
    )
    columns = _bicubic_weights(
        width, table.shape[1], offset=offset, antialias=rule.antialias, like=table
    )
    # Two einsums, one per axis: a single one of three operands is exported as a product of h * w
    # rows by G * G' columns, which is ten times the work.
    return torch.einsum("wk,hkd->hwd", columns, torch.einsum("hg,gkd->hkd", rows, table))


def _bicubic_weights(
    size: int, grid: int, *, offset: float | Tensor, antialias: bool, like: Tensor
) -> Tensor:
    """Return weights (size, grid) float32: row i weighs the table's entries for output i.

    Every row sums to 1.
    """
    output = torch.arange(size, device=like.device, dtype=torch.float32) + 0.5
    # A tensor, not a Python number, so that a symbolic `size` stays symbolic in an exported graph.
    ratio = grid / (torch.ones_like(output[:1]) * size + offset)
    center = output * ratio
    taps = torch.arange(grid, device=like.device, dtype=torch.float32)
    if antialias:
        stretch = ratio.clamp(min=1.0)
        weights = _cubic((taps + 0.5 - center[:, None]) / stretch[:, None], a=-0.5)
        return weights / weights.sum(dim=1, keepdim=True)
    position = center - 0.5
    floor = position.floor()
    weights = torch.zeros_like(center[:, None] * taps)
    for step in (-1.0, 0.0, 1.0, 2.0):
        neighbor = floor + step
        inside = neighbor.clamp(0, grid - 1)[:, None] == taps
        weights = weights + torch.where(inside, _cubic(position - neighbor, a=-0.75)[:, None], 0.0)
    return weights


def _cubic(distance: Tensor, *, a: float) -> Tensor:
    """Evaluate Keys' cubic convolution kernel (1981) with slope `a`.

    torch uses -0.75, and -0.5 with antialiasing.
    """
    # Not abs(): OpenVINO 2026.4 folds an Abs of constants wrongly in a graph compiled for one size.
    d = torch.maximum(distance, -distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def rotary_periods(head_width: int, *, base: float) -> Tensor:
    """Return the periods (d / 4,) float32 of DINOv3's rotary positions, in half images.

    arXiv 2508.10104, section 3.2:

    base ** (2 * j / (head_width / 2)),  j = 0 .. head_width / 4 - 1
    """
    steps = torch.arange(head_width // 4, dtype=torch.float32)
    return base ** (2 * steps / (head_width / 2))


def rotary_table(
    height: int, width: int, *, periods: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return sine and cosine (P, d) of DINOv3's rotary positions.

    Coordinates of patch centers lie between -1 and 1 for every grid, times `scale`. A quarter of a
    head's channels rotates with the row and a quarter with the column; the other half repeats both:

        angle = 2 * pi * coordinate / period
    """
    row = scale * _unit_coordinates(height, like=periods)[:, None, None].expand(height, width, 1)
    column = scale * _unit_coordinates(width, like=periods)[None, :, None].expand(height, width, 1)
    angles = torch.cat(
        [2 * math.pi * row / periods, 2 * math.pi * column / periods], dim=-1
    ).flatten(0, 1)  # (P, d / 2)
    angles = torch.cat([angles, angles], dim=-1)  # (P, d)
    return angles.sin(), angles.cos()


def _unit_coordinates(size: int, *, like: Tensor) -> Tensor:
    centers = torch.arange(size, device=like.device, dtype=torch.float32) + 0.5
    return 2 * centers / size - 1


def rotate(tokens: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Rotate queries or keys (B, heads, P, d) by the angles of their positions."""
    first, second = tokens.chunk(2, dim=-1)
    return tokens * cosine + torch.cat([-second, first], dim=-1) * sine
