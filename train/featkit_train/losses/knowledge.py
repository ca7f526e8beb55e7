"""Losses with labels, with a teacher's knowledge, and with a network's own deepest exit.

Papers: Hinton et al. (arXiv 1503.02531), Born-Again Networks (arXiv 1805.04770), Noisy Student
(arXiv 1911.04252), Be Your Own Teacher (arXiv 1905.08094).

A loss is the mean over rows, or their sum weighted by `weights` (B,). Training averages gradients
over W processes. For that average to equal the gradient of one process with all rows, weights must
be W times each row's share of all processes' rows, as `confidence_weights` returns them. With one
process they sum to 1.

Letters: B rows of this process (images), K classes, D width, E exits (the deepest last), W
processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featkit_train.losses.sinkhorn import identity

# _divergence sums a series for |log(p / q)| below this, and plain terms above; both are then right
# to five digits.
NEAR = 0.25


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the divergence in nats of the student's softened classes from the teacher's (Hinton et
    al., section 2).

    student_logits, teacher_logits: (B, K), any float dtype; the teacher gets no gradient. weights:
    (B,), see the module. Computed in float32; returns a float32 scalar.

        total = 0
        for b in range(B):
            p = softmax(teacher_logits[b] / temperature)
            q = softmax(student_logits[b] / temperature)
            weight = weights[b] if given else 1 / B
            total += weight * temperature ** 2 * sum(p * log(p / q))
        return total

    temperature ** 2 keeps gradients as large as at temperature 1. At high temperatures they
    approach those of half the mean squared difference of centered logits (eq. 4). Differs from the
    paper's cross-entropy by the teacher's entropy, a constant. Raises ValueError if shapes differ.
    """
    _check_shapes(student_logits, teacher_logits)
    student, teacher = (
        student_logits.float() / temperature,
        teacher_logits.detach().float() / temperature,
    )
    return temperature**2 * _over_rows(_divergence(student, teacher), weights)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return sum(p * log(p / q)) (B,) for p = softmax(teacher), q = softmax(student) of (B, K).

    If p and q are close, as at high temperatures, the terms are far larger than their sum: at
    temperature 1000 the plain sum has no correct digit. With r = log(p / q), the sum equals
    sum(p * (r - 1 + exp(-r))), since p * exp(-r) = q and both sum to 1. These terms are never
    negative, so they do not cancel. Near r = 0, each is computed as a series.
    """
    student, teacher = (
        logits - logits.detach().amax(dim=-1, keepdim=True) for logits in (student, teacher)
    )
    p, q = F.softmax(teacher, dim=-1), F.softmax(student, dim=-1)
    # Not the difference of two log_softmax: at high temperatures that would round every class to
    # the digits of ln K.
    norm = teacher.logsumexp(dim=-1, keepdim=True) - student.logsumexp(dim=-1, keepdim=True)
    r = teacher - student - norm
    series = r**2 * (1 / 2 - r * (1 / 6 - r * (1 / 24 - r * (1 / 120 - r / 720))))
    return torch.where(r.abs() < NEAR, p * series, p * r - p + q).sum(dim=-1)


def cross_entropy(
    student_logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy in nats with the labels, a float32 scalar.

    student_logits: (B, K), any float dtype. labels: (B,) int64. weights: (B,), see the module.

        total = 0
        for b in range(B):
            target = (1 - smoothing) * one_hot(labels[b]) + smoothing / K
            weight = weights[b] if given else 1 / B
            total += weight * -sum(target * log_softmax(student_logits[b]))
        return total

    Raises ValueError for a negative label on the CPU. On an accelerator, this check would wait for
    the device.
    """
    # torch ignores rows whose label is -100.
    if labels.device.type == "cpu" and bool((labels < 0).any()):
        raise ValueError(f"labels must be classes from 0 on, found {int(labels.min())}")
    losses = F.cross_entropy(
        student_logits.float(), labels, label_smoothing=smoothing, reduction="none"
    )
    return _over_rows(losses, weights)


def soft_cross_entropy(
    student_logits: Tensor, probs: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy in nats with soft pseudo-labels (Noisy Student, section 2).

    student_logits: (B, K), any float dtype. probs: (B, K), rows sum to 1; they get no gradient.
    weights: (B,), see the module. Returns a float32 scalar.

        total = 0
        for b in range(B):
            weight = weights[b] if given else 1 / B
            total += weight * -sum(probs[b] * log_softmax(student_logits[b]))
        return total

    Raises ValueError if shapes differ.
    """
    _check_shapes(student_logits, probs)
    losses = F.cross_entropy(student_logits.float(), probs.detach().float(), reduction="none")
    return _over_rows(losses, weights)


def _over_rows(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of losses (B,), or their weighted sum."""
    if weights is None:
        return losses.mean()
    _check_shapes(losses, weights)
    return (weights.float() * losses).sum()


def _check_shapes(first: Tensor, second: Tensor) -> None:
    """Raise ValueError if shapes differ, which torch would broadcast."""
    if first.shape != second.shape:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} must be equal")


@torch.no_grad()
def confidence_weights(
    teacher_logits: Tensor, *, gather: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """Return weights (B,) in float32 by the teacher's confidence (Born-Again Networks, section 3.2,
    CWTM).

    teacher_logits: (B, K), any float dtype. gather: maps (1, 1) of this process to (W, 1) of all;
    processes may have different numbers of rows.

        confidence = max(softmax(teacher_logits), dim=1)  # whether or not the class is right
        return W * confidence / (sum of confidence over the rows of all processes)

    With the factor W, the mean over processes of sum(weights * losses) is a sum over all rows with
    weights that sum to 1, as in the paper.
    """
    confidence = F.softmax(teacher_logits.float(), dim=-1).amax(dim=-1)
    sums = gather(confidence.sum().reshape(1, 1))
    return len(sums) * confidence / sums.sum()


@torch.no_grad()
def permuted_knowledge(teacher_logits: Tensor, *, generator: np.random.Generator) -> Tensor:
    """Return logits (B, K) with all but the largest of each row in random order (Born-Again
    Networks, section 3.2, DKPP).

        for row in teacher_logits:
            m = argmax(row)  # the first of equals
            others = [k for k in range(K) if k != m]
            row[others] = row[shuffled(others)]

    The paper permutes probabilities, which is the same at any temperature. The permutation depends
    only on `generator` and the shape, not on values or the device.
    """
    num_rows, num_classes = teacher_logits.shape
    order = generator.permuted(np.tile(np.arange(num_classes - 1), (num_rows, 1)), axis=1)
    largest = teacher_logits.argmax(dim=1, keepdim=True)  # (B, 1)
    # (B, K - 1)
    others = (largest + 1 + torch.arange(num_classes - 1, device=largest.device)) % num_classes
    shuffled = others.gather(1, torch.from_numpy(order).to(others.device))
    return teacher_logits.scatter(1, others, teacher_logits.gather(1, shuffled))


def feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference from deeper features (Be Your Own Teacher, eq. 4).

    features, target: (B, D), any float dtype; the target gets no gradient. Returns a float32
    scalar.

        return mean((features - target) ** 2)  # over B and D

    Differs from the paper's sum over D by the factor D, so that one weight fits networks of any
    width. Raises ValueError if shapes differ.
    """
    _check_shapes(features, target)
    return F.mse_loss(features.float(), target.detach().float())


class ExitLoss(NamedTuple):
    """The weighted terms of `exit_loss`; their sum is the loss."""

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
    """Return the loss of a network with exits (Be Your Own Teacher, eq. 5).

    logits: (E, B, K), vectors: (E, B, D), any float dtype. labels: (B,) int64. smoothing: of the
    labels, as in `cross_entropy`. The three terms are float32 scalars.

        terms.labels = cross_entropy(logits[-1], labels)
        for e in range(E - 1):
            terms.labels += (1 - alpha) * cross_entropy(logits[e], labels)
            terms.knowledge += alpha * kd_loss(logits[e], logits[-1], temperature)
            terms.features += feature_weight * feature_loss(vectors[e], vectors[-1])

    The deepest exit learns from labels alone: as a target it gets no gradient. With one exit,
    knowledge and features are 0. Raises ValueError as `cross_entropy` does.
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
