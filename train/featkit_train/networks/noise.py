"""What a student's blocks leave out or move at random while it learns, decided ahead of a forward
pass.

Decided ahead, so that blocks computed again in the backward pass leave out the same, and so that a
resumed run does.

Letters: B crops, S of them that are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Random noise in the student's blocks; the teacher runs without it."""

    drop_path: float = 0.0
    """Share of images that skip a residual branch (stochastic depth, arXiv 1603.09382)."""
    drop_path_rule: Literal["linear", "uniform"] = "linear"
    """linear: rising from 0 over the depth (DINO, iBOT). uniform: equal in all blocks (DINOv2)."""
    rotary_rescale: float = 1.0
    """Largest factor by which patch coordinates are stretched or shrunk (DINOv3, section 3.2)."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"a drop_path of {self.drop_path} is not from 0 to below 1")
        if self.rotary_rescale < 1:
            raise ValueError(f"a rotary_rescale of {self.rotary_rescale} is below 1")


class KeptRows(NamedTuple):
    """Rows (S,) int64 of the crops whose attention and whose MLP a block computes; None keeps all."""

    attention: Tensor | None = None
    mlp: Tensor | None = None


ALL_ROWS = KeptRows()


class Noise(NamedTuple):
    """Of one forward pass: what each block keeps, and by how much patch coordinates are stretched."""

    kept: tuple[KeptRows, ...] = ()  # () keeps all in every block
    rotary_scale: float = 1.0

    def to(self, device: torch.device) -> Noise:
        """The same on another device."""
        kept = [
            KeptRows(*(None if rows is None else rows.to(device) for rows in block))
            for block in self.kept
        ]
        return Noise(tuple(kept), self.rotary_scale)

    def of_block(self, number: int) -> KeptRows:
        """What block `number`, counted from 0, keeps."""
        return self.kept[number] if self.kept else ALL_ROWS


NO_NOISE = Noise()


def drop_rates(config: NoiseConfig, depth: int) -> list[float]:
    """Share of crops that each block's branches leave out: 0 at the first block to `drop_path` at
    the last, or alike."""
    if config.drop_path_rule == "uniform":
        return [config.drop_path] * depth
    return [config.drop_path * number / max(1, depth - 1) for number in range(depth)]


def draw_noise(
    config: NoiseConfig,
    rng: np.random.Generator,
    *,
    depth: int,
    num_crops: int,
    rotary_rng: np.random.Generator,
) -> Noise:
    """Noise for a pass of `num_crops` crops through `depth` blocks.

    A block with rate r computes its branches for round(B * (1 - r)) crops, at least one, drawn
    without replacement (DINOv2's released code, which rounds down: of 7 crops at a rate of 0.3 it
    keeps 4). The coordinates' factor is log-uniform in [1 / s, s] (DINOv3, arXiv 2508.10104,
    section 3.2; its released code draws one for each block).
    """
    reach = math.log(config.rotary_rescale)
    scale = math.exp(rotary_rng.uniform(-reach, reach)) if reach > 0 else 1.0
    if config.drop_path == 0:
        return Noise((), scale)

    def rows(rate: float) -> Tensor | None:
        num_kept = max(1, round(num_crops * (1 - rate)))
        return (
            torch.from_numpy(np.sort(rng.permutation(num_crops)[:num_kept]))
            if num_kept < num_crops
            else None
        )

    return Noise(
        tuple(KeptRows(rows(rate), rows(rate)) for rate in drop_rates(config, depth)), scale
    )
