"""DINO's projection head (arXiv 2104.14294, appendix C): MLP, unit bottleneck, prototypes.

Letters: B images or patches, D width of the backbone, K prototypes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of the projection head. The defaults are the paper's, for 1.3 million images."""

    num_prototypes: int = 65536
    """Outputs of the head; 256 to 512 suit a few hundred images."""
    hidden_width: int = 2048
    """Width of the hidden layers."""
    bottleneck_width: int = 256
    """Width of the vectors that are compared with the prototypes."""
    num_layers: int = 3
    """Linear layers before the prototypes."""
    prototypes: Literal["unit", "gain", "free"] = "unit"
    """unit: prototypes of length 1. gain: each has a learned length, 1 at first (DINO with
    norm_last_layer false, DINOv2). free: unconstrained (DINOv3's released code)."""


class ProjectionHead(nn.Module):
    """Map features (B, D) to logits (B, K): products of a unit vector with the prototypes.

    They are cosines if the prototypes are unit vectors. There is GELU between layers, no BatchNorm.
    """

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        widths = [width, *[config.hidden_width] * (config.num_layers - 1), config.bottleneck_width]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.bottleneck_width))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        self.gains = (
            nn.Parameter(torch.ones(config.num_prototypes, 1))
            if config.prototypes == "gain"
            else None
        )
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        bottleneck = F.normalize(self.mlp(features), dim=-1)  # (B, bottleneck_width)
        prototypes: Tensor = self.prototypes
        if self.config.prototypes != "free":
            prototypes = F.normalize(prototypes, dim=-1)
        return F.linear(bottleneck, prototypes if self.gains is None else prototypes * self.gains)

    def last_layer(self) -> list[nn.Parameter]:
        """Return the parameters that DINO freezes during the first epoch."""
        return [self.prototypes] if self.gains is None else [self.prototypes, self.gains]
