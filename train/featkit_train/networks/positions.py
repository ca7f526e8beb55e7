"""Where a patch is: learned tables resampled to any grid by each family's official rule, and
DINOv3's rotary angles.

Everything here is elementary tensor arithmetic on sizes that may be symbolic, so that an exported
graph keeps height and width dynamic: no scale_factor (it would freeze the table), no branch on the
size, no float() of a size.

Letters: (h, w) the grid of patches asked for, (G, G') the grid of the table, D width, P = h * w
patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ResampleRule:
    """How a family stretches its position table to a foreign grid.

    offset: added to the target size before dividing (0.1 in DINO, iBOT and DINOv2 without
    registers, whose code passes `scale_factor=(h + 0.1) / G` to torch's interpolate; 0 elsewhere),
    but not at the table's own size, where that code takes the table as it is. antialias: as torch's
    interpolate means it.
    """

    offset: float = 0.0
    antialias: bool = False


def resample_table(table: Tensor, height: int, width: int, *, rule: ResampleRule) -> Tensor:
    """Bicubic resampling of a (G, G', D) table to (h, w, D), as torch.nn.functional.interpolate
    does it.

    Separable, so two products with small weight matrices: `rows @ table @ columns.T` for every
    channel.
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
    # One axis after the other: an exported einsum of three is one product of h * w rows by G * G'
    # columns, ten times the work.
    return torch.einsum("wk,hkd->hwd", columns, torch.einsum("hg,gkd->hkd", rows, table))


def _bicubic_weights(
    size: int, grid: int, *, offset: float | Tensor, antialias: bool, like: Tensor
) -> Tensor:
    """(size, grid) float32: row i holds what each table entry contributes to output i; every row
    sums to 1."""
    output = torch.arange(size, device=like.device, dtype=torch.float32) + 0.5
    # A tensor, not a Python number: `size` may be symbolic and must stay so in an exported graph.
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
    """Keys' cubic convolution kernel (1981) with slope `a`: torch uses -0.75, and -0.5 where it
    antialiases."""
    # Not abs(): OpenVINO 2026.4 folds an Abs of constants to something else where a graph is
    # compiled for one size.
    d = torch.maximum(distance, -distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def rotary_periods(head_width: int, *, base: float) -> Tensor:
    """(head_width / 4,) float32 periods of DINOv3's rotary positions (arXiv 2508.10104, section
    3.2), in half images:

    base ** (2 * j / (head_width / 2)),  j = 0 .. head_width / 4 - 1
    """
    steps = torch.arange(head_width // 4, dtype=torch.float32)
    return base ** (2 * steps / (head_width / 2))


def rotary_table(
    height: int, width: int, *, periods: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sine and cosine (P, head_width) of DINOv3's rotary positions, the coordinates stretched by
    `scale`.

    Row and column run from -1 to 1 at patch centers whatever the grid's size; a quarter of a head's
    channels turns with the row, a quarter with the column, and both are repeated for the other
    half:

        angle = 2 * pi * coordinate / period
    """
    row = scale * _unit_coordinates(height, like=periods)[:, None, None].expand(height, width, 1)
    column = scale * _unit_coordinates(width, like=periods)[None, :, None].expand(height, width, 1)
    angles = torch.cat(
        [2 * math.pi * row / periods, 2 * math.pi * column / periods], dim=-1
    ).flatten(0, 1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.sin(), angles.cos()


def _unit_coordinates(size: int, *, like: Tensor) -> Tensor:
    centers = torch.arange(size, device=like.device, dtype=torch.float32) + 0.5
    return 2 * centers / size - 1


def rotate(tokens: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Turn (B, heads, P, head_width) queries or keys by their position's angles."""
    first, second = tokens.chunk(2, dim=-1)
    return tokens * cosine + torch.cat([-second, first], dim=-1) * sine
