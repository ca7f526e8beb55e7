"""Build the network of a published backbone, without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from featkit_train.networks.base import Backbone
from featkit_train.networks.borrowed import ConvNeXt, ResNet
from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.published.zoo import PUBLISHED, Published

NETWORKS: Mapping[str, Callable[[Mapping[str, Any]], Backbone]] = {
    "vit": lambda arch: VisionTransformer(ViTConfig(**arch)),
    "resnet": lambda arch: ResNet(**arch),
    "convnext": lambda arch: ConvNeXt(**arch),
}


def build(published: Published) -> Backbone:
    """Return the network of a row on the device `meta`: nothing is drawn, no memory is used."""
    with torch.device("meta"):
        return NETWORKS[published.kind](published.arch)


@cache
def state_of(name: str) -> dict[str, torch.Tensor]:
    """Return the names and shapes of a published backbone's tensors, on the device `meta`."""
    return dict(build(PUBLISHED[name]).state_dict())
