"""iBOT's loss (arXiv 2111.07832): cross-entropy between the patches that the student could not see
and what the teacher saw.

Letters: N images, P patches, M masked patches of all images together, K prototypes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def ibot_loss(
    student_logits: Tensor, teacher_probs: Tensor, masks: Tensor, *, student_temp: float
) -> Tensor:
    """Mean over images of the mean cross-entropy in nats of their masked patches (iBOT, eq. 2;
    DINOv2's released code).

    masks (N, P) bool; student_logits (M, K), any float, and teacher_probs (M, K), rows of sum 1,
    are those of the masked patches in the masks' order, M = masks.sum(). Computed and returned in
    float32, a scalar.

        mean over n of  [ sum over p with masks[n, p] of  -sum(teacher_probs[m] * log_softmax(student_logits[m] / student_temp))
                          / max(1, number of masked patches of n) ]

    An image without a masked patch counts as 0. ValueError for numbers of rows that are not the
    mask's (on an accelerator, for logits and targets that differ in number).
    """
    num_masked, num_rows = masks.sum(dim=-1), len(student_logits)
    # elsewhere the number would be waited for
    expected = int(num_masked.sum()) if masks.device.type == "cpu" else num_rows
    if expected != num_rows or len(teacher_probs) != num_rows:
        raise ValueError(
            f"masks hold {expected} patches, logits {num_rows}, targets {len(teacher_probs)}"
        )
    log_probs = F.log_softmax(student_logits.float() / student_temp, dim=-1)
    cross_entropy = -(teacher_probs.float() * log_probs).sum(dim=-1)
    weights = (1.0 / num_masked.clamp(min=1)).repeat_interleave(num_masked, output_size=num_rows)
    return (cross_entropy * weights).sum() / masks.shape[0]
