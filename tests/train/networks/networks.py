"""Small networks of timm's and torchvision's with weights that matter, for tests of what is built
on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from featkit_train.networks.classifier import ClassifierConfig
from tests.export.backbones import draw_weights
from tests.torchvision_without_cuda import import_quietly

SMALL_RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
SMALL_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 3}


def config(
    arch: str, *, exits: tuple[int, ...] = (), small_stem: bool = False, **options: Any
) -> ClassifierConfig:
    return ClassifierConfig(arch=arch, exits=exits, small_stem=small_stem, options=options)


CONFIGS = {
    "timm CNN": config("timm:resnet18", **SMALL_RESNET, small_stem=True),
    "timm ViT": config("timm:test_vit", **SMALL_VIT),
    "torchvision CNN": config("torchvision:resnet18", small_stem=True),
    "torchvision ViT": config("torchvision:featkit_tiny_vit", image_size=32),
}
SIDE = 32  # pixels that each of them takes


def add_tiny_vit() -> None:
    """torchvision's ViT in a size that tests can have: its own names take no other."""
    models = import_quietly("torchvision.models")

    def featkit_tiny_vit(
        *, weights: None = None, progress: bool = True, image_size: int = 32, **options: Any
    ) -> nn.Module:
        assert weights is None
        assert progress
        model: nn.Module = models.VisionTransformer(
            image_size=image_size,
            patch_size=8,
            num_layers=3,
            num_heads=2,
            hidden_dim=24,
            mlp_dim=48,
            **options,
        )
        return model

    if "featkit_tiny_vit" not in models.list_models():
        # list_models goes by it
        featkit_tiny_vit.__module__ = "torchvision.models.featkit_tiny_vit"
        import_quietly("torchvision.models._api").register_model()(featkit_tiny_vit)


def drawn(module: nn.Module, *, seed: int = 0) -> Any:
    """The module with every weight drawn, of sizes that let images through; in evaluation mode."""
    draw_weights(module, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            # of what a ReLU lets through; draw_weights gives half of it
            if isinstance(part, nn.Conv2d):
                part.weight.mul_(2**0.5)
            # those of a Sequential have names that draw_weights cannot know
            elif isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(1 + 0.2 * torch.randn(part.weight.shape, generator=generator))
                part.bias.copy_(0.2 * torch.randn(part.bias.shape, generator=generator))
    return module.eval()


def draw_images(
    count: int = 2, *, height: int = SIDE, width: int = SIDE, seed: int = 0
) -> torch.Tensor:
    """(count, 3, height, width) normalized pixels."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
