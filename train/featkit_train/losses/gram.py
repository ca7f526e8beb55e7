"""Gram anchoring (DINOv3, arXiv 2508.10104, section 4.2): how alike an image's patches are stays
as an earlier teacher saw it.

Letters: N images, P patches, D and E widths of student and teacher, (h, w) grids.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gram_loss(student_patches: Tensor, teacher_patches: Tensor) -> Tensor:
    """Mean squared difference of the patches' cosines (DINOv3, eq. 2), a float32 scalar.

    student_patches (N, h, w, D), teacher_patches (N, h', w', E), any float and length; a teacher's
    grid of another size is resampled to the student's first, bicubically without antialiasing, as
    the released code does.

        x, y = normalized student and teacher patches (P, .) of an image
        mean over images of  mean((x @ x.T - y @ y.T) ** 2)

    Differs from the paper's squared Frobenius norm by the number of pairs P * P, as the released
    code does.
    """
    grid = student_patches.shape[1:3]
    teacher_patches = teacher_patches.float()
    if teacher_patches.shape[1:3] != grid:
        channels_first = teacher_patches.permute(0, 3, 1, 2)
        resampled = F.interpolate(
            channels_first, size=grid, mode="bicubic", align_corners=False, antialias=False
        )
        teacher_patches = resampled.permute(0, 2, 3, 1)
    # which would take the products in bfloat16
    with torch.autocast(student_patches.device.type, enabled=False):
        return F.mse_loss(_cosines(student_patches.float()), _cosines(teacher_patches))


def _cosines(patches: Tensor) -> Tensor:
    """(N, h, w, D) to (N, P, P)."""
    unit = F.normalize(patches.flatten(1, 2), dim=-1)
    return unit @ unit.transpose(1, 2)
