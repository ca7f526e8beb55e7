"""Random noise of a student's blocks in training, drawn before the forward pass.

So blocks recomputed by activation checkpointing skip the same crops, and a resumed run draws the
same noise as an unbroken one.

Letters: B crops, S of them that a block computes.
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
    """Rows (S,) int64 of the crops for which a block computes attention and MLP; None means all."""

    attention: Tensor | None = None
    mlp: Tensor | None = None


ALL_ROWS = KeptRows()


class Noise(NamedTuple):
    """The noise of one forward pass."""

    kept: tuple[KeptRows, ...] = ()  # of each block; () keeps all rows in every block
    rotary_scale: float = 1.0  # factor on patch coordinates

    def to(self, device: torch.device) -> Noise:
        """Return the noise on another device."""
        kept = [
            KeptRows(*(None if rows is None else rows.to(device) for rows in block))
            for block in self.kept
        ]
        return Noise(tuple(kept), self.rotary_scale)

    def of_block(self, index: int) -> KeptRows:
        """Return the rows that a block keeps, counted from 0."""
        return self.kept[index] if self.kept else ALL_ROWS


NO_NOISE = Noise()


def drop_rates(config: NoiseConfig, depth: int) -> list[float]:
    """Return the share of crops that each block skips: linear in depth up to `drop_path`, or
    equal."""
    if config.drop_path_rule == "uniform":
        return [config.drop_path] * depth
    return [config.drop_path * block / max(1, depth - 1) for block in range(depth)]


def draw_noise(
    config: NoiseConfig,
    rng: np.random.Generator,
    *,
    depth: int,
    num_crops: int,
    rotary_rng: np.random.Generator,
) -> Noise:
    """Draw the noise for a pass of `num_crops` crops through `depth` blocks.

    A block with rate r computes its branches for round(B * (1 - r)) crops, at least one, drawn
    without replacement as in DINOv2's released code. (That code rounds down: of 7 crops at a rate
    of 0.3 it keeps 4.) The factor on coordinates is log-uniform in [1 / s, s] (DINOv3, arXiv
    2508.10104, section 3.2). (Its released code draws one for each block.)
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
