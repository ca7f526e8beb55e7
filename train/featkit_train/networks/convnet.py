"""A small residual network for images of 48 to 128 pixels, featkit's own convolutional backbone.

Residual blocks as in He et al. (arXiv 1512.03385), with the shortcut of "Bag of Tricks" (arXiv
1812.01187, ResNet-D): it averages before it projects, so that no position is dropped. The stem
halves the side once, and every stage halves it again, so that the last map of a small image still
has several positions.

Letters: B images, (H, W) pixels, (h, w) positions and C channels of a stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.networks.base import Activations, Backbone, Features

STEM_STRIDE = 2
GEM_POWER, GEM_FLOOR = 3, 1e-6  # as in `featkit export --feature gem`


def native_model(arch: str, *, small_stem: bool = False, **options: Any) -> Backbone:
    """Build featkit's own network of that name. InputError for another name or a small stem."""
    if arch != "convnet":
        raise InputError(f"featkit has no classifier {arch!r}; its own is featkit:convnet.")
    if small_stem:
        raise InputError("featkit:convnet has a small stem already; leave small_stem out.")
    return ConvNet(**options)


class ConvNet(Backbone):
    """A stem and stages of residual blocks; each stage halves the side and is one of the layers.

    stem: channels of the stem. widths: channels of each stage. blocks: residual blocks of each
    stage. pooling: how a stage's class token is made from its positions, by their mean or by their
    generalized mean with power 3 (Radenović et al., arXiv 1711.02512), which keeps what only a few
    positions show.
    """

    def __init__(
        self,
        *,
        stem: int = 32,
        widths: Sequence[int] = (64, 128, 256),
        blocks: Sequence[int] = (1, 2, 3),
        pooling: Literal["mean", "gem"] = "gem",
    ) -> None:
        if not widths or len(widths) != len(blocks) or min(stem, *widths, *blocks) < 1:
            raise InputError(
                f"A convnet needs as many blocks as widths, all at least 1, not stem {stem}, widths"
                f" {list(widths)} and blocks {list(blocks)}."
            )
        if pooling not in ("mean", "gem"):
            raise InputError(f"A convnet's pooling is mean or gem, not {pooling}.")
        super().__init__(patch=STEM_STRIDE * 2 ** len(widths), width=widths[-1], depth=len(widths))
        self.widths, self.pooling = tuple(widths), pooling
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=STEM_STRIDE, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(inputs, outputs, stride=2),
                *(ResidualBlock(outputs, outputs) for _ in range(count - 1)),
            )
            for (inputs, outputs), count in zip(
                itertools.pairwise((stem, *widths)), blocks, strict=True
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the stages `layers`; see Backbone."""
        if attention or any(not 1 <= layer <= self.depth for layer in layers):
            raise ValueError(
                f"this backbone has stages 1 to {self.depth}, not {list(layers)}, and no attention"
            )
        maps = self.stem(images)
        features = {}
        for layer, stage in enumerate(self.stages[: max(layers)], 1):
            maps = stage(maps)  # (B, C, h, w)
            if layer in layers:
                features[layer] = Features(self._pooled(maps), maps.permute(0, 2, 3, 1))
        return Activations(tuple(features[layer] for layer in layers), None)

    def _pooled(self, maps: Tensor) -> Tensor:
        """Return the class tokens (B, C) of maps (B, C, h, w)."""
        if self.pooling == "mean":
            return maps.mean(dim=(2, 3))
        powers = maps.float().clamp(min=GEM_FLOOR) ** GEM_POWER
        return powers.mean(dim=(2, 3)) ** (1 / GEM_POWER)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions added to a shortcut. The block begins as its shortcut: the last norm's
    scale is 0 at first."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        last_norm = nn.BatchNorm2d(outputs)
        nn.init.zeros_(last_norm.weight)
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            last_norm,
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the block's map (B, C, h, w)."""
        added: Tensor = self.activation(self.body(maps) + self.shortcut(maps))
        return added
