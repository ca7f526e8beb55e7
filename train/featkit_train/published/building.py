"""The network of a published backbone, and the ways in which files name its weights."""

from __future__ import annotations

from functools import cache

import torch

from featkit_train.networks.base import Backbone
from featkit_train.networks.borrowed import ConvNeXt, ResNet
from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.published import key_maps
from featkit_train.published.key_maps import KeyMap
from featkit_train.published.zoo import PUBLISHED, Published

# The maps to try for each kind of network; in a file of names that two know, the first is taken.
MAPS: dict[str, tuple[KeyMap, ...]] = {
    "vit": (
        key_maps.OFFICIAL,
        key_maps.HUGGING_FACE_DINOV2,
        key_maps.HUGGING_FACE_VIT,
        key_maps.HUGGING_FACE_DINOV3,
        key_maps.HUGGING_FACE_DINOV3_GATED,
        key_maps.OFFICIAL_GATED,
    ),
    "resnet": (key_maps.TORCHVISION_RESNET,),
    "convnext": (key_maps.OFFICIAL_CONVNEXT, key_maps.HUGGING_FACE_CONVNEXT),
    "timm": (key_maps.TIMM,),
}


def build(published: Published) -> Backbone:
    """The network of a row, with weights yet to come: none are drawn and no memory is taken."""
    with torch.device("meta"):
        if published.kind == "vit":
            return VisionTransformer(ViTConfig(**published.arch))
        if published.kind == "resnet":
            return ResNet(**published.arch)
        return ConvNeXt(**published.arch)


@cache
def state_of(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a published backbone by its name, without numbers."""
    return dict(build(PUBLISHED[name]).state_dict())
