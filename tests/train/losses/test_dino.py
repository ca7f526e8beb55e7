"""Promises of DINO's loss and center."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from featkit_train.losses import Center, dino_loss, sharpen


def random_outputs(
    *, student: int = 4, teacher: int = 2, batch: int = 3, prototypes: int = 7, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw student logits (S, B, K) with gradient and teacher probabilities (T, B, K), both
    float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(
        student, batch, prototypes, generator=generator, dtype=torch.float64
    ).requires_grad_()
    probs = torch.randn(
        teacher, batch, prototypes, generator=generator, dtype=torch.float64
    ).softmax(dim=-1)
    return logits, probs


def loop_of_equation_3(
    student_logits: Tensor, teacher_probs: Tensor, *, student_temp: float
) -> Tensor:
    """Return the docstring's loop, one pair and one image at a time."""
    terms = []
    for t in range(teacher_probs.shape[0]):
        for s in range(student_logits.shape[0]):
            if s == t:
                continue
            for b in range(student_logits.shape[1]):
                log_probs = torch.log_softmax(student_logits[s, b] / student_temp, dim=0)
                terms.append(-(teacher_probs[t, b] * log_probs).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("student", "teacher"), [(2, 2), (10, 2), (2, 1), (1, 2)])
def test_dino_loss_equals_the_loop_in_value_and_gradient(student: int, teacher: int) -> None:
    logits, probs = random_outputs(student=student, teacher=teacher)
    expected = loop_of_equation_3(logits, probs, student_temp=0.1)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = dino_loss(logits, probs, student_temp=0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_dino_loss_of_uniform_outputs_is_log_num_prototypes() -> None:
    uniform = torch.full((2, 3, 8), 1 / 8)
    assert dino_loss(uniform.log(), uniform, student_temp=0.1).item() == pytest.approx(math.log(8))


def test_dino_loss_never_compares_a_view_with_itself() -> None:
    logits, probs = random_outputs(student=2, teacher=2)
    alone = dino_loss(logits, probs, student_temp=0.1)
    one_hot = probs.clone()
    one_hot[0] = F.one_hot(logits[0].argmin(dim=-1), probs.shape[-1]).double()
    moved = dino_loss(logits, one_hot, student_temp=0.1)
    expected = loop_of_equation_3(logits, one_hot, student_temp=0.1)
    assert moved.item() == pytest.approx(expected.item(), rel=1e-5)
    assert moved.item() != pytest.approx(alone.item())


def test_dino_loss_without_two_views_is_refused() -> None:
    logits, probs = random_outputs(student=1, teacher=1)
    with pytest.raises(ValueError, match="two crops"):
        dino_loss(logits, probs, student_temp=0.1)


def test_dino_loss_stays_finite_in_bfloat16() -> None:
    logits, probs = random_outputs()
    loss = dino_loss((logits * 100).bfloat16(), probs.bfloat16(), student_temp=0.04)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@settings(max_examples=25, deadline=None)
@given(constant=st.floats(-50, 50), seed=st.integers(0, 10_000))
def test_dino_loss_ignores_a_constant_and_the_order_of_images(constant: float, seed: int) -> None:
    logits, probs = random_outputs(seed=seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    expected = dino_loss(logits, probs, student_temp=0.1).item()
    assert dino_loss(logits + constant, probs, student_temp=0.1).item() == pytest.approx(
        expected, rel=1e-4
    )
    assert dino_loss(logits[:, order], probs[:, order], student_temp=0.1).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_dino_loss_agrees_with_lightly_where_definitions_agree() -> None:
    from tests.torchvision_without_cuda import import_lightly_loss

    logits, _ = random_outputs(student=4)
    teacher_logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    reference = import_lightly_loss("DINOLoss")(
        output_dim=7,
        warmup_teacher_temp=0.04,
        teacher_temp=0.04,
        student_temp=0.1,
        center_momentum=0.9,
    )
    student = logits.detach().float()
    expected = reference(list(teacher_logits), list(student), epoch=0)
    center = Center(7, momentum=0.9)
    loss = dino_loss(student, center(teacher_logits, teacher_temp=0.04), student_temp=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    center.update(teacher_logits)
    torch.testing.assert_close(center.center, reference.center.flatten())


def test_center_forward_only_reads_and_update_is_equation_4() -> None:
    center = Center(5, momentum=0.8)
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    probs = center(logits, teacher_temp=0.05)
    assert torch.equal(center.center, torch.zeros(5))
    torch.testing.assert_close(probs, torch.softmax(logits / 0.05, dim=-1))
    center.update(logits)
    expected = 0.2 * logits.reshape(6, 5).mean(dim=0)
    torch.testing.assert_close(center.center, expected)
    torch.testing.assert_close(
        center(logits, teacher_temp=0.05), sharpen(logits, expected, teacher_temp=0.05)
    )
    center.update(logits)
    torch.testing.assert_close(center.center, 0.8 * expected + expected)


def test_center_is_part_of_the_state() -> None:
    center = Center(5)
    center.update(torch.arange(5.0).expand(2, 5))
    other = Center(5)
    other.load_state_dict(center.state_dict())
    assert torch.equal(other.center, center.center)
    assert center.center.abs().sum() > 0


def test_dino_loss_is_the_same_float32_under_autocast() -> None:
    logits, probs = random_outputs()
    expected = dino_loss(logits, probs, student_temp=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = dino_loss(logits, probs, student_temp=0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()


def test_center_over_processes_equals_that_of_all_rows() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    whole, here = Center(5), Center(5)
    whole.update(logits)
    there = torch.cat([logits[2:].sum(dim=0), torch.tensor([4.0])])[None]
    here.update(logits[:2], gather=lambda own: torch.cat([own, there]))
    torch.testing.assert_close(here.center, whole.center)


def test_center_stays_if_no_process_has_rows() -> None:
    center = Center(3, momentum=0.5)
    center.update(torch.tensor([[1.0, 2.0, 3.0]]))
    before = center.center.clone()
    center.update(torch.zeros(0, 3))
    assert torch.equal(center.center, before)
    center.update(
        torch.zeros(0, 3), gather=lambda own: torch.cat([own, torch.tensor([[4.0, 4.0, 4.0, 2.0]])])
    )
    torch.testing.assert_close(center.center, 0.5 * before + 0.5 * torch.full((3,), 2.0))


def test_dino_loss_of_one_prototype_is_zero() -> None:
    logits, probs = random_outputs(prototypes=1)
    assert dino_loss(logits, probs, student_temp=0.1).item() == 0.0
