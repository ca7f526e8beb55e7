"""Promises of the moving average."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featkit_train.networks.ema import update_ema


class Counting(nn.Module):
    """A module with parameters, float buffers, and an integer buffer."""

    def __init__(self, seed: int, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.Linear(3, 2)
        self.vector = nn.Parameter(torch.empty(4))
        self.register_buffer("mean", torch.empty(2))
        self.register_buffer("narrow", torch.empty(2, dtype=torch.bfloat16))
        self.register_buffer("passing", torch.empty(2), persistent=False)
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        self.register_buffer("count", torch.tensor(count))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_ema_equals_the_loop_and_copies_integers(momentum: float) -> None:
    teacher, student = Counting(0, 3), Counting(1, 8)
    expected = copy.deepcopy(teacher)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    for _ in range(3):
        update_ema(teacher, student, momentum=momentum)
        for ours, theirs in zip(
            (*expected.parameters(), *expected.buffers()),
            (*student.parameters(), *student.buffers()),
            strict=True,
        ):
            if ours.is_floating_point():
                ours.data = momentum * ours.data + (1 - momentum) * theirs.data
    for (name, ours), reference in zip(
        (*teacher.named_parameters(), *teacher.named_buffers()),
        (*expected.parameters(), *expected.buffers()),
        strict=True,
    ):
        if name != "count":
            tolerance = 2e-2 if ours.dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(
                ours.data, reference.data, rtol=tolerance, atol=tolerance, msg=name
            )
    assert teacher.count == 8
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_teacher_equal_to_its_student_stays_equal() -> None:
    teacher, student = Counting(0, 3), Counting(0, 3)
    for momentum in (0.9, 0.996, 1 / 3):
        update_ema(teacher, student, momentum=momentum)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True)
    )


def test_ema_has_no_gradient_and_updates_in_place() -> None:
    teacher, student = Counting(0, 3).requires_grad_(False), Counting(1, 8)
    places = [parameter.data_ptr() for parameter in teacher.parameters()]
    update_ema(teacher, student, momentum=0.5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert [parameter.data_ptr() for parameter in teacher.parameters()] == places
    assert not set(places) & {parameter.data_ptr() for parameter in student.parameters()}


def test_different_names_are_refused_before_any_update() -> None:
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)
    before = teacher.weight.clone()
    with pytest.raises(ValueError, match=r"teacher and student differ in \['bias'\]"):
        update_ema(teacher, student, momentum=0.5)
    assert torch.equal(teacher.weight, before)
