"""What every backbone is to training and export, whatever it is made of.

Letters: B pictures, (H, W) pixels, (h, w) patches or places of the last feature map, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """What a backbone sees: class_token (B, D) and patch_tokens (B, h, w, D), both after the last norm.

    Of a network without a class token, the class token is its pooled vector.
    """

    class_token: Tensor
    patch_tokens: Tensor


class Activations(NamedTuple):
    """Features of the layers asked for, in that order, and attention (B, heads, h, w) of the class token in the last block."""

    features: tuple[Features, ...]
    attention: Tensor | None


class Backbone(nn.Module, ABC):
    """Pictures (B, 3, H, W), normalised floats with H and W multiples of `patch`, to Features of `width` channels.

    depth: how many layers there are to choose from.
    """

    has_attention = False

    def __init__(self, *, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.patch, self.width, self.depth = patch, width, depth

    @abstractmethod
    def activations(self, images: Tensor, *, layers: Sequence[int], attention: bool = False) -> Activations:
        """Features of `layers`, counted from 1 up to `depth`; `attention` only where the class has it."""

    def forward(self, images: Tensor) -> Features:
        """Features of the last layer."""
        return self.activations(images, layers=(self.depth,)).features[0]
