"""The projection head of DINO (arXiv 2104.14294, appendix C): an MLP, a unit bottleneck, weight-normalised prototypes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of the projection head; the paper's are 65536, 2048, 256 and 3 layers, for 1.3 million pictures."""

    num_prototypes: int = 65536
    hidden_width: int = 2048
    bottleneck_width: int = 256
    num_layers: int = 3


class ProjectionHead(nn.Module):
    """(B, D) features to (B, K) cosines with the prototypes. No BatchNorm, GELU between layers."""

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

    def forward(self, features: Tensor) -> Tensor:
        """Cosines (B, K). Prototypes count by direction alone: weight normalisation with its gain fixed to 1."""
        bottleneck = F.normalize(self.mlp(features), dim=-1)
        return F.linear(bottleneck, F.normalize(self.prototypes, dim=-1))
