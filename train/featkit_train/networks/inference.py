"""Networks over images that are prepared already, a block at a time, without gradients.

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

BLOCK = 256  # images at once


@torch.no_grad()
def over_images(
    module: nn.Module,
    images: np.ndarray,
    read: Callable[[Any], Tensor],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """What `read` takes of the module's outputs, joined along the images: images (N, H, W, 3)
    uint8 to (N, ...) float32."""
    device = next(module.parameters()).device
    blocks = []
    with evaluating(module):
        for block in torch.split(torch.from_numpy(images), BLOCK):
            pixels = block.to(device).permute(0, 3, 1, 2).float() / 255
            blocks.append(read(module(normalize(pixels, mean=mean, std=std))).float().cpu().numpy())
    return np.concatenate(blocks)


def unit_class_token(features: Features) -> Tensor:
    """(N, D) of unit length."""
    return nn.functional.normalize(features.class_token.float(), dim=-1)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every part of `module` in evaluation mode inside, and in its own mode again after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
