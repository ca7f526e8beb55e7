"""What every backbone is to training and export, whatever it is made of.

Letters: B images, (H, W) pixels, (h, w) patches or places of the last feature map, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from featkit_train.networks.noise import NO_NOISE, Noise


class Features(NamedTuple):
    """What a backbone sees: class_token (B, D) and patch_tokens (B, h, w, D), both after the last
    norm.

    Of a network without a class token, the class token is its pooled vector.
    """

    class_token: Tensor
    patch_tokens: Tensor


class Activations(NamedTuple):
    """Features of the layers asked for, in that order, and attention (B, heads, h, w) of the class
    token in the last block."""

    features: tuple[Features, ...]
    attention: Tensor | None


class Masked(NamedTuple):
    """Patches hidden from a student: masks (B, h, w) bool, and the token (1, 1, D) that stands for
    them."""

    masks: Tensor
    token: Tensor


class Backbone(nn.Module, ABC):
    """Images (B, 3, H, W), normalized floats with H and W multiples of `patch`, to Features of
    `width` channels.

    depth: how many layers there are to choose from.
    """

    has_attention = False
    # the config that a file of its weights holds, where it was built from one
    built_from: object = None

    def __init__(self, *, patch: int, width: int, depth: int) -> None:
        super().__init__()
        self.patch, self.width, self.depth = patch, width, depth

    @abstractmethod
    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features of `layers`, counted from 1 up to `depth`; `attention` only where the class has
        it."""

    def student_forward(
        self,
        images: Tensor,
        *,
        masked: Masked | None = None,
        noise: Noise = NO_NOISE,
        norm: nn.Module | None = None,
        class_only: bool = False,
    ) -> Features:
        """Features of the last layer as a student in training computes them.

        masked: patches it does not see; noise: what its blocks leave out; norm: in place of the
        last norm, for the class token; class_only: patch tokens are not wanted, and may be (B, 0,
        0, D). ValueError where there is no such thing.
        """
        del class_only
        if masked is not None or noise.kept or noise.rotary_scale != 1.0 or norm is not None:
            raise ValueError(
                f"{type(self).__name__} has no mask token, no stochastic depth and no norm of its"
                " own for crops"
            )
        return self.activations(images, layers=(self.depth,)).features[0]

    def forward(self, images: Tensor) -> Features:
        """Features of the last layer."""
        return self.activations(images, layers=(self.depth,)).features[0]
