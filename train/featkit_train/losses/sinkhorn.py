"""Sinkhorn-Knopp: teacher probabilities that use all prototypes equally (SwAV, arXiv 2006.09882,
section 3.1; DINOv2).

Letters: R rows (crops times images), K prototypes, W processes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def identity(rows: Tensor) -> Tensor:
    """Gather the rows of a single process: the default of `gather` arguments."""
    return rows


@torch.no_grad()
def sinkhorn_knopp(
    teacher_logits: Tensor,
    *,
    teacher_temp: float,
    num_iterations: int = 3,
    gather: Callable[[Tensor], Tensor] = identity,
) -> Tensor:
    """Return probabilities (R, K) in float32; rows sum to 1, and columns to about R / K.

    teacher_logits: (R, K), any float dtype; R may be 0. gather: maps (1, K) of this process to
    (W, K) of all.

        Q = exp(teacher_logits / teacher_temp)
        for _ in range(num_iterations):
            for k in range(K): Q[:, k] /= K * sum(Q[:, k])  # equal prototypes
            for r in range(R): Q[r] /= R * sum(Q[r])  # equal rows
        return R * Q

    No gradient. Computed in log space, so that no temperature overflows.
    """
    log_q = teacher_logits.float() / teacher_temp
    for _ in range(num_iterations):
        # Without the constant factors K and R, which dividing by row sums removes anyway.
        log_q = log_q - gather(log_q.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()
