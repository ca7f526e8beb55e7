"""DINO's loss (arXiv 2104.14294): cross-entropy between views, and the running center that keeps it
from collapsing.

Letters: B images, S student crops, T teacher crops, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit_train.losses.sinkhorn import identity


def dino_loss(student_logits: Tensor, teacher_probs: Tensor, *, student_temp: float) -> Tensor:
    """Mean cross-entropy in nats over all crop pairs that show different views (DINO, arXiv
    2104.14294, eq. 3).

    student_logits (S, B, K), any float; teacher_probs (T, B, K), each row sums to 1. Crop i is one
    view in both. Computed and returned in float32, a scalar. Differs from the paper's sum by the
    number of pairs, as the released code does.

        mean over b and s != t of  -sum(teacher_probs[t, b] * log_softmax(student_logits[s, b] / student_temp))

    ValueError if S == T == 1: no two views differ.
    """
    num_student, batch, _ = student_logits.shape
    num_teacher = teacher_probs.shape[0]
    num_pairs = num_student * num_teacher - min(num_student, num_teacher)
    if num_pairs == 0:
        raise ValueError("dino_loss needs at least two crops on one side")
    log_probs = F.log_softmax(student_logits.float() / student_temp, dim=-1)
    # which would take the product in bfloat16
    with torch.autocast(log_probs.device.type, enabled=False):
        cross_entropy = -torch.einsum("tbk,sbk->ts", teacher_probs.float(), log_probs)
    same_view = torch.diagonal(cross_entropy).sum()
    return (cross_entropy.sum() - same_view) / (batch * num_pairs)


def sharpen(teacher_logits: Tensor, center: Tensor, *, teacher_temp: float) -> Tensor:
    """Teacher's probabilities (..., K) in float32: softmax((logits - center) / teacher_temp) (DINO
    eq. 1 with section 3.1)."""
    return F.softmax((teacher_logits.float() - center) / teacher_temp, dim=-1)


class Center(nn.Module):
    """Running mean of the teacher's logits (DINO eq. 4). forward() only reads; update() is the only
    writer."""

    center: Tensor

    def __init__(self, num_prototypes: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    def forward(self, teacher_logits: Tensor, *, teacher_temp: float) -> Tensor:
        """Probabilities (..., K) of the teacher, centered and sharpened."""
        return sharpen(teacher_logits, self.center, teacher_temp=teacher_temp)

    @torch.no_grad()
    def update(
        self, teacher_logits: Tensor, *, gather: Callable[[Tensor], Tensor] = identity
    ) -> None:
        """center = momentum * center + (1 - momentum) * mean of all rows of `teacher_logits` (...,
        K).

        gather: (1, K + 1) of this process to (W, K + 1) of all W, where the rows are spread over
        processes. Without a row anywhere the center stays.
        """
        rows = teacher_logits.float().flatten(0, -2)
        count = rows.new_full((1, 1), len(rows))
        sums = gather(torch.cat([rows.sum(dim=0, keepdim=True), count], dim=1)).sum(dim=0)
        num_rows = sums[-1]
        batch_mean = torch.where(num_rows > 0, sums[:-1] / num_rows.clamp(min=1), self.center)
        self.center.lerp_(batch_mean, 1 - self.momentum)
