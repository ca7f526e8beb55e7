"""A small published backbone: a folder for load_pretrained, with drawn weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from featkit.geometry import Geometry
from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone
from tests.train.methods.training import draw

PUBLISHED = ViTConfig(
    patch=8,
    width=24,
    depth=2,
    num_heads=2,
    mlp_width=48,
    position_grid=4,
    num_registers=2,
    layer_scale=0.5,
)
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)  # nobody else's


def save_published(folder: Path, **sizes: Any) -> VisionTransformer:
    """Write a backbone like PUBLISHED to `folder`, with other sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        backbone = VisionTransformer(dataclasses.replace(PUBLISHED, **sizes))
    draw(backbone, seed=5)
    patch = backbone.patch
    geometry = Geometry(
        height=4 * patch,
        width=4 * patch,
        resize="stretch",
        resize_to=4 * patch,
        interpolation="bicubic",
        patch=patch,
        mean=MEAN,
        std=STD,
    )
    folder.mkdir(parents=True)
    info = BackboneInfo(
        name="published",
        family="dinov2",
        geometry=geometry,
        license="none",
        origin={"data": "drawn"},
    )
    save_backbone(folder / BACKBONE_FILE, backbone, info)
    return backbone
