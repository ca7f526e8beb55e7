"""Sinkhorn-Knopp: teacher probabilities that use every prototype alike (SwAV, arXiv 2006.09882,
section 3.1; DINOv2).

Letters: R rows (crops times images), K prototypes, W processes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def identity(rows: Tensor) -> Tensor:
    """What gathers the rows of all processes where there is one."""
    return rows


@torch.no_grad()
def sinkhorn_knopp(
    teacher_logits: Tensor,
    *,
    teacher_temp: float,
    num_iterations: int = 3,
    gather: Callable[[Tensor], Tensor] = identity,
) -> Tensor:
    """Probabilities (R, K) in float32; each row sums to 1 and each column to about R / K.

        Q = exp(logits / teacher_temp)
        repeat:  Q[:, k] /= K * sum(Q[:, k]);  Q[r] /= R * sum(Q[r])
        return R * Q

    In log space, so that no temperature overflows. teacher_logits (R, K), any float. gather: (1, K)
    of this process to (W, K) of all W, where the rows are spread over processes. Without rows:
    none.
    """
    log_q = teacher_logits.float() / teacher_temp
    for _ in range(num_iterations):
        log_q = log_q - gather(log_q.logsumexp(dim=0, keepdim=True)).logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()
