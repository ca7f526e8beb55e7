"""Promises of Gram anchoring."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from featkit_train.losses import gram_loss


def patches(*shape: int, seed: int = 0) -> Tensor:
    """Draw float64 noise with gradient."""
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


def loop(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the docstring's loop, one image and one pair of patches at a time, for equal grids."""
    terms = []
    for ours, theirs in zip(student.flatten(1, 2), teacher.flatten(1, 2), strict=True):
        for p in range(len(ours)):
            for q in range(len(ours)):
                cosines = [(x[p] @ x[q]) / (x[p].norm() * x[q].norm()) for x in (ours, theirs)]
                terms.append((cosines[0] - cosines[1]) ** 2)
    return torch.stack(terms).mean()


def test_gram_loss_equals_the_loop_in_value_and_gradient() -> None:
    student, teacher = patches(2, 2, 3, 5), patches(2, 2, 3, 4, seed=1)
    expected = loop(student, teacher)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    loss = gram_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_gram_loss_resizes_the_teachers_grid(
    grid: tuple[int, int],
) -> None:
    student, teacher = patches(2, 2, 3, 5), patches(2, *grid, 4, seed=1)
    resampled = F.interpolate(
        teacher.permute(0, 3, 1, 2),
        size=(2, 3),
        mode="bicubic",
        align_corners=False,
        antialias=False,
    )
    expected = loop(student, resampled.permute(0, 2, 3, 1))
    loss = gram_loss(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(
        torch.autograd.grad(loss, student)[0],
        torch.autograd.grad(expected, student)[0],
        rtol=1e-3,
        atol=1e-6,
    )


def test_gram_loss_of_opposite_and_equal_patches_is_two() -> None:
    # Cosines of the two patches with each other are -1 and 1; two of the four pairs differ, by 2.
    student = torch.tensor([[[[1.0, 0.0], [-2.0, 0.0]]]])
    assert gram_loss(student, torch.ones(1, 1, 2, 3)).item() == pytest.approx(2.0)


def test_gram_loss_of_one_patch_is_zero() -> None:
    assert gram_loss(patches(2, 1, 1, 5), patches(2, 1, 1, 4, seed=1)).item() == pytest.approx(
        0.0, abs=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0))
def test_gram_loss_ignores_length_and_rotation_of_each_side(seed: int, scale: float) -> None:
    student, teacher = (
        patches(2, 2, 2, 4, seed=seed).detach(),
        patches(2, 2, 2, 4, seed=seed + 1).detach(),
    )
    turn = torch.linalg.qr(patches(4, 4, seed=seed + 2).detach()).Q
    expected = gram_loss(student, teacher).item()
    assert gram_loss(scale * student @ turn, teacher).item() == pytest.approx(
        expected, rel=1e-4, abs=1e-7
    )
    assert gram_loss(student, scale * teacher @ turn).item() == pytest.approx(
        expected, rel=1e-4, abs=1e-7
    )
    assert gram_loss(scale * student @ turn, student).item() == pytest.approx(0.0, abs=1e-8)


def test_gram_loss_is_float32_in_bfloat16_and_autocast() -> None:
    student, teacher = patches(2, 2, 3, 5), patches(2, 4, 6, 4, seed=1)
    narrow = gram_loss(100 * student.bfloat16(), teacher.bfloat16())
    assert narrow.dtype == torch.float32
    assert narrow.isfinite()
    expected = gram_loss(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert gram_loss(student, teacher).item() == expected.item()
