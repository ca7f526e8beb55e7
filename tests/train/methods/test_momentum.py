"""Promises that hold for every method with a momentum teacher."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from featkit_train.losses import koleo_loss
from featkit_train.methods import Views
from featkit_train.methods.momentum import entropies
from tests.train.methods.training import (
    drawn_method,
    of,
    take_step,
    unmasked_views,
)
from tests.train.momentum import make_teacher


@pytest.mark.parametrize("group", [0, 2, 3])
def test_koleo_is_summed_over_global_crops_in_groups(group: int) -> None:
    plain, few = drawn_method(of("dino")), unmasked_views()
    crops = Views(
        *[
            torch.cat([part, part[:, :1] + 0.5], dim=1) if part.shape[0] and part.ndim > 3 else part
            for part in few
        ]
    )
    with_koleo = drawn_method(
        of("dino", "dino.koleo_weight=0.3", f"dino.koleo_group={group}", "run.batch_size=6")
    )
    tokens = [with_koleo.student.backbone(crop).class_token for crop in crops.global_crops]
    koleo = torch.stack(
        [koleo_loss(part) for token in tokens for part in token.split(group or 6)]
    ).mean()
    result, _ = take_step(with_koleo, crops, step=0)
    expected = take_step(plain, crops, step=0)[0].loss.item() + 2 * 0.3 * koleo.item()
    assert result.loss.item() == pytest.approx(expected, rel=1e-4)
    assert result.logged["koleo_loss"].item() == pytest.approx(koleo.item(), rel=1e-4)


def test_teacher_moves_by_its_momentum_alone() -> None:
    method = drawn_method(of("dino"))
    before = copy.deepcopy(method.teacher.state_dict())
    student = method.student.state_dict()
    momentum = method.momentum(2)
    assert 0.9 < momentum < 1.0
    method.after_optimizer(step=2)
    for name, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * student[name])
    assert all(not parameter.requires_grad for parameter in method.teacher.parameters())


def test_default_momentum_depends_on_the_number_of_steps() -> None:
    method = make_teacher(
        of("dino", "teacher.momentum=null", "teacher.momentum_end=null", "run.steps=40000")
    )
    assert method.momentum(0) == pytest.approx(0.99)
    assert method.momentum(39_999) == pytest.approx(0.999)
    given = make_teacher(
        of("dino", "teacher.momentum=0.5", "teacher.momentum_end=0.7", "run.steps=3")
    )
    assert [given.momentum(step) for step in range(3)] == pytest.approx([0.5, 0.6, 0.7])


def test_prototypes_are_frozen_at_first_and_then_trained() -> None:
    method = drawn_method(of("dino", "dino.freeze_last_layer_steps=3"))
    for step, frozen in ((2, True), (3, False)):
        take_step(method, unmasked_views(), step=step)
        method.before_optimizer(step=step)
        assert (method.student.head.prototypes.grad is None) == frozen


def test_teacher_temperature_warms_up_linearly() -> None:
    method = make_teacher(
        of(
            "dino",
            "dino.teacher_temp=0.04",
            "dino.teacher_temp_end=0.08",
            "dino.teacher_temp_steps=10",
        )
    )
    assert method.teacher_temp(0) == pytest.approx(0.04)
    assert method.teacher_temp(5) == pytest.approx(0.06)
    assert method.teacher_temp(100) == pytest.approx(0.08)


def test_entropies_distinguish_both_collapses() -> None:
    def one_hot(numbers: torch.Tensor) -> torch.Tensor:
        return F.one_hot(numbers, 8).float()

    uniform = entropies(torch.full((2, 4, 8), 1 / 8), torch.zeros(2, 4, 8))
    assert uniform["teacher_entropy"].item() == pytest.approx(1.0)
    collapsed = one_hot(torch.zeros(2, 4, dtype=torch.long))
    assert entropies(collapsed, 100 * collapsed)["batch_entropy"].item() == pytest.approx(
        0.0, abs=1e-6
    )
    distinct = one_hot(torch.arange(8).view(2, 4))
    spread = entropies(distinct, 100 * distinct)
    assert spread["teacher_entropy"].item() == pytest.approx(0.0)
    assert spread["batch_entropy"].item() == pytest.approx(1.0)
    assert math.isfinite(spread["teacher_entropy"].item())


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_one_hot_collapse_shows_in_the_batch_entropy(
    centering: str,
) -> None:
    method = drawn_method(
        of(
            "dino",
            f"dino.centering={centering}",
            "dino.teacher_temp=0.02",
            "dino.teacher_temp_end=0.02",
        )
    )

    def batch_entropy() -> float:
        _, watched = method.make_targets([method.teacher_forward(unmasked_views())], step=0)
        return watched["batch_entropy"].item()

    healthy = batch_entropy()
    # the same bottleneck for every image, and a prototype that lies in its direction
    with torch.no_grad():
        last = method.teacher.head.mlp[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.randn(last.bias.shape, generator=torch.Generator().manual_seed(0)))
        method.teacher.head.prototypes[0] = last.bias
    assert batch_entropy() < 0.02 < healthy
