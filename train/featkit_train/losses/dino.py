"""DINO's loss (arXiv 2104.14294): cross-entropy between views, and the running center that prevents
collapse.

Letters: B images, S student crops, T teacher crops, K prototypes, W processes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit_train.losses.sinkhorn import identity


def dino_loss(student_logits: Tensor, teacher_probs: Tensor, *, student_temp: float) -> Tensor:
    """Return the mean cross-entropy in nats over all pairs of different views (DINO, eq. 3).

    student_logits: (S, B, K), any float dtype. teacher_probs: (T, B, K), rows sum to 1. Crop i
    shows the same view in both. Computed in float32; returns a float32 scalar. Differs from the
    paper's sum by the number of pairs, as the released code does.

        total = count = 0
        for t in range(T):
            for s in range(S):
                if s == t: continue
                for b in range(B):
                    log_probs = log_softmax(student_logits[s, b] / student_temp)
                    total += -sum(teacher_probs[t, b] * log_probs)
                    count += 1
        return total / count

    Raises ValueError if S == T == 1, since no two views differ.
    """
    num_student, batch, _ = student_logits.shape
    num_teacher = teacher_probs.shape[0]
    num_pairs = num_student * num_teacher - min(num_student, num_teacher)
    if num_pairs == 0:
        raise ValueError("dino_loss needs at least two crops on one side")
    log_probs = F.log_softmax(student_logits.float() / student_temp, dim=-1)  # (S, B, K)
    # Autocast would compute the product in bfloat16.
    with torch.autocast(log_probs.device.type, enabled=False):
        cross_entropy = -torch.einsum("tbk,sbk->ts", teacher_probs.float(), log_probs)  # (T, S)
    same_view = torch.diagonal(cross_entropy).sum()
    return (cross_entropy.sum() - same_view) / (batch * num_pairs)


def sharpen(teacher_logits: Tensor, center: Tensor, *, teacher_temp: float) -> Tensor:
    """Return softmax((teacher_logits - center) / teacher_temp) in float32 (DINO, eq. 1, section
    3.1).

    teacher_logits: (..., K), any float dtype. center: (K,).
    """
    return F.softmax((teacher_logits.float() - center) / teacher_temp, dim=-1)


class Center(nn.Module):
    """The running mean of the teacher's logits (DINO, eq. 4). forward() reads it, update() moves
    it."""

    center: Tensor

    def __init__(self, num_prototypes: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    def forward(self, teacher_logits: Tensor, *, teacher_temp: float) -> Tensor:
        """Return the teacher's probabilities (..., K), centered and sharpened."""
        return sharpen(teacher_logits, self.center, teacher_temp=teacher_temp)

    @torch.no_grad()
    def update(
        self, teacher_logits: Tensor, *, gather: Callable[[Tensor], Tensor] = identity
    ) -> None:
        """Move the center towards the mean of all rows of `teacher_logits` (..., K).

            center = momentum * center + (1 - momentum) * mean(rows of all processes)

        gather: maps (1, K + 1) of this process to (W, K + 1) of all. Processes may have different
        numbers of rows; if none has any, the center stays.
        """
        rows = teacher_logits.float().flatten(0, -2)
        count = rows.new_full((1, 1), len(rows))
        # Sums and counts travel in one transfer.
        sums = gather(torch.cat([rows.sum(dim=0, keepdim=True), count], dim=1)).sum(
            dim=0
        )  # (K + 1,)
        num_rows = sums[-1]
        batch_mean = torch.where(num_rows > 0, sums[:-1] / num_rows.clamp(min=1), self.center)
        self.center.lerp_(batch_mean, 1 - self.momentum)
