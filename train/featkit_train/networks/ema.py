"""The teacher as the student's exponential moving average."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Update every parameter and buffer of the teacher (DINO, section 3.1).

        teacher = momentum * teacher + (1 - momentum) * student

    Integer buffers, which have no average, are copied. ValueError if parameter or buffer names
    differ.
    """
    # Update them separately: sharded parameters are DTensors, buffers are not, and torch rejects a
    # mixture.
    parameters = dict(teacher.named_parameters()), dict(student.named_parameters())
    buffers = dict(teacher.named_buffers()), dict(student.named_buffers())
    for ours, theirs in (parameters, buffers):
        if ours.keys() != theirs.keys():
            raise ValueError(
                f"teacher and student differ in {sorted(ours.keys() ^ theirs.keys())[:3]}"
            )
    _average(*parameters, momentum=momentum)
    _average(*buffers, momentum=momentum)


def _average(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, momentum: float) -> None:
    averaged = [name for name, tensor in ours.items() if tensor.is_floating_point()]
    if averaged:
        torch._foreach_lerp_(
            [ours[name] for name in averaged], [theirs[name] for name in averaged], 1 - momentum
        )
    for name in ours.keys() - set(averaged):
        ours[name].copy_(theirs[name])
