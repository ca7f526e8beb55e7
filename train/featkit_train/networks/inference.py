"""Run a network over many prepared images in batches, without gradients.

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

BATCH_SIZE = 256


@torch.no_grad()
def over_images(
    module: nn.Module,
    images: np.ndarray,
    read: Callable[[Any], Tensor],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """Map images (N, H, W, 3) uint8 to (N, ...) float32: what `read` returns per batch.

    read: takes the module's outputs for a batch.
    """
    device = next(module.parameters()).device
    results = []
    with evaluating(module):
        for batch in torch.split(torch.from_numpy(images), BATCH_SIZE):
            pixels = batch.to(device).permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
            outputs = read(module(normalize(pixels, mean=mean, std=std)))
            results.append(outputs.float().cpu().numpy())
    return np.concatenate(results)


def unit_class_token(features: Features) -> Tensor:
    """Return the class tokens (N, D), scaled to unit length."""
    return nn.functional.normalize(features.class_token.float(), dim=-1)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule in evaluation mode inside the block; restore its mode after it."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
