"""Measure a classifier's probabilities, decide whether a training beats its teacher, and advise if
not.

It serves series of trainings, each taught by its predecessor: generations of Born-Again Networks
(arXiv 1805.04770), rounds of Noisy Student (arXiv 1911.04252), exits of one network (arXiv
1905.08094). All are measured on the same held-out images.

Letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featkit.wording import counted

ECE_BINS = 15  # Guo et al., section 4
ONE_SIDED = 1.645  # number of standard errors that chance exceeds in 5 % of cases
MAX_RISE = 0.05  # rise of confidence in wrong answers, from the first training to the last
MAX_SHARED_ERRORS = 0.8  # share of the teacher's errors
MIN_CLASSES = 0.6  # effective classes of pseudo-labels, relative to the labeled images'
MIN_ACCEPTED = 0.01  # share of the unlabeled images


@dataclass(frozen=True)
class Gain:
    """The difference in accuracy of two trainings on the same images, and its standard error."""

    difference: float
    standard_error: float
    num_images: int


@dataclass(frozen=True)
class Remark:
    """An observation about finished trainings: its name, the figure that shows it, and a sentence
    with advice.

    diagnostics.Finding is about a training in progress, and may stop it.
    """

    name: str
    figure: float
    sentence: str


# -- figures ---------------------------------------------------------------------------------------


def accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose most probable class (the first, if tied) is their label.

    probs (N, K), any float; labels (N,), integers below K. ValueError without images, or if the
    shapes do not match.
    """
    return float(_right(probs, labels).mean())


def expected_calibration_error(
    probs: np.ndarray, labels: np.ndarray, *, bins: int = ECE_BINS
) -> float:
    """Return the mean distance of confidence from accuracy (Guo et al., arXiv 1706.04599, eq. 3),
    between 0 and 1.

    Arguments and errors as in `accuracy`. An image's confidence is its largest probability; bins
    have equal width and include their upper end. Computed in float64.

        for m in 1 ... bins:
            inside = [n for n in range(N) if (m - 1) / bins < max(probs[n]) <= m / bins]
            error += len(inside) / N * abs(mean of right[inside] - mean of max(probs[inside]))
    """
    right, confidence = _right(probs, labels), _confidence(probs)
    ends = np.arange(1, bins + 1) / bins
    # Rounding can make a confidence exceed 1.
    places = np.minimum(np.searchsorted(ends, confidence, side="left"), bins - 1)
    surplus = np.bincount(places, weights=right - confidence, minlength=bins)
    return float(np.abs(surplus).sum() / len(right))


def confidence_when_wrong(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the mean largest probability of the misclassified images; arguments as in `accuracy`.

    None without errors: 0 would look like a network that doubts all its mistakes.
    """
    wrong = ~_right(probs, labels)
    return float(_confidence(probs)[wrong].mean()) if wrong.any() else None


def shared_errors(probs: np.ndarray, teacher_probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the share of the teacher's errors that the student repeats with the same wrong class.

    probs and teacher_probs (N, K) of the same images; otherwise as in `accuracy`. None if the
    teacher has no errors.
    """
    if probs.shape != teacher_probs.shape:
        raise ValueError(
            f"probabilities of {probs.shape} and of {teacher_probs.shape} are not of the same"
            " images"
        )
    wrong = ~_right(teacher_probs, labels)
    same = probs.argmax(axis=1) == teacher_probs.argmax(axis=1)
    return float(same[wrong].mean()) if wrong.any() else None


def paired_gain(before_probs: np.ndarray, after_probs: np.ndarray, labels: np.ndarray) -> Gain:
    """Return the gain in accuracy and its standard error (McNemar, Psychometrika 12, 1947).

    before_probs and after_probs (N, K) of the same images; otherwise as in `accuracy`. Images on
    which both agree cancel, so the error is far below that of two accuracies on different images.

        b = images right after and wrong before;  c = images wrong after and right before
        difference = (b - c) / N;  standard_error = sqrt(b + c - (b - c)^2 / N) / N
    """
    before, after = _right(before_probs, labels), _right(after_probs, labels)
    gained, lost, count = int((after & ~before).sum()), int((before & ~after).sum()), len(labels)
    variance = gained + lost - (gained - lost) ** 2 / count
    return Gain((gained - lost) / count, math.sqrt(max(variance, 0.0)) / count, count)


def beyond_noise(gain: Gain) -> bool:
    """Return whether a gain is larger than chance alone would show in 5 % of cases.

    One-sided, since the only question is whether to continue, and "equal" and "worse" both answer
    no. It assumes a normal distribution, which is too optimistic if fewer than about ten images
    changed: three gains out of three pass, although chance gives that in one of eight cases.
    """
    return gain.difference > 0 and gain.difference > ONE_SIDED * gain.standard_error


def effective_classes(counts: np.ndarray) -> float:
    """Return the effective number of classes: exp of the entropy of their shares, between 1 and K.

    counts (K,): images of each class. 0 without images. ValueError for negative counts.

        p = counts / sum(counts);  exp(-sum(p * log(p)))
    """
    if (counts < 0).any():
        raise ValueError("counts of images cannot be negative")
    total = counts.sum()
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


# -- remarks ---------------------------------------------------------------------------------------


def no_gain(
    before: float, after: float, gain: Gain, *, generation: int, kind: str = "generation"
) -> Remark | None:
    """Return a remark if a generation or round does not beat its teacher, else None.

    before, after: accuracies of the teacher and the student. gain: their `paired_gain`.
    """
    if beyond_noise(gain):
        return None
    worse = beyond_noise(Gain(-gain.difference, gain.standard_error, gain.num_images))
    verdict = "is less accurate than {}" if worse else "does not beat {} beyond noise"
    unseen = (
        f" A gain below {ONE_SIDED * gain.standard_error:.3f} cannot be seen on this many images;"
        " hold out more to see it."
    )
    return Remark(
        "no_gain",
        gain.difference,
        f"{kind.capitalize()} {generation} {verdict.format(f'{kind} {generation - 1}')}: accuracy"
        f" {after:.3f} after {before:.3f}, {gain.difference:+.3f} ± {gain.standard_error:.3f} on"
        f" {counted(gain.num_images, 'held-out image')}. Stop here and keep {kind}"
        f" {generation - 1}, or let the {kind}s vote as an"
        f" ensemble.{unseen if gain.standard_error > 0 and not worse else ''}",
    )


def surer_of_mistakes(
    confidences: Sequence[float | None], *, first: int = 1, kind: str = "generation"
) -> Remark | None:
    """Return a remark if confidence in wrong answers rises by more than MAX_RISE over the
    generations, and rises in the last one; else None.

    confidences: `confidence_when_wrong` of each generation, which are numbered from `first`. None
    is skipped.
    """
    known = [
        (number, value) for number, value in enumerate(confidences, first) if value is not None
    ]
    if len(known) < 2:
        return None
    (start, lowest), (_, previous), (end, highest) = known[0], known[-2], known[-1]
    if highest - lowest <= MAX_RISE or highest <= previous:
        return None
    values = ", ".join(f"{value:.2f}" for _, value in known)
    return Remark(
        "surer_of_mistakes",
        highest - lowest,
        f"More confident in its mistakes with each {kind}: from {kind} {start} to {end} the mean"
        f" confidence in wrong answers is {values}, {highest - lowest:+.2f} in all. Raise the"
        " temperature of the teacher's probabilities, smooth the labels, or weight images by the"
        " teacher's confidence (CWTM).",
    )


def agrees_with_errors(
    share: float | None, *, threshold: float = MAX_SHARED_ERRORS, student: str = "student"
) -> Remark | None:
    """Return a remark if a student repeats its teacher's mistakes, else None. share:
    `shared_errors`."""
    if share is None or share <= threshold:
        return None
    return Remark(
        "agrees_with_errors",
        share,
        f"The {student} repeats its teacher's mistakes: of the held-out images that the teacher"
        f" gets wrong, it gives {share:.0%} the same wrong class, more than {threshold:.0%}. Train"
        " it differently from the teacher, with stronger augmentation or dropout, or give the"
        " labels"
        " more weight.",
    )


def few_classes(counts: np.ndarray, *, expected: float) -> Remark | None:
    """Return a remark if pseudo-labels cover less than MIN_CLASSES of the expected classes, else
    None.

    counts (K,): accepted images of each class. expected: `effective_classes` of the labeled images.
    None without images; `nothing_accepted` reports that case.
    """
    num_classes = effective_classes(counts)
    if num_classes == 0 or num_classes >= MIN_CLASSES * expected:
        return None
    return Remark(
        "few_classes",
        num_classes,
        f"Pseudo-labels fall on few classes: the {int(counts.sum()):,} accepted images spread"
        f" over {num_classes:.1f} of {len(counts):,} classes (exp of the entropy), the labeled"
        f" images over {expected:.1f}. Balance the classes, or give each class its own threshold,"
        " since images of easy classes pass a common one first.",
    )


def nothing_accepted(num_accepted: int, num_unlabeled: int, *, threshold: float) -> Remark | None:
    """Return a remark if a round accepts less than MIN_ACCEPTED of the unlabeled images, else None.

    ValueError without unlabeled images.
    """
    if num_unlabeled < 1:
        raise ValueError("a round needs unlabeled images")
    share = num_accepted / num_unlabeled
    if share >= MIN_ACCEPTED:
        return None
    accepted = f"only {num_accepted:,}" if num_accepted else "none"
    return Remark(
        "nothing_accepted",
        share,
        f"Almost no pseudo-labels: {accepted} of {num_unlabeled:,} unlabeled images reach"
        f" the confidence of {threshold:g} that a pseudo-label needs. Lower the threshold, or"
        " train the first teacher for longer.",
    )


# -- helpers ---------------------------------------------------------------------------------------


def _right(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether the most probable class is the label."""
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"probabilities of {probs.shape} and labels of {labels.shape} are not (N, K) and (N,)"
        )
    if len(labels) == 0:
        raise ValueError("accuracy needs at least one image")
    return np.asarray(probs.argmax(axis=1) == labels)


def _confidence(probs: np.ndarray) -> np.ndarray:
    """Return (N,) float64: the largest probability."""
    return np.asarray(probs.max(axis=1), np.float64)
