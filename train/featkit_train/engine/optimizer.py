"""AdamW or SGD for a method, and its learning rate, weight decay and clipping."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from featkit_train.config import OptimConfig
from featkit_train.schedules import cosine_schedule

# Batch sizes that the rules' learning rates refer to: DINO's and DINOv2's.
LINEAR_BATCH, SQRT_BATCH = 256, 1024
BLOCK = re.compile(r"(?:^|\.)(?:blocks\.|encoder_layer_)(\d+)\.")
HEAD = re.compile(r"(?:^|\.)(\w*head)\.")
EMBEDDING = re.compile(
    r"(?:^|\.)(patch_embed\.[\w.]+|class_token|registers|mask_token|class_position|patch_positions"
    r"|cls_token|reg_token|pos_embed"  # timm's
    r"|conv_proj\.\w+|pos_embedding)$"  # torchvision's
)


def peak_lr(config: OptimConfig, images_per_step: int) -> float:
    """Return the learning rate after warmup: `lr`, lr * images / 256 or lr * sqrt(images /
    1024)."""
    if config.lr_rule == "linear":
        return config.lr * images_per_step / LINEAR_BATCH
    return (
        config.lr * (images_per_step / SQRT_BATCH) ** 0.5 if config.lr_rule == "sqrt" else config.lr
    )


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the config's optimizer over the trainable parameters of `module`.

    Norms, biases and other vectors have no weight decay, as in DINO's code. Of n blocks, block i
    (from 1) trains at layer_decay ** (n + 1 - i) of the learning rate; embeddings and tokens count
    as block 0; heads and the last norm train at the full rate. The patch embedding's rate is also
    multiplied by patch_embed_lr, as in DINOv2's code.
    """
    named = [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    depth = 1 + max(
        (int(block[1]) for name, _ in named if (block := BLOCK.search(name))), default=-1
    )
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        share = lr_share(name, depth=depth, config=config)
        groups.setdefault((parameter.ndim > 1, share), []).append(parameter)
    ordered: list[dict[str, Any]] = [
        {"params": groups[key], "decays": key[0], "lr_share": key[1]}
        for key in sorted(groups, reverse=True)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            ordered, lr=0.0, momentum=config.betas[0], nesterov=config.betas[0] > 0, fused=True
        )
    return torch.optim.AdamW(ordered, lr=0.0, betas=config.betas, fused=True)


def lr_share(name: str, *, depth: int, config: OptimConfig) -> float:
    """Return the share of the learning rate for a parameter of a network with `depth` blocks."""
    block = BLOCK.search(name)
    layer = depth + 1
    if EMBEDDING.search(name):
        layer = 0
    elif block:
        layer = int(block[1]) + 1
    own = config.patch_embed_lr if "patch_embed." in name or "conv_proj." in name else 1.0
    return own * config.layer_decay ** (depth + 1 - layer)


def set_schedules(
    groups: Iterable[dict[str, Any]],
    config: OptimConfig,
    *,
    step: int,
    num_steps: int,
    images_per_step: int,
    phase_start: int = 0,
) -> tuple[float, float]:
    """Set this step's learning rate and weight decay in the optimizer's groups, and return both.

    phase_start: first step of the current phase; warmup restarts there.
    """
    peak = peak_lr(config, images_per_step)
    lr = cosine_schedule(
        step,
        start=peak,
        end=config.min_lr if config.schedule == "cosine" else peak,
        num_steps=num_steps,
        warmup_steps=min(config.warmup_steps, num_steps // 2),
    )
    if phase_start > 0:
        lr *= min(1.0, (step - phase_start + 1) / (config.warmup_steps + 1))
    weight_decay = cosine_schedule(
        step, start=config.weight_decay, end=config.weight_decay_end, num_steps=num_steps
    )
    for group in groups:
        group["lr"] = lr * group["lr_share"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
    return lr, weight_decay


def clip_gradients(module: nn.Module, config: OptimConfig) -> Tensor:
    """Clip the norm of each group of gradients to clip_grad; return the total norm before clipping.

    A gradient g becomes g * min(1, clip_grad / (norm of its group + 1e-6)). DINO and iBOT clip each
    weight by itself (`clip_gradients` in their utils.py), DINOv2 and DINOv3 the backbone and each
    head (train.py); `clip_by` selects the groups.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(clip_group(name, config), []).append(parameter)
    limit = config.clip_grad if config.clip_grad > 0 else math.inf
    norms = [nn.utils.clip_grad_norm_(parameters, limit) for parameters in groups.values()]
    whole: Tensor = torch.stack(
        [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    ).norm()
    return whole


def clip_group(name: str, config: OptimConfig) -> str:
    """Return the name of the group that a weight is clipped with."""
    if config.clip_by == "weight":
        return name
    head = HEAD.search(name) if config.clip_by == "part" else None
    return head[1] if head else ""
