"""Gram anchoring (DINOv3, arXiv 2508.10104, section 4.2): keep the similarities between an image's
patches close to those of an earlier teacher.

Letters: N images, P patches, D and E widths of student and teacher, (h, w) and (h', w') their
grids.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gram_loss(student_patches: Tensor, teacher_patches: Tensor) -> Tensor:
    """Return the mean squared difference between cosines of patches (DINOv3, eq. 2).

    student_patches: (N, h, w, D). teacher_patches: (N, h', w', E). Both any float dtype, of any
    length. Computed in float32; returns a float32 scalar.

        total = 0
        for n in range(N):
            x = normalize(student_patches[n])  # (P, D)
            y = normalize(resize(teacher_patches[n], (h, w)))  # (P, E)
            total += mean((x @ x.T - y @ y.T) ** 2)
        return total / N

    resize is bicubic without antialiasing, as in the released code. Differs from the paper's
    squared Frobenius norm by the number of pairs P * P, as the released code does.
    """
    grid = student_patches.shape[1:3]
    teacher_patches = teacher_patches.float()
    if teacher_patches.shape[1:3] != grid:
        channels_first = teacher_patches.permute(0, 3, 1, 2)  # (N, E, h', w')
        resampled = F.interpolate(
            channels_first, size=grid, mode="bicubic", align_corners=False, antialias=False
        )
        teacher_patches = resampled.permute(0, 2, 3, 1)  # (N, h, w, E)
    # Autocast would compute the products in bfloat16.
    with torch.autocast(student_patches.device.type, enabled=False):
        return F.mse_loss(_cosines(student_patches.float()), _cosines(teacher_patches))


def _cosines(patches: Tensor) -> Tensor:
    """Return the cosines (N, P, P) between patches (N, h, w, D)."""
    unit = F.normalize(patches.flatten(1, 2), dim=-1)  # (N, P, D)
    return unit @ unit.transpose(1, 2)
