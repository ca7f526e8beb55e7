"""iBOT's loss (arXiv 2111.07832): cross-entropy between the patches hidden from the student and the
teacher's output for them.

Letters: N images, P patches of each, M masked patches of all images together, K prototypes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def ibot_loss(
    student_logits: Tensor, teacher_probs: Tensor, masks: Tensor, *, student_temp: float
) -> Tensor:
    """Return the mean cross-entropy in nats of masked patches, averaged by image (iBOT, eq. 2).

    student_logits: (M, K), any float dtype. teacher_probs: (M, K), rows sum to 1. masks: (N, P)
    bool with M = masks.sum(); rows are in the order of masks.flatten(). Computed in float32;
    returns a float32 scalar. An image without masked patches counts as 0, as in DINOv2's released
    code.

        total, m = 0, 0
        for n in range(N):
            for p in range(P):
                if masks[n, p]:
                    log_probs = log_softmax(student_logits[m] / student_temp)
                    total += -sum(teacher_probs[m] * log_probs) / sum(masks[n])
                    m += 1
        return total / N

    Raises ValueError if the numbers of rows differ from M; on an accelerator, only if they differ
    from each other.
    """
    num_masked, num_rows = masks.sum(dim=-1), len(student_logits)  # num_masked: (N,)
    # On an accelerator, reading the sum would wait for the device.
    expected = int(num_masked.sum()) if masks.device.type == "cpu" else num_rows
    if expected != num_rows or len(teacher_probs) != num_rows:
        raise ValueError(
            f"masks hold {expected} patches, logits {num_rows}, targets {len(teacher_probs)}"
        )
    log_probs = F.log_softmax(student_logits.float() / student_temp, dim=-1)  # (M, K)
    cross_entropy = -(teacher_probs.float() * log_probs).sum(dim=-1)  # (M,)
    weights = (1.0 / num_masked.clamp(min=1)).repeat_interleave(num_masked, output_size=num_rows)
    return (cross_entropy * weights).sum() / masks.shape[0]
