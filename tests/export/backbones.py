"""Backbones with weights that matter: at their initial values LayerScale, biases and positions would hide every mistake."""

from __future__ import annotations

from pathlib import Path

import torch

from featkit.geometry import Geometry
from featkit_train.vit import VisionTransformer, ViTConfig
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone

CONFIGS = {
    "dino": ViTConfig(patch=8, width=48, depth=2, num_heads=3, mlp_width=96, position_grid=6),
    "dinov2": ViTConfig(patch=14, width=48, depth=2, num_heads=3, mlp_width=96, position_grid=5, layer_scale=1.0),
    "dinov2_reg_swiglu": ViTConfig(
        patch=14,
        width=48,
        depth=2,
        num_heads=3,
        mlp="swiglu",
        mlp_width=64,
        position_grid=5,
        position_offset=0.0,
        position_antialias=True,
        num_registers=4,
        layer_scale=1.0,
    ),
    "dinov3": ViTConfig(
        patch=16,
        width=48,
        depth=2,
        num_heads=3,
        mlp_width=96,
        position="rotary",
        num_registers=4,
        layer_scale=1.0,
        key_bias=False,
    ),
}


def drawn_backbone(config: ViTConfig, *, seed: int = 0) -> VisionTransformer:
    """A backbone whose every parameter is drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    backbone = VisionTransformer(config).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "gamma" in name:
                parameter.copy_((name.endswith(("weight", "gamma"))) + 0.2 * noise)
            elif parameter.ndim > 1 and "position" not in name and "token" not in name:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.5 * noise)
    return backbone


def geometry_for(config: ViTConfig, *, patches: int = 4) -> Geometry:
    """A native size of `patches` × `patches`."""
    size = config.patch * patches
    return Geometry(
        height=size,
        width=size,
        resize="shorter_side",
        resize_to=size,
        interpolation="bicubic",
        patch=config.patch,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def make_run(folder: Path, *, config: ViTConfig = CONFIGS["dino"], seed: int = 0) -> Path:
    """A run folder with a drawn backbone in it."""
    info = BackboneInfo(name="drawn", family="dino", geometry=geometry_for(config), licence="CC0-1.0", origin={"data": "drawn"})
    folder.mkdir(parents=True, exist_ok=True)
    save_backbone(folder / BACKBONE_FILE, drawn_backbone(config, seed=seed), info)
    return folder
