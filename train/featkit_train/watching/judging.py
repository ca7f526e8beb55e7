"""How good a classifier's probabilities are, whether one training beats the one before it, and what
to say where it does not.

For trainings in a row, each taught by the one before: the generations of Born-Again Networks (arXiv
1805.04770), the rounds of Noisy Student (arXiv 1911.04252), the exits of self-distillation within
one network (arXiv 1905.08094). All figures are of held-out images that stay the same from one
training to the next.

Letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featkit.wording import counted

ECE_BINS = 15  # Guo et al., section 4
ONE_SIDED = 1.645  # standard errors that chance alone reaches upwards once in twenty times
SURER_BY = 0.05  # more confidence in wrong answers from the first to the last
SHARED_ERRORS = 0.8  # of the teacher's errors
FEWER_CLASSES = 0.6  # times as many as the labeled images have
LEAST_ACCEPTED = 0.01  # of the unlabeled images


@dataclass(frozen=True)
class Gain:
    """How much more accurate one training is than another on the same images, and how far chance
    moves that."""

    difference: float
    standard_error: float
    num_images: int


@dataclass(frozen=True)
class Remark:
    """One thing noticed of finished trainings: its name, the figure that shows it, and what it is
    and what to do about it.

    diagnostics.Finding is of a training that goes on, and may stop it.
    """

    name: str
    figure: float
    sentence: str


# -- figures ---------------------------------------------------------------------------------------


def accuracy(probs: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images whose most probable class is their label; of equal classes the first
    one.

    probs (N, K), any float; labels (N,), whole numbers below K. ValueError for no images, and
    where the shapes do not fit.
    """
    return float(_right(probs, labels).mean())


def expected_calibration_error(
    probs: np.ndarray, labels: np.ndarray, *, bins: int = ECE_BINS
) -> float:
    """How far confidence is from accuracy, on average over images (Guo et al., arXiv 1706.04599,
    eq. 3); between 0 and 1.

    Arguments and ValueErrors as for `accuracy`. An image's confidence is its greatest probability;
    bins are of equal width and hold their upper end. Computed in float64.

        for m in 1 ... bins:
            inside = [n for n in range(N) if (m - 1) / bins < max(probs[n]) <= m / bins]
            error += len(inside) / N * abs(mean of right[inside] - mean of max(probs[inside]))
    """
    right, confidence = _right(probs, labels), _confidence(probs)
    ends = np.arange(1, bins + 1) / bins
    # rounding leads beyond 1
    places = np.minimum(np.searchsorted(ends, confidence, side="left"), bins - 1)
    surplus = np.bincount(places, weights=right - confidence, minlength=bins)
    return float(np.abs(surplus).sum() / len(right))


def confidence_when_wrong(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean of the greatest probability over the images that are classified wrongly; arguments as
    for `accuracy`.

    None where none is wrong: a zero would look like a network that doubts all its mistakes.
    """
    wrong = ~_right(probs, labels)
    return float(_confidence(probs)[wrong].mean()) if wrong.any() else None


def shared_errors(probs: np.ndarray, teacher_probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Of the images that the teacher classifies wrongly, the share to which the student gives the
    very same wrong class.

    probs and teacher_probs (N, K) of the same images; otherwise as for `accuracy`. None where the
    teacher is never wrong.
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
    """Accuracy after less accuracy before, and its standard error (McNemar, Psychometrika 12,
    1947).

    before_probs and after_probs (N, K) of the same images; otherwise as for `accuracy`. Images
    that both judge alike cancel, so the error is far below that of two accuracies on images of
    their own.

        b = images that are right after and wrong before;  c = the other way round
        difference = (b - c) / N;  standard_error = sqrt(b + c - (b - c)^2 / N) / N
    """
    before, after = _right(before_probs, labels), _right(after_probs, labels)
    gained, lost, count = int((after & ~before).sum()), int((before & ~after).sum()), len(labels)
    variance = gained + lost - (gained - lost) ** 2 / count
    return Gain((gained - lost) / count, math.sqrt(max(variance, 0.0)) / count, count)


def beyond_noise(gain: Gain) -> bool:
    """Whether there is a gain at all, as chance alone would show in one of twenty cases at most.

    One-sided, since one question is asked: is it worth going on? No better and worse are both a no,
    so nothing is spent on telling them apart. It takes the normal law for the difference, which
    promises too much where fewer than about ten images changed sides: three of three pass, as
    three coins do in one of eight throws.
    """
    return gain.difference > 0 and gain.difference > ONE_SIDED * gain.standard_error


def effective_classes(counts: np.ndarray) -> float:
    """Over how many classes images spread: exp of the entropy of the classes' shares; between 1
    and K.

    counts (K,), images of each class. 0 where there are none at all. ValueError for counts below
    0.

        p = counts / sum(counts);  exp(-sum(p * log(p)))
    """
    if (counts < 0).any():
        raise ValueError("counts of images are not below 0")
    total = counts.sum()
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


# -- what is said of them --------------------------------------------------------------------------


def no_gain(
    before: float, after: float, gain: Gain, *, generation: int, kind: str = "generation"
) -> Remark | None:
    """Of a generation (or round) that is not better than the one before it; their accuracies, and
    `paired_gain` of the two."""
    if beyond_noise(gain):
        return None
    worse = beyond_noise(Gain(-gain.difference, gain.standard_error, gain.num_images))
    verdict = "is less accurate than {}" if worse else "does not beat {} beyond noise"
    unseen = (
        f" A gain below {ONE_SIDED * gain.standard_error:.3f} does not show on so few: hold out"
        " more images to see it."
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
    """Of confidence in wrong answers that rises by more than SURER_BY over the generations, and in
    the last step too.

    confidences: `confidence_when_wrong` of each generation in order, the first having the number
    `first`; None is passed over.
    """
    known = [
        (number, value) for number, value in enumerate(confidences, first) if value is not None
    ]
    if len(known) < 2:
        return None
    (start, lowest), (_, previous), (end, highest) = known[0], known[-2], known[-1]
    if highest - lowest <= SURER_BY or highest <= previous:
        return None
    values = ", ".join(f"{value:.2f}" for _, value in known)
    return Remark(
        "surer_of_mistakes",
        highest - lowest,
        f"Surer of its mistakes with each {kind}: from {kind} {start} to {end} the mean confidence"
        f" in wrong answers goes {values}, in all {highest - lowest:+.2f}. Raise the temperature of"
        " the teacher's probabilities, smooth the labels, or weigh images by the teacher's"
        " confidence (CWTM).",
    )


def agrees_with_errors(
    share: float | None, *, threshold: float = SHARED_ERRORS, student: str = "student"
) -> Remark | None:
    """Of a student that takes over its teacher's mistakes; share: `shared_errors`, of which None
    says nothing."""
    if share is None or share <= threshold:
        return None
    return Remark(
        "agrees_with_errors",
        share,
        f"The {student} repeats its teacher's mistakes: of the held-out images that the teacher"
        f" gets wrong, it gives {share:.0%} the same wrong class, more than {threshold:.0%}. Give"
        " it what the teacher did not have, as stronger augmentation and dropout, or more weight"
        " on the labels beside the teacher.",
    )


def few_classes(counts: np.ndarray, *, expected: float) -> Remark | None:
    """Of pseudo-labels that fall on few classes: fewer than FEWER_CLASSES times those of the
    labeled images.

    counts (K,), accepted images of each class; expected: `effective_classes` of the labeled
    images. None for no images at all, of which `nothing_accepted` speaks.
    """
    found = effective_classes(counts)
    if found == 0 or found >= FEWER_CLASSES * expected:
        return None
    return Remark(
        "few_classes",
        found,
        f"Pseudo-labels fall on few classes: the {int(counts.sum()):,} accepted images spread"
        f" over {found:.1f} of {len(counts):,} classes (exp of the entropy), the labeled images"
        f" over {expected:.1f}. Take as many images of each class (class balancing), or give each"
        " class a threshold of its own, since the easy ones pass a common one first.",
    )


def nothing_accepted(num_accepted: int, num_unlabeled: int, *, threshold: float) -> Remark | None:
    """Of a round whose threshold lets through less than LEAST_ACCEPTED of the unlabeled images.

    ValueError for no unlabeled images.
    """
    if num_unlabeled < 1:
        raise ValueError("a round without unlabeled images accepts none whatever its threshold")
    share = num_accepted / num_unlabeled
    if share >= LEAST_ACCEPTED:
        return None
    found = f"only {num_accepted:,}" if num_accepted else "none"
    return Remark(
        "nothing_accepted",
        share,
        f"Hardly anything to learn from: {found} of {num_unlabeled:,} unlabeled images reach"
        f" the confidence of {threshold:g} that a pseudo-label needs. Lower that threshold, or"
        " train the first teacher for longer.",
    )


# -- helpers ---------------------------------------------------------------------------------------


def _right(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the most probable class is the label."""
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(
            f"probabilities of {probs.shape} and labels of {labels.shape} are not (N, K) and (N,)"
        )
    if len(labels) == 0:
        raise ValueError("no images have no accuracy")
    return np.asarray(probs.argmax(axis=1) == labels)


def _confidence(probs: np.ndarray) -> np.ndarray:
    """(N,) float64: the greatest probability."""
    return np.asarray(probs.max(axis=1), np.float64)
