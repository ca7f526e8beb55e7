"""What labels, a teacher's knowledge and a network's own deepest exit teach: Hinton et al. (arXiv
1503.02531), Born-Again Networks (arXiv 1805.04770), Noisy Student (arXiv 1911.04252) and Be Your
Own Teacher (arXiv 1905.08094).

Losses are means over the rows of this process, or sums weighted by `weights` (B,). Training
averages the gradients of W processes, which is that of one process with all rows where each has as
many of them and takes means; so `weights` are W times a row's share of all processes' rows
together, as `confidence_weights` gives them. With one process they sum to 1.

Letters: B rows of this process (images), K classes, D width, E exits, W processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featkit_train.losses.sinkhorn import identity

# |log(p / q)| below which the series of _divergence, and above which the plain terms, are right to
# five digits
NEAR = 0.25


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Divergence in nats of the student's softened classes from the teacher's (Hinton et al., arXiv
    1503.02531, section 2).

    student_logits and teacher_logits (B, K), any float; the teacher gets no gradient. A scalar,
    computed in float32.

        p, q = softmax(teacher_logits / temperature), softmax(student_logits / temperature)
        mean over b of  temperature ** 2 * sum(p[b] * log(p[b] / q[b]))

    The factor keeps gradients as large as at temperature 1; the hotter, the nearer they come to
    those of half the mean squared difference of centered logits (eq. 4). Differs from the paper's
    cross-entropy by the teacher's entropy, a constant.

    weights (B,): for the mean, the sum over b of weights[b] times the same; W times each row's
    share of all W processes' rows (module docstring). ValueError for shapes that differ.
    """
    _check_shapes(student_logits, teacher_logits)
    student, teacher = (
        student_logits.float() / temperature,
        teacher_logits.detach().float() / temperature,
    )
    return temperature**2 * _over_rows(_divergence(student, teacher), weights)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """sum(p * log(p / q)) (B,) for p, q = softmax(teacher), softmax(student) of (B, K), to
    float32's digits.

    Its terms are far larger than their sum where p and q are near, as in hot softmaxes: at
    temperature 1000 nothing right is left of the plain sum. With r = log(p / q), sum(p * (r - 1 +
    exp(-r))) is the same, for p * exp(-r) = q and both sum to 1, and none of its terms is below 0;
    where r is near 0, they are summed as series.
    """
    student, teacher = (
        logits - logits.detach().amax(dim=-1, keepdim=True) for logits in (student, teacher)
    )
    p, q = F.softmax(teacher, dim=-1), F.softmax(student, dim=-1)
    # Rather than of two log_softmax, which would round each class of a hot softmax to the digits of
    # ln K.
    norm = teacher.logsumexp(dim=-1, keepdim=True) - student.logsumexp(dim=-1, keepdim=True)
    r = teacher - student - norm
    series = r**2 * (1 / 2 - r * (1 / 6 - r * (1 / 24 - r * (1 / 120 - r / 720))))
    return torch.where(r.abs() < NEAR, p * series, p * r - p + q).sum(dim=-1)


def cross_entropy(
    student_logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats with the labels, a float32 scalar. student_logits (B, K), any
    float; labels (B,) int64.

        target = (1 - smoothing) * one_hot(labels) + smoothing / K
        mean over b of  -sum(target[b] * log_softmax(student_logits[b]))

    weights (B,): for the mean, the sum over b of weights[b] times the same; W times each row's
    share of all W processes' rows (module docstring). ValueError for a label below 0, of which
    torch would pass over some (on an accelerator, where looking would be waiting, what torch does).
    """
    if labels.device.type == "cpu" and bool((labels < 0).any()):
        raise ValueError(f"labels must be classes from 0 on, found {int(labels.min())}")
    losses = F.cross_entropy(
        student_logits.float(), labels, label_smoothing=smoothing, reduction="none"
    )
    return _over_rows(losses, weights)


def soft_cross_entropy(
    student_logits: Tensor, probs: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy in nats with soft pseudo-labels (Noisy Student, arXiv 1911.04252, section
    2), a float32 scalar.

    student_logits (B, K), any float; probs (B, K), each row sums to 1, get no gradient.

        mean over b of  -sum(probs[b] * log_softmax(student_logits[b]))

    weights (B,): for the mean, the sum over b of weights[b] times the same; W times each row's
    share of all W processes' rows (module docstring). ValueError for shapes that differ.
    """
    _check_shapes(student_logits, probs)
    losses = F.cross_entropy(student_logits.float(), probs.detach().float(), reduction="none")
    return _over_rows(losses, weights)


def _over_rows(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean, or the weighted sum, of (B,)."""
    if weights is None:
        return losses.mean()
    _check_shapes(losses, weights)
    return (weights.float() * losses).sum()


def _check_shapes(ours: Tensor, theirs: Tensor) -> None:
    """ValueError where they differ and torch would stretch one to the other."""
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)} must be equal")


@torch.no_grad()
def confidence_weights(
    teacher_logits: Tensor, *, gather: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """Weights (B,) in float32 by the teacher's confidence, right or wrong (Born-Again Networks,
    section 3.2, CWTM).

    teacher_logits (B, K), any float.

        confidence = max over k of softmax(teacher_logits)[:, k]
        W * confidence / sum of all processes' confidence

    gather: (1, 1) of this process to (W, 1) of all W, where the rows are spread over processes;
    each may have another number of them. W times the share, so that the mean over processes of
    sum(weights * losses) is that sum over all rows with weights that sum to 1, as the paper has it.
    """
    confidence = F.softmax(teacher_logits.float(), dim=-1).amax(dim=-1)
    sums = gather(confidence.sum().reshape(1, 1))
    return len(sums) * confidence / sums.sum()


@torch.no_grad()
def permuted_knowledge(teacher_logits: Tensor, *, generator: np.random.Generator) -> Tensor:
    """The logits (B, K), in each row all but the largest in random order (Born-Again Networks,
    section 3.2, DKPP).

        for each row:  m = first place of the maximum;  row[places other than m] = row[them, shuffled]

    The paper shuffles probabilities, which is the same: softmax shuffles as its logits do, at any
    temperature. What is drawn depends on `generator` and the shape alone, not on values or device.
    """
    num_rows, num_classes = teacher_logits.shape
    order = generator.permuted(np.tile(np.arange(num_classes - 1), (num_rows, 1)), axis=1)
    largest = teacher_logits.argmax(dim=1, keepdim=True)  # the first of equals
    others = (largest + 1 + torch.arange(num_classes - 1, device=largest.device)) % num_classes
    shuffled = others.gather(1, torch.from_numpy(order).to(others.device))
    return teacher_logits.scatter(1, others, teacher_logits.gather(1, shuffled))


def feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference from deeper features (Be Your Own Teacher, arXiv 1905.08094, eq. 4),
    a float32 scalar.

    features and target (B, D), any float; the target gets no gradient.

        mean over b and d of  (features[b, d] - target[b, d]) ** 2

    Differs from the paper's squared length, a sum over d, by the width D, so that one weight fits
    networks of any width. ValueError for shapes that differ.
    """
    _check_shapes(features, target)
    return F.mse_loss(features.float(), target.detach().float())


class ExitLoss(NamedTuple):
    """The parts of `exit_loss`, already weighted: their sum is the loss."""

    labels: Tensor
    knowledge: Tensor
    features: Tensor


def exit_loss(
    logits: Tensor,
    vectors: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    feature_weight: float,
    temperature: float,
    smoothing: float = 0.0,
) -> ExitLoss:
    """Every exit learns the labels, and the shallow ones from the deepest (Be Your Own Teacher,
    arXiv 1905.08094, eq. 5).

    logits (E, B, K) and vectors (E, B, D), any float, the deepest exit last; labels (B,) int64,
    each a class. Float32 scalars.

        labels     cross_entropy(logits[-1], labels) + sum over e < E - 1 of  (1 - alpha) * cross_entropy(logits[e], labels)
        knowledge  sum over e < E - 1 of  alpha * kd_loss(logits[e], logits[-1], temperature)
        features   sum over e < E - 1 of  feature_weight * feature_loss(vectors[e], vectors[-1])

    smoothing: of the labels, as in `cross_entropy`. The deepest exit learns from labels alone: as a
    target it gets no gradient. One exit: labels alone, the other parts are 0. ValueError for a
    label below 0, as in `cross_entropy`.
    """
    zero = torch.zeros((), device=logits.device)
    shallow = sum(
        (cross_entropy(exit_, labels, smoothing=smoothing) for exit_ in logits[:-1]), start=zero
    )
    by_labels = cross_entropy(logits[-1], labels, smoothing=smoothing) + (1 - alpha) * shallow
    knowledge = sum(
        (kd_loss(exit_, logits[-1], temperature=temperature) for exit_ in logits[:-1]), start=zero
    )
    features = sum((feature_loss(exit_, vectors[-1]) for exit_ in vectors[:-1]), start=zero)
    return ExitLoss(by_labels, alpha * knowledge, feature_weight * features)
