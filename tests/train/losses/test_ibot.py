"""Promises of iBOT's loss between the patches that a student could not see."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featkit_train.losses import Center, ibot_loss, sharpen

IMAGES, PATCHES, PROTOTYPES = 4, 6, 5


def some_masks(*numbers: int) -> Tensor:
    """Draw masks (N, P) that hide `numbers[n]` patches of image n."""
    generator = torch.Generator().manual_seed(sum(numbers))
    masks = torch.zeros(len(numbers), PATCHES, dtype=torch.bool)
    for row, number in zip(masks, numbers, strict=True):
        row[torch.randperm(PATCHES, generator=generator)[:number]] = True
    return masks


def random_outputs(
    num_rows: int, *, prototypes: int = PROTOTYPES, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw student logits (M, K) with gradient and teacher probabilities (M, K), both float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(
        num_rows, prototypes, generator=generator, dtype=torch.float64
    ).requires_grad_()
    probs = torch.randn(num_rows, prototypes, generator=generator, dtype=torch.float64).softmax(
        dim=-1
    )
    return logits, probs


def loop(
    student_logits: Tensor, teacher_probs: Tensor, masks: Tensor, *, student_temp: float
) -> Tensor:
    """Return the docstring's loop, one image and one patch at a time."""
    total, row = student_logits.sum() * 0, 0
    for image in masks.tolist():
        terms = []
        for hidden in image:
            if hidden:
                log_probs = torch.log_softmax(student_logits[row] / student_temp, dim=0)
                terms.append(-(teacher_probs[row] * log_probs).sum())
                row += 1
        if terms:
            total = total + torch.stack(terms).mean()
    return total / len(masks)


NONE, ONE, ALL, MIXED = (0, 0, 0, 0), (0, 0, 1, 0), (6, 6, 6, 6), (0, 1, 6, 3)


@pytest.mark.parametrize("numbers", [NONE, ONE, ALL, MIXED])
def test_ibot_loss_equals_the_loop_in_value_and_gradient(numbers: tuple[int, ...]) -> None:
    masks = some_masks(*numbers)
    logits, probs = random_outputs(sum(numbers))
    expected = loop(logits, probs, masks, student_temp=0.1)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = ibot_loss(logits, probs, masks, student_temp=0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_ibot_loss_of_uniform_outputs_is_log_num_prototypes() -> None:
    uniform = torch.full((sum(MIXED), PROTOTYPES), 1 / PROTOTYPES)
    loss = ibot_loss(uniform.log(), uniform, some_masks(*MIXED), student_temp=0.1)
    assert loss.item() == pytest.approx(math.log(PROTOTYPES) * 3 / 4)


def test_ibot_loss_without_masked_patches_is_zero() -> None:
    logits, probs = random_outputs(0)
    loss = ibot_loss(logits, probs, some_masks(*NONE), student_temp=0.1)
    loss.backward()
    assert loss.item() == 0.0


def test_ibot_loss_weights_images_equally() -> None:
    logits, probs = random_outputs(7)
    alone = [
        ibot_loss(logits[:1], probs[:1], some_masks(1), student_temp=0.1),
        ibot_loss(logits[1:], probs[1:], some_masks(6), student_temp=0.1),
    ]
    together = ibot_loss(logits, probs, some_masks(1, 6), student_temp=0.1)
    assert together.item() == pytest.approx((alone[0].item() + alone[1].item()) / 2, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    constant=st.floats(-50, 50),
    numbers=st.lists(st.integers(0, PATCHES), min_size=1, max_size=5),
)
def test_ibot_loss_ignores_a_constant_and_the_order_of_images(
    seed: int, constant: float, numbers: list[int]
) -> None:
    masks = some_masks(*numbers)
    logits, probs = random_outputs(sum(numbers), seed=seed)
    expected = ibot_loss(logits, probs, masks, student_temp=0.1).item()
    assert ibot_loss(logits + constant, probs, masks, student_temp=0.1).item() == pytest.approx(
        expected, rel=1e-4
    )
    turned = [
        part
        for pair in (logits, probs)
        for part in [torch.cat(list(reversed(pair.split(numbers))))]
    ]
    assert ibot_loss(turned[0], turned[1], masks.flip(0), student_temp=0.1).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_ibot_loss_is_float32_in_bfloat16_and_autocast() -> None:
    masks = some_masks(*MIXED)
    logits, probs = random_outputs(sum(MIXED))
    narrow = ibot_loss((100 * logits).bfloat16(), probs.bfloat16(), masks, student_temp=0.04)
    assert narrow.dtype == torch.float32
    assert narrow.isfinite()
    expected = ibot_loss(logits, probs, masks, student_temp=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert ibot_loss(logits, probs, masks, student_temp=0.1).item() == expected.item()


@pytest.mark.parametrize(("num_logits", "num_probs"), [(9, 10), (10, 9), (9, 9), (11, 11)])
def test_rows_that_do_not_fit_the_masks_are_refused(num_logits: int, num_probs: int) -> None:
    logits, probs = random_outputs(11)
    with pytest.raises(ValueError, match="masks hold 10 patches"):
        ibot_loss(logits[:num_logits], probs[:num_probs], some_masks(*MIXED), student_temp=0.1)


def test_ibot_loss_and_its_center_agree_with_lightly() -> None:
    from tests.torchvision_without_cuda import import_lightly_loss

    masks = some_masks(*MIXED)
    generator = torch.Generator().manual_seed(1)
    student, first, second = (
        torch.randn(sum(MIXED), PROTOTYPES, generator=generator) for _ in range(3)
    )
    reference = import_lightly_loss("IBOTPatchLoss")(
        output_dim=PROTOTYPES, teacher_temp=0.05, student_temp=0.1
    )
    center = Center(PROTOTYPES)
    for teacher in (first, second):  # the second with a center that has moved
        expected = reference(teacher, student, masks.unflatten(1, (2, 3)))
        loss = ibot_loss(
            student, sharpen(teacher, center.center, teacher_temp=0.05), masks, student_temp=0.1
        )
        center.update(teacher)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(center.center, reference.center.value.flatten())
