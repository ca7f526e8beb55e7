"""Promises of what labels, a teacher and a deepest exit teach."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from featkit_train.losses import (
    confidence_weights,
    cross_entropy,
    exit_loss,
    feature_loss,
    kd_loss,
    permuted_knowledge,
    soft_cross_entropy,
)
from tests.train.losses.processes import in_processes


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Draw float64 noise with gradient."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


def labels_of(batch: int, classes: int, *, seed: int = 0) -> Tensor:
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))


def weights_of(batch: int) -> Tensor:
    """Draw unequal float64 weights that sum to 1."""
    raw = torch.arange(1.0, batch + 1, dtype=torch.float64)
    return raw / raw.sum()


def assert_same(
    loss: Tensor, expected: Tensor, *leaves: Tensor, rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    """Assert that our float32 scalar equals the loop in value and in the gradients of `leaves`."""
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)
    for gradient, expected_gradient in zip(ours, theirs, strict=True):
        assert expected_gradient.any()
        torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=atol)


# -- the loops of the docstrings -------------------------------------------------------------------


def over_rows(terms: list[Tensor], weights: Tensor | None) -> Tensor:
    if weights is None:
        return torch.stack(terms).mean()
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()


def kd_loop(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    weights: Tensor | None = None,
) -> Tensor:
    terms = []
    for student, teacher in zip(student_logits, teacher_logits.detach(), strict=True):
        p, q = (
            torch.softmax(teacher / temperature, dim=0),
            torch.softmax(student / temperature, dim=0),
        )
        terms.append(temperature**2 * (p * torch.log(p / q)).sum())
    return over_rows(terms, weights)


def cross_entropy_loop(
    student_logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    terms = []
    num_classes = student_logits.shape[1]
    for student, label in zip(student_logits, labels.tolist(), strict=True):
        log_probs = torch.log(student.exp() / student.exp().sum())
        target = [
            (1 - smoothing) * (k == label) + smoothing / num_classes for k in range(num_classes)
        ]
        terms.append(-torch.stack([target[k] * log_probs[k] for k in range(num_classes)]).sum())
    return over_rows(terms, weights)


def soft_cross_entropy_loop(
    student_logits: Tensor, probs: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    terms = []
    for student, target in zip(student_logits, probs.detach(), strict=True):
        terms.append(-(target * torch.log(student.exp() / student.exp().sum())).sum())
    return over_rows(terms, weights)


def feature_loop(features: Tensor, target: Tensor) -> Tensor:
    differences = [
        a - b.detach() for a, b in zip(features.flatten(), target.flatten(), strict=True)
    ]
    return torch.stack([difference**2 for difference in differences]).mean()


def exit_loops(
    logits: Tensor,
    vectors: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    feature_weight: float,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    by_labels = cross_entropy_loop(logits[-1], labels)
    knowledge, features = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for e in range(len(logits) - 1):
        by_labels = by_labels + (1 - alpha) * cross_entropy_loop(logits[e], labels)
        knowledge = knowledge + alpha * kd_loop(logits[e], logits[-1], temperature=temperature)
        features = features + feature_weight * feature_loop(vectors[e], vectors[-1])
    return by_labels, knowledge, features


# -- kd_loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("weights", [None, weights_of(5)])
def test_kd_loss_equals_the_loop_in_value_and_gradient(
    temperature: float, weights: Tensor | None
) -> None:
    student, teacher = noise(5, 7), noise(5, 7, seed=1)
    loss = kd_loss(student, teacher, temperature=temperature, weights=weights)
    assert_same(loss, kd_loop(student, teacher, temperature=temperature, weights=weights), student)


@pytest.mark.parametrize("log_target", [False, True])
def test_kd_loss_is_torchs_divergence_times_temperature_squared(log_target: bool) -> None:
    student, teacher = noise(5, 7), noise(5, 7, seed=1)
    target = (
        F.log_softmax(teacher.detach() / 3, dim=-1)
        if log_target
        else F.softmax(teacher.detach() / 3, dim=-1)
    )
    log_probs = F.log_softmax(student / 3, dim=-1)
    expected = 9 * F.kl_div(log_probs, target, reduction="batchmean", log_target=log_target)
    assert_same(kd_loss(student, teacher, temperature=3.0), expected, student)


def test_kd_loss_of_a_uniform_student_is_log_num_classes() -> None:
    teacher = torch.tensor([[200.0, 0.0, 0.0, 0.0], [0.0, 0.0, 200.0, 0.0]])
    assert kd_loss(torch.full((2, 4), 3.0), teacher).item() == pytest.approx(math.log(4))


def test_kd_loss_approaches_squared_differences_when_hot() -> None:
    student, teacher = noise(3, 6), noise(3, 6, seed=1)
    difference = (
        student
        - student.mean(dim=1, keepdim=True)
        - (teacher - teacher.mean(dim=1, keepdim=True)).detach()
    )
    matching = (difference**2).mean() / 2
    loss = kd_loss(student, teacher, temperature=1e5)
    assert loss.item() == pytest.approx(matching.item(), rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, student)
    # Hinton et al., eq. 4
    torch.testing.assert_close(gradient, difference.detach() / (6 * 3), rtol=1e-3, atol=1e-4)
    cool = kd_loss(student, teacher, temperature=2.0)
    assert cool.item() != pytest.approx(matching.item(), rel=0.05)


@pytest.mark.parametrize("classes", [7, 1000])
@pytest.mark.parametrize("temperature", [100.0, 1e3, 1e4])
def test_kd_loss_keeps_its_digits_at_high_temperature(temperature: float, classes: int) -> None:
    student, teacher = noise(4, classes), noise(4, classes, seed=1)
    expected = kd_loop(student, teacher, temperature=temperature)
    assert_same(
        kd_loss(student.float(), teacher.float(), temperature=temperature),
        expected,
        student,
        rtol=1e-3,
        atol=1e-6,
    )
    plain = kd_loop(student.float(), teacher.float(), temperature=temperature)
    # what the plain sum makes of it in float32, for which ours is written as it is
    if temperature >= 1e3:
        assert plain.item() != pytest.approx(expected.item(), rel=1e-3)


def test_kd_loss_keeps_its_digits_for_small_differences() -> None:
    teacher = noise(4, 50)
    student = (teacher + 1e-3 * noise(4, 50, seed=1)).detach().float().requires_grad_()
    exact = student.detach().double().requires_grad_()
    expected = kd_loop(exact, teacher.float().double(), temperature=1.0)
    loss = kd_loss(student, teacher.float())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(
        gradient.double(), torch.autograd.grad(expected, exact)[0], rtol=1e-2, atol=1e-7
    )


@pytest.mark.parametrize("distance", [1e-4, 0.01, 0.1, 0.24, 0.27, 1.0])
def test_kd_loss_has_five_digits_where_the_series_ends(distance: float) -> None:
    teacher = torch.tensor([[0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    student = (
        distance * torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64).requires_grad_()
    )
    loss, expected = kd_loss(student, teacher), kd_loop(student, teacher, temperature=1.0)
    assert_same(loss, expected, student, rtol=1e-5, atol=0.0)


@settings(max_examples=50, deadline=None)
@given(distance=st.floats(0.01, 1.0), seed=st.integers(0, 10_000))
def test_kd_loss_is_smooth_at_the_end_of_the_series(distance: float, seed: int) -> None:
    student, teacher = noise(3, 5, seed=seed), noise(3, 5, seed=seed + 1).detach()
    near = (teacher + distance * student.detach()).requires_grad_()
    loss, expected = kd_loss(near, teacher), kd_loop(near, teacher, temperature=1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(
        torch.autograd.grad(loss, near)[0],
        torch.autograd.grad(expected, near)[0],
        rtol=1e-4,
        atol=1e-6,
    )


def test_kd_loss_of_one_class_is_zero_without_a_gradient() -> None:
    student = noise(4, 1)
    loss = kd_loss(student, noise(4, 1, seed=1), temperature=2.0)
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_kd_loss_of_a_student_equal_to_its_teacher_is_zero() -> None:
    student = noise(4, 6).detach().float().requires_grad_()
    loss = kd_loss(student, student.detach() + 1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-7


@pytest.mark.parametrize("temperature", [1e-6, 0.01, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kd_loss_of_extreme_logits_is_finite_and_right(
    dtype: torch.dtype, temperature: float
) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype)
    loss = kd_loss(student, teacher, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    # The first row's teacher is sure of a class that the student finds 2e4 / temperature nats away;
    # the second agrees.
    apart = (student[0, 0] - student[0, 1]).item()
    assert loss.item() == pytest.approx(temperature * apart / 2, rel=1e-5)
    expected = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]) * temperature / 2
    torch.testing.assert_close(gradient.float(), expected, rtol=1e-2, atol=1e-6 * temperature)


def test_kd_loss_gives_the_teacher_no_gradient() -> None:
    student, teacher = noise(3, 4), noise(3, 4, seed=1)
    kd_loss(student, teacher, temperature=2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


@settings(max_examples=25, deadline=None)
@given(constant=st.floats(-50, 50), seed=st.integers(0, 10_000), temperature=st.floats(0.5, 20))
def test_kd_loss_ignores_constants_and_the_order_of_classes(
    constant: float, seed: int, temperature: float
) -> None:
    student, teacher = noise(4, 6, seed=seed).detach(), noise(4, 6, seed=seed + 1).detach()
    expected = kd_loss(student, teacher, temperature=temperature).item()
    rows, classes = (
        torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (4, 6)
    )
    assert kd_loss(
        student + constant, teacher - constant, temperature=temperature
    ).item() == pytest.approx(expected, rel=1e-4)
    moved = kd_loss(student[rows][:, classes], teacher[rows][:, classes], temperature=temperature)
    assert moved.item() == pytest.approx(expected, rel=1e-5)


# -- cross_entropy and soft_cross_entropy ----------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, weights_of(5)])
def test_cross_entropy_equals_the_loop_in_value_and_gradient(
    smoothing: float, weights: Tensor | None
) -> None:
    student, labels = noise(5, 7), labels_of(5, 7)
    loss = cross_entropy(student, labels, weights=weights, smoothing=smoothing)
    assert_same(
        loss, cross_entropy_loop(student, labels, weights=weights, smoothing=smoothing), student
    )


@pytest.mark.parametrize("weights", [None, weights_of(5)])
def test_soft_cross_entropy_equals_the_loop(weights: Tensor | None) -> None:
    student, probs = noise(5, 7), noise(5, 7, seed=1).softmax(dim=-1)
    assert_same(
        soft_cross_entropy(student, probs, weights=weights),
        soft_cross_entropy_loop(student, probs, weights=weights),
        student,
    )


def test_cross_entropies_of_uniform_logits_are_log_classes() -> None:
    student, labels = torch.full((3, 8), 2.0), labels_of(3, 8)
    assert cross_entropy(student, labels).item() == pytest.approx(math.log(8))
    assert soft_cross_entropy(student, noise(3, 8).softmax(dim=-1)).item() == pytest.approx(
        math.log(8)
    )


def test_soft_cross_entropy_of_sure_labels_is_cross_entropy() -> None:
    student, labels = noise(5, 7), labels_of(5, 7)
    sure = F.one_hot(labels, 7).double()
    assert soft_cross_entropy(student, sure).item() == pytest.approx(
        cross_entropy(student, labels).item(), rel=1e-6
    )


def test_soft_cross_entropy_is_divergence_plus_entropy() -> None:
    student, teacher = noise(5, 7), noise(5, 7, seed=1)
    probs = teacher.detach().softmax(dim=-1)
    entropy = -(probs * probs.log()).sum(dim=-1).mean()
    assert_same(
        soft_cross_entropy(student, probs), kd_loss(student, teacher).double() + entropy, student
    )


def test_soft_cross_entropy_gives_the_labels_no_gradient() -> None:
    student, teacher = noise(3, 4), noise(3, 4, seed=1)
    soft_cross_entropy(student, teacher.softmax(dim=-1)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_cross_entropies_of_one_class_are_zero() -> None:
    student = noise(3, 1)
    assert cross_entropy(student, torch.zeros(3, dtype=torch.int64), smoothing=0.1).item() == 0.0
    assert soft_cross_entropy(student, torch.ones(3, 1)).item() == 0.0


def test_cross_entropies_of_extreme_logits_are_finite_and_right() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(student, torch.tensor([1]))
    assert loss.item() == pytest.approx(2e4)
    torch.testing.assert_close(
        torch.autograd.grad(loss, student)[0], torch.tensor([[1.0, -1.0, 0.0]])
    )
    soft = soft_cross_entropy(student, torch.tensor([[1.0, 0.0, 0.0]]))
    assert soft.item() == 0.0
    assert torch.autograd.grad(soft, student)[0].isfinite().all()


@pytest.mark.parametrize("unknown", [-1, -100])  # the second is what torch would pass over
def test_negative_label_is_refused(unknown: int) -> None:
    with pytest.raises(ValueError, match=f"found {unknown}"):
        cross_entropy(noise(2, 3), torch.tensor([0, unknown]))
    with pytest.raises(ValueError, match=f"found {unknown}"):
        exit_loss(
            noise(2, 2, 3),
            noise(2, 2, 4),
            torch.tensor([0, unknown]),
            alpha=0.3,
            feature_weight=0.1,
            temperature=3.0,
        )


def test_shapes_that_torch_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        kd_loss(noise(4, 3), noise(1, 3))
    with pytest.raises(ValueError, match="must be equal"):
        soft_cross_entropy(noise(4, 3), noise(1, 3))
    with pytest.raises(ValueError, match="must be equal"):
        feature_loss(noise(4, 3), noise(1, 3))
    with pytest.raises(ValueError, match="must be equal"):
        cross_entropy(noise(4, 3), labels_of(4, 3), weights=torch.full((4, 1), 0.25))


# -- confidence_weights and the weights of several processes ---------------------------------------


def test_confidence_weights_equal_the_loop_without_gradient() -> None:
    teacher = noise(6, 5)
    confidence = [float(torch.softmax(row, dim=0).max()) for row in teacher.detach()]
    weights = confidence_weights(teacher)
    expected = torch.tensor([value / sum(confidence) for value in confidence])
    torch.testing.assert_close(weights, expected)
    assert weights.std() > 0.01
    assert not weights.requires_grad


def test_confidence_weights_do_not_depend_on_the_class() -> None:
    teacher = torch.tensor([[3.0, 0.0, 1.0], [0.0, 1.0, 3.0], [11.0, 13.0, 10.0]])
    torch.testing.assert_close(confidence_weights(teacher), torch.full((3,), 1 / 3))


def test_confidence_weights_of_extreme_logits_are_finite() -> None:
    teacher = torch.tensor([[1e4, -1e4], [0.0, 0.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(confidence_weights(teacher), torch.tensor([2 / 3, 1 / 3]))


@pytest.mark.parametrize("sizes", [[4, 4], [6, 0, 2], [1, 7]])
def test_weighted_losses_average_over_processes_to_the_whole(
    sizes: list[int],
) -> None:
    student, teacher, labels = noise(8, 5), noise(8, 5, seed=1), labels_of(8, 5)

    def weighted(rows: slice, gather: Callable[[Tensor], Tensor]) -> Tensor:
        weights = confidence_weights(teacher[rows], gather=gather)
        by_label = cross_entropy(student[rows], labels[rows], weights=weights)
        by_teacher = kd_loss(student[rows], teacher[rows], temperature=2.0, weights=weights)
        return (
            by_label
            + 3 * by_teacher
            + 5 * soft_cross_entropy(student[rows], teacher[rows].softmax(dim=-1), weights=weights)
        )

    def part(rank: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        first = sum(sizes[:rank])
        return weighted(slice(first, first + sizes[rank]), gather)

    averaged = torch.stack(in_processes(part, sizes)).mean()
    whole = weighted(slice(None), lambda rows: rows)
    assert_same(averaged, whole, student)


# -- permuted_knowledge ----------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    classes=st.integers(1, 6),
    levels=st.sampled_from([2, 1000]),
)
def test_permuted_knowledge_keeps_maximum_and_values(
    seed: int, rows: int, classes: int, levels: int
) -> None:
    # Two levels only, so that maxima tie.
    teacher = torch.randint(
        levels, (rows, classes), generator=torch.Generator().manual_seed(seed)
    ).float()
    before = teacher.clone()
    permuted = permuted_knowledge(teacher, generator=np.random.default_rng(seed))
    assert torch.equal(teacher, before)
    for row, ours in zip(teacher.tolist(), permuted.tolist(), strict=True):
        place = row.index(max(row))
        assert ours[place] == row[place]
        assert sorted(ours) == sorted(row)


def test_permuted_knowledge_keeps_only_the_first_maximum() -> None:
    teacher = torch.tensor([[0.0, 5.0, 1.0, 5.0]]).expand(200, 4)
    permuted = permuted_knowledge(teacher, generator=np.random.default_rng(0))
    assert (permuted[:, 1] == 5).all()
    assert {tuple(row) for row in permuted[:, [0, 2, 3]].tolist()} == {
        (0, 1, 5), (0, 5, 1), (1, 0, 5), (1, 5, 0), (5, 0, 1), (5, 1, 0)
    }  # fmt: skip


def test_permuted_knowledge_draws_all_orders_equally_often() -> None:
    # 0 to 3, of which the 3 stays at place 2: six orders of the others, a thousand of each.
    teacher = torch.tensor([[0.0, 1.0, 3.0, 2.0]]).expand(6000, 4)
    permuted = permuted_knowledge(teacher, generator=np.random.default_rng(0))
    _, counts = torch.unique(permuted, dim=0, return_counts=True)
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 150  # five standard deviations
    assert (permuted[1:] != permuted[:-1]).any(dim=1).float().mean().item() == pytest.approx(
        5 / 6, abs=0.03
    )


def test_permuted_knowledge_depends_on_its_generator_alone() -> None:
    teacher = noise(5, 20)

    def draw(seed: int, logits: Tensor) -> Tensor:
        torch.manual_seed(seed + 17)  # which must not matter
        return permuted_knowledge(logits, generator=np.random.default_rng(seed))

    first = draw(1, teacher)
    assert not torch.equal(first, teacher)
    assert not torch.equal(first, draw(2, teacher))
    torch.manual_seed(99)
    assert torch.equal(first, permuted_knowledge(teacher, generator=np.random.default_rng(1)))
    assert torch.equal(draw(1, 2 * teacher), 2 * first)
    one = np.random.default_rng(1)
    assert not torch.equal(
        permuted_knowledge(teacher, generator=one), permuted_knowledge(teacher, generator=one)
    )
    assert not first.requires_grad


def test_permuting_logits_permutes_probabilities() -> None:
    teacher = noise(5, 9).detach()
    permuted = permuted_knowledge(teacher, generator=np.random.default_rng(3))
    probs = permuted_knowledge(teacher.softmax(dim=-1), generator=np.random.default_rng(3))
    torch.testing.assert_close(permuted.softmax(dim=-1), probs)


def test_permuted_knowledge_of_one_class_is_unchanged() -> None:
    teacher = noise(3, 1)
    assert torch.equal(permuted_knowledge(teacher, generator=np.random.default_rng(0)), teacher)


# -- feature_loss and exit_loss --------------------------------------------------------------------


def test_feature_loss_equals_the_loop_in_value_and_gradient() -> None:
    features, target = noise(4, 6), noise(4, 6, seed=1)
    assert_same(feature_loss(features, target), feature_loop(features, target), features)
    feature_loss(features, target).backward()
    assert target.grad is None


def test_feature_loss_of_features_two_apart_is_four_at_any_width() -> None:
    assert feature_loss(torch.full((3, 5), 1.0), torch.full((3, 5), -1.0)).item() == 4.0
    assert feature_loss(torch.full((3, 50), 1.0), torch.full((3, 50), -1.0)).item() == 4.0


@pytest.mark.parametrize(("exits", "alpha"), [(2, 0.3), (4, 0.3), (3, 0.0), (3, 1.0)])
def test_exit_loss_equals_the_loops_in_value_and_gradient(exits: int, alpha: float) -> None:
    logits, vectors, labels = noise(exits, 5, 7), noise(exits, 5, 6, seed=1), labels_of(5, 7)
    loss = exit_loss(logits, vectors, labels, alpha=alpha, feature_weight=0.2, temperature=3.0)
    expected = exit_loops(logits, vectors, labels, alpha=alpha, feature_weight=0.2, temperature=3.0)
    for part, expected_part in zip(loss, expected, strict=True):
        assert part.dtype == torch.float32
        assert part.item() == pytest.approx(expected_part.item(), rel=1e-5)
    assert_same(torch.stack(loss).sum(), torch.stack(expected).sum(), logits, vectors)


def test_exit_loss_of_one_exit_is_its_cross_entropy() -> None:
    logits, vectors, labels = noise(1, 5, 7), noise(1, 5, 6, seed=1), labels_of(5, 7)
    loss = exit_loss(logits, vectors, labels, alpha=0.3, feature_weight=0.2, temperature=3.0)
    assert loss.labels.item() == cross_entropy(logits[0], labels).item()
    assert (loss.knowledge.item(), loss.features.item()) == (0.0, 0.0)
    assert_same(torch.stack(loss).sum(), cross_entropy_loop(logits[0], labels), logits)


def test_alpha_moves_exits_from_labels_to_the_deepest_exit() -> None:
    logits, vectors, labels = noise(3, 5, 7), noise(3, 5, 6, seed=1), labels_of(5, 7)
    entropies = [cross_entropy(exit_, labels).item() for exit_ in logits]
    none = exit_loss(logits, vectors, labels, alpha=0.0, feature_weight=0.2, temperature=3.0)
    assert none.labels.item() == pytest.approx(sum(entropies), rel=1e-6)
    assert none.knowledge.item() == 0.0
    everything = exit_loss(logits, vectors, labels, alpha=1.0, feature_weight=0.0, temperature=3.0)
    assert everything.labels.item() == pytest.approx(entropies[-1], rel=1e-6)
    expected = sum(kd_loss(exit_, logits[-1], temperature=3.0).item() for exit_ in logits[:-1])
    assert everything.knowledge.item() == pytest.approx(expected, rel=1e-6)
    assert everything.features.item() == 0.0


def test_deepest_exit_learns_from_labels_alone() -> None:
    logits, vectors, labels = noise(3, 5, 7), noise(3, 5, 6, seed=1), labels_of(5, 7)
    loss = exit_loss(logits, vectors, labels, alpha=0.3, feature_weight=0.2, temperature=3.0)
    by_knowledge, by_features = (
        torch.autograd.grad(part, leaf, retain_graph=True)[0]
        for part, leaf in ((loss.knowledge, logits), (loss.features, vectors))
    )
    for gradient in (by_knowledge, by_features):
        assert not gradient[-1].any()
        assert gradient[:-1].flatten(1).any(dim=1).all()
    (by_labels,) = torch.autograd.grad(loss.labels, logits)
    alone = torch.autograd.grad(cross_entropy(logits[-1], labels), logits)[0]
    torch.testing.assert_close(by_labels[-1], alone[-1])


# -- dtypes ----------------------------------------------------------------------------------------


def test_losses_are_float32_in_autocast_and_bfloat16() -> None:
    logits, vectors, labels = noise(3, 5, 7), noise(3, 5, 6, seed=1), labels_of(5, 7)

    def everything(logits: Tensor, vectors: Tensor) -> list[Tensor]:
        weights = confidence_weights(logits[1])
        probs = logits.float().softmax(dim=-1).mean(dim=0)
        parts = exit_loss(logits, vectors, labels, alpha=0.3, feature_weight=0.2, temperature=3.0)
        soft = soft_cross_entropy(logits[0], probs, weights=weights)
        return [
            kd_loss(logits[0], logits[1], weights=weights),
            soft,
            *parts,
            weights.std(),
            probs.std(),
        ]

    expected = everything(logits.float(), vectors.float())
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(everything(logits.float(), vectors.float()), expected, strict=True):
            assert ours.dtype == torch.float32
            assert ours.item() == theirs.item()
    for ours, theirs in zip(
        everything(logits.bfloat16(), vectors.bfloat16()), expected, strict=True
    ):
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(theirs.item(), rel=0.05)
