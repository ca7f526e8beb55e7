"""Sinkhorn-Knopp: teacher probabilities that use every prototype alike (SwAV, arXiv 2006.09882, section 3.1; DINOv2).

Letters: R rows (crops times images), K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn_knopp(teacher_logits: Tensor, *, teacher_temp: float, num_iterations: int = 3) -> Tensor:
    """Probabilities (R, K) in float32; each row sums to 1 and each column to about R / K.

        Q = exp(logits / teacher_temp)
        repeat:  Q[:, k] /= K * sum(Q[:, k]);  Q[r] /= R * sum(Q[r])
        return R * Q

    In log space, so that no temperature overflows. teacher_logits (R, K), any float. ValueError without rows.
    """
    num_rows = teacher_logits.shape[0]
    if num_rows == 0:
        raise ValueError("sinkhorn_knopp needs at least one row")
    log_q = teacher_logits.float() / teacher_temp
    for _ in range(num_iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()
