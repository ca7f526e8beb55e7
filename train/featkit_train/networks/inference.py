"""Run networks over prepared images in blocks, in evaluation mode and without gradients.

Letters: N images, (H, W) pixels, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featkit_train.networks.base import Features
from featkit_train.networks.normalization import normalize

BLOCK = 256  # images


@torch.no_grad()
def over_images(
    module: nn.Module,
    images: np.ndarray,
    read: Callable[[Any], Tensor],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """Return `read(module(block))` of all blocks of images (N, H, W, 3) uint8 as (N, ...)
    float32."""
    device = next(module.parameters()).device
    blocks = []
    with evaluating(module):
        for block in torch.split(torch.from_numpy(images), BLOCK):
            pixels = block.to(device).permute(0, 3, 1, 2).float() / 255
            blocks.append(read(module(normalize(pixels, mean=mean, std=std))).float().cpu().numpy())
    return np.concatenate(blocks)


def unit_class_token(features: Features) -> Tensor:
    """Return the class tokens as unit vectors (N, D)."""
    return nn.functional.normalize(features.class_token.float(), dim=-1)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation mode, and restore each submodule's mode afterwards."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
