"""Any timm or torchvision classifier, or featkit's convnet, with optional early exits and one head
for each.

Letters: B images, (H, W) pixels, (h, w) positions of the last map, E exits (the deepest last), D
width of an exit's vector, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featkit.errors import InputError
from featkit.wording import first_line
from featkit_train.networks.base import Backbone
from featkit_train.networks.borrowed import TimmModel, TorchvisionModel
from featkit_train.networks.convnet import native_model
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.networks.trunks import build_trunk

LIBRARIES = {"timm": TimmModel, "torchvision": TorchvisionModel, "featkit": native_model}


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The classifier's architecture."""

    arch: str = "timm:resnet18"
    """timm:NAME or torchvision:NAME, a ViT or a CNN, or featkit:convnet, a small residual CNN."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the architecture's constructor, such as {drop_path_rate: 0.1}."""
    small_stem: bool = False
    """Begin with a 3×3 convolution at stride 1 and no pooling, for images under 64 pixels (the
    CIFAR ResNets of arXiv 1512.03385)."""
    exits: tuple[int, ...] = ()
    """Stages of a CNN, or blocks of a transformer, counted from 1, that get an exit; the deepest
    always has one."""

    def __post_init__(self) -> None:
        library, _, name = self.arch.partition(":")
        if library not in LIBRARIES or not name:
            raise InputError(
                f"classifier.arch is {self.arch!r}. Write timm:NAME or torchvision:NAME, such as"
                " timm:resnet18, or featkit:convnet."
            )


class Outputs(NamedTuple):
    """Logits (E, B, K) and vectors (E, B, D) of exits; patch tokens (B, h, w, D) of the last."""

    logits: Tensor
    vectors: Tensor
    patch_tokens: Tensor


class Classifier(nn.Module):
    """A backbone with a Linear head for each of its exits.

    Heads keep torch's default initialization, as in the ResNets of both libraries.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        num_exits = backbone.depth if isinstance(backbone, ExitedBackbone) else 1
        self.heads = nn.ModuleList(nn.Linear(backbone.width, num_classes) for _ in range(num_exits))

    def forward(self, images: Tensor) -> Outputs:
        """Return the outputs of images (B, 3, H, W), all from one pass."""
        backbone = self.backbone
        exits = (
            backbone.all_exits(images)
            if isinstance(backbone, ExitedBackbone)
            else (backbone(images),)
        )
        logits = [head(each.class_token) for head, each in zip(self.heads, exits, strict=True)]
        # cat promotes types, stack does not: in mixed precision one exit may end in a float32 norm
        # and the next in a bfloat16 mean.
        vectors = torch.cat([each.class_token[None] for each in exits])  # (E, B, D)
        return Outputs(torch.stack(logits), vectors, exits[-1].patch_tokens)


def build_backbone(config: ClassifierConfig) -> Backbone:
    """Build the network without its classifier, initialized by its library.

    Weights come from torch's global generator. InputError for an unknown name or option, and for a
    stem or exits that the network cannot have.
    """
    library, _, name = config.arch.partition(":")
    try:
        backbone: Backbone
        if config.exits:
            trunk = build_trunk(library, name, small_stem=config.small_stem, **config.options)
            backbone = ExitedBackbone(trunk, config.exits)
        else:
            backbone = LIBRARIES[library](name, small_stem=config.small_stem, **config.options)
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        AssertionError,
        RuntimeError,
    ) as error:
        # Architectures raise different exception classes for arguments that they reject.
        raise InputError(
            f"{config.arch} cannot be built with the options {config.options}: {first_line(error)}."
        ) from error
    backbone.built_from = config
    return backbone
