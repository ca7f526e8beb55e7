"""Backbones with weights that matter: at their initial values LayerScale, biases and positions
would hide every mistake."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featkit.geometry import Geometry
from featkit.modelfile import OUTPUTS
from featkit_export.export import export_backbone
from featkit_export.recipe import Recipe
from featkit_export.report import ExportReport
from featkit_train.networks.base import Backbone
from featkit_train.networks.positions import rotary_periods
from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.published.building import build
from featkit_train.published.zoo import Published
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone
from tests.shared_files import made_once

CONFIGS = {
    "dino": ViTConfig(patch=8, width=48, depth=2, num_heads=3, mlp_width=96, position_grid=6),
    "dinov2": ViTConfig(
        patch=14, width=48, depth=2, num_heads=3, mlp_width=96, position_grid=5, layer_scale=1.0
    ),
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
    backbone = VisionTransformer(config).eval()
    draw_weights(backbone, seed=seed)
    return backbone


def with_depth(published: Published, depth: int) -> Published:
    """Return a published ViT with fewer blocks, if a whole one takes too much time or memory."""
    return dataclasses.replace(published, arch={**published.arch, "depth": depth})


def drawn_published(published: Published, *, seed: int = 0) -> Backbone:
    """The same of a row of the zoo."""
    backbone = build(published).to_empty(device="cpu").eval()
    draw_weights(backbone, seed=seed)
    if isinstance(backbone, VisionTransformer) and backbone.config.position == "rotary":
        backbone.rotary_periods.copy_(
            rotary_periods(backbone.config.head_width, base=backbone.config.rotary_base)
        )
    return backbone


def draw_weights(module: nn.Module, *, seed: int = 0) -> None:
    """Draw every parameter and running statistic at random, at scales that let signals through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if re.search(r"norm|bn\d|gamma|downsample\.1", name) and parameter.ndim == 1:
                parameter.copy_((name.endswith(("weight", "gamma"))) + 0.2 * noise)
            elif (
                parameter.ndim > 1
                and "position" not in name
                and "token" not in name
                and "registers" not in name
            ):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.5 * noise)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.2 * torch.rand(buffer.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(1)


def info_for(config: ViTConfig, **changes: Any) -> BackboneInfo:
    """Return the BackboneInfo of a drawn backbone."""
    values: dict[str, Any] = {
        "name": "drawn",
        "family": "dino",
        "geometry": geometry_for(config),
        "license": "CC0-1.0",
    }
    return BackboneInfo(**{**values, "origin": {"data": "drawn", "sha256": "0" * 64}, **changes})


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
    info = BackboneInfo(
        name="drawn",
        family="dino",
        geometry=geometry_for(config),
        license="CC0-1.0",
        origin={"data": "drawn"},
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_backbone(folder / BACKBONE_FILE, drawn_backbone(config, seed=seed), info)
    return folder


ALL_OUTPUTS = Recipe(feature="cls+gem", layers=(1, 2), outputs=OUTPUTS)


@cache  # tracing a graph takes seconds, and nobody changes a file that it shares
def file_of(
    name: str, recipe: Recipe = ALL_OUTPUTS, *, size: tuple[int, int] | None = None
) -> tuple[Path, ExportReport]:
    """The model file of a drawn backbone of CONFIGS, and what its export said."""
    config = CONFIGS[name]

    def export(out: Path) -> ExportReport:
        info = info_for(config, family=name)
        return export_backbone(drawn_backbone(config), info, out, recipe=recipe, size=size)

    return made_once(f"{name} {recipe} {size}", export, suffix=".onnx")
