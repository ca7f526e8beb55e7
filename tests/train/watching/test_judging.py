"""Promises of the figures of trainings in a row, counted by hand, and of the remarks on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from featkit_train.watching.judging import (
    Gain,
    Remark,
    accuracy,
    agrees_with_errors,
    beyond_noise,
    confidence_when_wrong,
    effective_classes,
    expected_calibration_error,
    few_classes,
    no_gain,
    nothing_accepted,
    paired_gain,
    shared_errors,
    surer_of_mistakes,
)

# N images, K classes


def drawn(
    num_images: int, num_classes: int, *, seed: int, skill: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) that lean to the labels, and the labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    logits = rng.normal(size=(num_images, num_classes)) + skill * np.eye(num_classes)[labels]
    probs = np.exp(logits)
    return probs / probs.sum(axis=1, keepdims=True), labels


def saying(classes: list[int], num_classes: int = 3, *, confidence: float = 0.8) -> np.ndarray:
    """Return probabilities (N, K) with `confidence` in the given class of each image."""
    probs = np.full((len(classes), num_classes), (1 - confidence) / (num_classes - 1))
    probs[np.arange(len(classes)), classes] = confidence
    return probs


# -- figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_is_that_of_scikit_learn(seed: int) -> None:
    probs, labels = drawn(101, 7, seed=seed)
    assert accuracy(probs, labels) == pytest.approx(accuracy_score(labels, probs.argmax(axis=1)))
    assert accuracy(probs.astype(np.float32), labels) == pytest.approx(accuracy(probs, labels))


def test_of_equal_classes_the_first_is_said() -> None:
    assert accuracy(np.full((4, 4), 0.25), np.array([0, 1, 2, 0])) == 0.5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), bins=st.integers(1, 20), num_images=st.integers(1, 60))
def test_the_calibration_error_is_the_loop_of_its_docstring(
    seed: int, bins: int, num_images: int
) -> None:
    probs, labels = drawn(num_images, 4, seed=seed)
    right, confidence = probs.argmax(axis=1) == labels, probs.max(axis=1)
    error = 0.0
    for m in range(1, bins + 1):
        inside = [n for n in range(num_images) if (m - 1) / bins < confidence[n] <= m / bins]
        if inside:
            error += (
                len(inside) / num_images * abs(right[inside].mean() - confidence[inside].mean())
            )
    found = expected_calibration_error(probs, labels, bins=bins)
    assert found == pytest.approx(error, abs=1e-12)
    assert 0 <= found <= 1


def test_the_calibration_error_of_figures_a_reader_can_check() -> None:
    probs, labels = saying([0] * 10, confidence=0.8), np.array([0] * 8 + [1] * 2)
    assert expected_calibration_error(probs, labels) == pytest.approx(0.0)
    assert expected_calibration_error(saying([0] * 10, confidence=1.0), labels) == pytest.approx(
        0.2
    )
    # One bin hides what two show: half of the images are doubted too much and half too
    # little.
    probs, labels = (
        np.concatenate([saying([0] * 4, confidence=0.6), saying([0] * 4, confidence=1.0)]),
        np.array([0] * 4 + [1] * 4),
    )
    assert expected_calibration_error(probs, labels, bins=1) == pytest.approx(0.3)
    assert expected_calibration_error(probs, labels, bins=5) == pytest.approx((0.4 + 1.0) / 2)


def test_a_bin_includes_its_upper_end_and_the_last_one_rounding() -> None:
    labels = np.array([0, 0])
    # 0.5 is of the lower half, and right; 0.6 of the upper, and wrong
    at_the_end = np.array([[0.5, 0.5], [0.4, 0.6]])
    assert expected_calibration_error(at_the_end, labels, bins=2) == pytest.approx((0.5 + 0.6) / 2)
    above = np.array([[1 + 1e-7, 0.0], [1.0, 0.0]])
    assert expected_calibration_error(above, labels, bins=15) == pytest.approx(0.0, abs=1e-6)


def test_confidence_when_wrong_is_the_mean_over_errors_or_none() -> None:
    probs = np.concatenate(
        [saying([0, 1], confidence=0.9), saying([2], confidence=0.6), saying([2], confidence=0.7)]
    )
    assert confidence_when_wrong(probs, np.array([0, 1, 0, 1])) == pytest.approx(0.65)
    assert confidence_when_wrong(probs, np.array([0, 1, 2, 2])) is None


def test_shared_errors_count_the_same_wrong_class() -> None:
    labels = np.array([0, 0, 0, 0, 1])
    teacher, student = saying([1, 1, 2, 0, 1]), saying([1, 2, 2, 1, 1])
    assert shared_errors(student, teacher, labels) == pytest.approx(2 / 3)
    assert shared_errors(teacher, teacher, labels) == 1.0
    assert shared_errors(student, saying(labels.tolist()), labels) is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num_images=st.integers(1, 50))
def test_a_paired_gain_is_the_count_of_images_that_changed_sides(
    seed: int, num_images: int
) -> None:
    before, labels = drawn(num_images, 3, seed=seed)
    after = drawn(num_images, 3, seed=seed + 1)[0]
    gained = lost = 0
    for n in range(num_images):
        was, now = before[n].argmax() == labels[n], after[n].argmax() == labels[n]
        gained, lost = gained + (now and not was), lost + (was and not now)
    gain = paired_gain(before, after, labels)
    assert gain.difference == pytest.approx((gained - lost) / num_images)
    assert gain.difference == pytest.approx(accuracy(after, labels) - accuracy(before, labels))
    changes = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (num_images - gained - lost))
    assert gain.standard_error == pytest.approx(changes.std() / math.sqrt(num_images), abs=1e-9)
    assert gain.num_images == num_images


def test_the_standard_error_is_that_of_a_bootstrap_over_images() -> None:
    rng = np.random.default_rng(0)
    before, labels = drawn(400, 5, seed=0, skill=1.5)
    after = (
        0.5 * before + 0.5 * drawn(400, 5, seed=0, skill=2.0)[0] + 0.1 * rng.random(before.shape)
    )
    was, now = before.argmax(axis=1) == labels, after.argmax(axis=1) == labels
    gain = paired_gain(before, after, labels)
    means = [
        float((now[chosen].astype(int) - was[chosen]).mean())
        for chosen in rng.integers(0, 400, (4000, 400))
    ]
    assert gain.standard_error > 0
    assert gain.standard_error == pytest.approx(np.std(means), rel=0.05)
    alone = math.sqrt(sum(share * (1 - share) / 400 for share in (was.mean(), now.mean())))
    assert gain.standard_error < alone


@pytest.mark.parametrize(
    ("difference", "standard_error", "expected"),
    [
        (0.0, 0.0, False),
        (0.01, 0.0, True),
        (-0.01, 0.0, False),
        (0.0164, 0.01, False),
        (0.0165, 0.01, True),
        (-0.1, 0.01, False),
    ],
)
def test_a_gain_is_beyond_noise_from_the_one_sided_bound_on(
    difference: float, standard_error: float, expected: bool
) -> None:
    assert beyond_noise(Gain(difference, standard_error, 500)) is expected


def test_chance_alone_is_beyond_noise_in_one_of_twenty_trials() -> None:
    rng, labels = np.random.default_rng(0), np.zeros(400, np.int64)
    found = []
    for _ in range(1500):
        before, after = (saying(list(said), 2) for said in rng.binomial(1, 0.3, (2, 400)))
        found.append(beyond_noise(paired_gain(before, after, labels)))
    assert np.mean(found) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("counts", [[5], [3, 3, 3], [1, 2, 3, 4, 0], [10_000, 1]])
def test_effective_classes_are_exp_of_the_entropy(counts: list[int]) -> None:
    total, entropy = sum(counts), 0.0
    for count in counts:
        entropy -= count / total * math.log(count / total) if count else 0.0
    found = effective_classes(np.array(counts))
    assert found == pytest.approx(math.exp(entropy))
    assert 1 <= found <= len(counts) + 1e-9


def test_effective_classes_of_equal_shares_are_their_number() -> None:
    assert effective_classes(np.array([7, 7, 0, 7])) == pytest.approx(3)
    assert effective_classes(np.zeros(4, np.int64)) == 0.0


def test_what_only_a_programmer_can_get_wrong_is_a_value_error() -> None:
    probs, labels = drawn(5, 3, seed=0)
    for bad_probs, bad_labels in ((probs, labels[:4]), (probs[0], labels), (probs[:0], labels[:0])):
        for judge in (accuracy, expected_calibration_error, confidence_when_wrong):
            with pytest.raises(ValueError, match=r"labels|at least one image"):
                judge(bad_probs, bad_labels)
    with pytest.raises(ValueError, match="not of the same images"):
        shared_errors(probs, probs[:4], labels)
    with pytest.raises(ValueError, match="labels"):
        paired_gain(probs, probs[:4], labels)
    with pytest.raises(ValueError, match="negative"):
        effective_classes(np.array([1, -1]))
    with pytest.raises(ValueError, match="needs unlabeled images"):
        nothing_accepted(0, 0, threshold=0.9)


# -- remarks ---------------------------------------------------------------------------------------


def sentence(remark: Remark | None, name: str, figure: float) -> str:
    """Return the sentence of a remark, which is one line that ends as a sentence does."""
    assert remark is not None
    assert remark.name == name
    assert remark.figure == pytest.approx(figure)
    assert remark.sentence.endswith(".")
    assert "\n" not in remark.sentence
    return remark.sentence


def test_no_gain_is_remarked_with_its_figures_and_its_bound() -> None:
    said = sentence(no_gain(0.509, 0.512, Gain(0.003, 0.006, 500), generation=3), "no_gain", 0.003)
    assert said.startswith(
        "Generation 3 does not beat generation 2 beyond noise: accuracy 0.512 after 0.509, "
        "+0.003 ± 0.006 on 500 held-out images."
    )
    assert "Stop here and keep generation 2" in said
    assert "A gain below 0.010 cannot be seen" in said


def test_a_gain_is_no_remark_and_a_loss_is_called_one() -> None:
    assert no_gain(0.5, 0.52, Gain(0.02, 0.006, 500), generation=2) is None
    said = sentence(
        no_gain(0.5, 0.4, Gain(-0.1, 0.006, 500), generation=2, kind="round"), "no_gain", -0.1
    )
    assert said.startswith(
        "Round 2 is less accurate than round 1: accuracy 0.400 after 0.500, -0.100 ± 0.006"
    )
    assert "cannot be seen" not in said


def test_no_gain_of_equal_predictions_has_no_bound() -> None:
    said = sentence(no_gain(0.5, 0.5, Gain(0.0, 0.0, 20), generation=2), "no_gain", 0.0)
    assert "cannot be seen" not in said


def test_rising_confidence_when_wrong_is_remarked() -> None:
    said = sentence(surer_of_mistakes([0.5, 0.48, 0.6]), "surer_of_mistakes", 0.1)
    assert "from generation 1 to 3" in said
    assert "0.50, 0.48, 0.60, +0.10 in all" in said
    assert "temperature" in said
    said = sentence(
        surer_of_mistakes([None, 0.5, None, 0.7], first=0, kind="round"), "surer_of_mistakes", 0.2
    )
    assert "from round 1 to 3" in said


@pytest.mark.parametrize(
    "confidences",
    [[], [0.9], [None, 0.9], [0.5, 0.54], [0.5, 0.8, 0.7], [0.5, 0.7, 0.7], [0.8, 0.5]],
)
def test_steady_confidence_when_wrong_is_not_remarked(
    confidences: list[float | None],
) -> None:
    assert surer_of_mistakes(confidences) is None


def test_shared_errors_are_remarked_only_above_the_threshold() -> None:
    assert agrees_with_errors(0.8) is None
    assert agrees_with_errors(None) is None
    assert agrees_with_errors(0.85, threshold=0.9) is None
    said = sentence(
        agrees_with_errors(0.86, student="student of generation 2"), "agrees_with_errors", 0.86
    )
    assert said.startswith("The student of generation 2 repeats its teacher's mistakes")
    assert "86% the same wrong class" in said
    assert "augmentation" in said


def test_pseudo_labels_of_few_classes_are_remarked() -> None:
    said = sentence(few_classes(np.array([90, 90, 0, 0, 0]), expected=4.6), "few_classes", 2.0)
    assert "the 180 accepted images spread over 2.0 of 5 classes" in said
    assert "the labeled images over 4.6" in said
    assert "Balance the classes" in said
    assert few_classes(np.array([90, 90, 0, 0, 0]), expected=3.0) is None
    assert few_classes(np.array([9, 9, 9, 9, 8]), expected=5.0) is None
    assert few_classes(np.zeros(5, np.int64), expected=5.0) is None


def test_a_threshold_that_nearly_nothing_passes_is_named() -> None:
    said = sentence(nothing_accepted(99, 10_000, threshold=0.95), "nothing_accepted", 0.0099)
    assert "only 99 of 10,000 unlabeled images reach the confidence of 0.95" in said
    assert "Lower the threshold" in said
    assert "none of 50 unlabeled" in sentence(
        nothing_accepted(0, 50, threshold=0.9), "nothing_accepted", 0.0
    )
    assert nothing_accepted(100, 10_000, threshold=0.95) is None
