"""KoLeo: push every embedding away from its nearest neighbor in the batch (Sablayrolles et al.,
arXiv 1806.03198, eq. 3).

Letters: B embeddings, A all of them to look among, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def koleo_loss(
    features: Tensor, *, among: Tensor | None = None, first: int = 0, eps: float = 1e-8
) -> Tensor:
    """-mean(log(distance to the nearest other embedding)), a float32 scalar. features (B, D), any
    float and length.

        x = normalize(features);  mean over i of  -log(min over j != i of |x[i] - x[j]| + eps)

    among (A, D): embeddings that the neighbors are sought among, where `features` are its rows
    from `first` on (those of other processes stand beside them); by default `features`. Duplicates
    are held off the pole by `eps`, as DINOv2's code does. ValueError for fewer than two to look
    among.
    """
    everyone = features if among is None else among
    if everyone.shape[0] < 2:
        raise ValueError("koleo_loss needs at least two embeddings")
    candidates = F.normalize(everyone.float(), dim=-1)
    unit = candidates if among is None else candidates[first : first + len(features)]
    # Cosines of near neighbors differ by less than bfloat16 can tell, in which autocast would take
    # the product.
    with torch.no_grad(), torch.autocast(unit.device.type, enabled=False):
        similarity = unit @ candidates.T
        own = torch.arange(len(unit), device=unit.device)
        # below every cosine, so that nobody is their own neighbor
        similarity[own, own + first] = -2.0
        nearest = similarity.argmax(dim=1)
    distance = F.pairwise_distance(unit, candidates[nearest], eps=eps)
    return -torch.log(distance + eps).mean()
