"""KoLeo: push every embedding away from its nearest neighbor in the batch (Sablayrolles et al.,
arXiv 1806.03198, eq. 3).

Letters: B embeddings, A candidates for neighbors, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def koleo_loss(
    features: Tensor, *, among: Tensor | None = None, first: int = 0, eps: float = 1e-8
) -> Tensor:
    """Return the mean negative log distance of embeddings to their nearest neighbors.

    features: (B, D), any float dtype, of any length. among: (A, D), the candidates for neighbors,
    such as the embeddings of all processes; `features` must be its rows from `first` on. By default
    among is `features`. Computed in float32; returns a float32 scalar.

        x, candidates = normalize(features), normalize(among)
        total = 0
        for i in range(B):
            nearest = min(norm(x[i] - candidates[j]) for j in range(A) if j != first + i)
            total += -log(nearest + eps)
        return total / B

    eps keeps the loss of duplicates finite, as in DINOv2's code. Raises ValueError if A < 2.
    """
    candidates = features if among is None else among
    if candidates.shape[0] < 2:
        raise ValueError("koleo_loss needs at least two embeddings")
    candidates = F.normalize(candidates.float(), dim=-1)
    unit = candidates if among is None else candidates[first : first + len(features)]
    # Autocast would compute the product in bfloat16, in which near neighbors have equal cosines.
    with torch.no_grad(), torch.autocast(unit.device.type, enabled=False):
        similarity = unit @ candidates.T  # (B, A)
        own = torch.arange(len(unit), device=unit.device)
        similarity[own, own + first] = -2.0  # below every cosine: not its own neighbor
        nearest = similarity.argmax(dim=1)
    distance = F.pairwise_distance(unit, candidates[nearest], eps=eps)
    return -torch.log(distance + eps).mean()
