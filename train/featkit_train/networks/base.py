"""The interface that every backbone offers to training and export.

Letters: B images, (H, W) pixels, (h, w) patches or positions of the last feature map, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from featkit_train.networks.noise import NO_NOISE, Noise


class Features(NamedTuple):
    """The output of a backbone after its last norm.

    For a network without a class token, class_token is its pooled vector.
    """

    class_token: Tensor  # (B, D)
    patch_tokens: Tensor  # (B, h, w, D)


class Activations(NamedTuple):
    """Features of the requested layers, and the class token's attention in the last block."""

    features: tuple[Features, ...]  # in the order of the request
    attention: Tensor | None  # (B, heads, h, w)


class Masked(NamedTuple):
    """Patches to hide from a student, and the token that replaces them."""

    masks: Tensor  # (B, h, w) bool, True for hidden patches
    token: Tensor  # (1, 1, D)


class Backbone(nn.Module, ABC):
    """A network from images to Features of `width` channels.

    Images are (B, 3, H, W), normalized floats, with H and W multiples of `patch`. `activations` can
    return features of `depth` layers. `widths` are the widths of their class tokens, all `width`
    unless given; the maps of a convolutional network also have different sizes (h, w).
    """

    has_attention = False
    # The config to store with the weights, if the network was built from one.
    built_from: object = None

    def __init__(
        self, *, patch: int, width: int, depth: int, widths: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.patch, self.width, self.depth = patch, width, depth
        self.widths = (width,) * depth if widths is None else tuple(widths)
        # A network without blocks has no layers; its position table is still of use.
        if len(self.widths) != depth or self.widths[-1:] not in ((), (width,)):
            raise ValueError(
                f"widths {self.widths} do not fit depth {depth} and width {width}: there is one for"
                " each layer, and the last is the width"
            )

    @abstractmethod
    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return features of `layers`, counted from 1 to `depth`; attention only if
        `has_attention`."""

    def student_forward(
        self,
        images: Tensor,
        *,
        masked: Masked | None = None,
        noise: Noise = NO_NOISE,
        norm: nn.Module | None = None,
        class_only: bool = False,
    ) -> Features:
        """Return features of the last layer, as a student computes them in training.

        masked: patches to hide. noise: which crops each block skips. norm: replaces the last norm
        for the class token. class_only: patch tokens may be (B, 0, 0, D). ValueError if the network
        does not support an argument.
        """
        del class_only
        if masked is not None or noise.kept or noise.rotary_scale != 1.0 or norm is not None:
            raise ValueError(
                f"{type(self).__name__} has no mask token, no stochastic depth and no separate norm"
                " for crops"
            )
        return self.activations(images, layers=(self.depth,)).features[0]

    def forward(self, images: Tensor) -> Features:
        """Return features of the last layer."""
        return self.activations(images, layers=(self.depth,)).features[0]
