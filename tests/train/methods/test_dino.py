"""Promises of the DINO method: one step against a plain loop of the paper's algorithm 1."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from featkit.errors import InputError
from featkit_train.losses import koleo_loss
from featkit_train.methods import MomentumTeacher, Views, make_method
from featkit_train.methods.momentum import entropies
from tests.train.methods.training import (
    BATCH,
    assert_same_gradients,
    cross_entropy,
    drawn_method,
    gradients,
    of,
    random_views,
    take_step,
)
from tests.train.momentum import make_teacher
from tests.train.small import small_config


def views() -> Views:
    """Return views without masks."""
    return random_views(masks=torch.zeros(2, BATCH, 4, 4, dtype=torch.bool))


def algorithm_1(
    method: MomentumTeacher, views: Views, center: Tensor, *, teacher_temp: float
) -> Tensor:
    """Return the loss by the paper's pseudocode: H(t, s) over all pairs of different crops."""
    crops = [*views.global_crops, *views.local_crops]
    students = [method.student.head(method.student.backbone(crop).class_token) for crop in crops]
    with torch.no_grad():
        teachers = [
            method.teacher.head(method.teacher.backbone(crop).class_token)
            for crop in views.global_crops
        ]
    terms = []
    for i, teacher in enumerate(teachers):
        for j, student in enumerate(students):
            for b in range(BATCH):
                if i != j:
                    target = ((teacher[b] - center) / teacher_temp).softmax(dim=-1)
                    terms.append(cross_entropy(target, student[b]))
    return torch.stack(terms).mean()


def test_step_equals_algorithm_1() -> None:
    method, crops = drawn_method(of("dino", "dino.center_momentum=0.8")), views()
    center = method.center.center.clone()
    expected = algorithm_1(method, crops, center, teacher_temp=method.teacher_temp(7))
    method.zero_grad()
    expected.backward()
    expected_gradients = gradients(method)
    result, _ = take_step(method, crops, step=7)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(method), expected_gradients)
    assert {
        name for name, p in method.named_parameters() if name.startswith("student.")
    } == expected_gradients.keys()
    with torch.no_grad():
        logits = torch.stack(
            [
                method.teacher.head(method.teacher.backbone(g).class_token)
                for g in crops.global_crops
            ]
        )
    torch.testing.assert_close(method.center.center, 0.8 * center + 0.2 * logits.mean(dim=(0, 1)))


def test_step_with_sinkhorn_equals_swavs_loop() -> None:
    method, crops = drawn_method(of("dino", "dino.centering=sinkhorn")), views()
    center = method.center.center.clone()
    with torch.no_grad():
        teachers = [
            method.teacher.head(method.teacher.backbone(crop).class_token)
            for crop in crops.global_crops
        ]
        q = torch.exp(torch.cat(teachers) / method.teacher_temp(7))
        for _ in range(3):
            q = q / q.sum(dim=0, keepdim=True) / 16
            q = q / q.sum(dim=1, keepdim=True) / len(q)
        targets = (q * len(q)).split(BATCH)
    students = [
        method.student.head(method.student.backbone(crop).class_token)
        for crop in (*crops.global_crops, *crops.local_crops)
    ]
    pairs = [(t, s) for t in range(2) for s in range(4) if s != t]
    expected = torch.stack(
        [cross_entropy(targets[t][b], students[s][b]) for t, s in pairs for b in range(BATCH)]
    ).mean()
    expected.backward()
    expected_gradients = gradients(method)
    result, _ = take_step(method, crops, step=7)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(method), expected_gradients)
    assert torch.equal(method.center.center, center)


def test_global_crops_are_matched_without_local_ones() -> None:
    method = drawn_method(of("dino", "crops.num_local=0"))
    crops = views()._replace(local_crops=torch.zeros(0, BATCH, 3, 1, 1))
    expected = algorithm_1(
        method, crops, method.center.center.clone(), teacher_temp=method.teacher_temp(0)
    )
    assert take_step(method, crops, step=0)[0].loss.item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("group", [0, 2, 3])
def test_koleo_is_summed_over_global_crops_in_groups(group: int) -> None:
    plain, few = drawn_method(of("dino")), views()
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
        take_step(method, views(), step=step)
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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["ibot.weight=2.0"], "dino does not read the setting ibot.weight; leave it out."),
        (["gram.weight=2.0"], "dino does not read the setting gram.weight"),
        (
            ["method=dinov2", "pretrained.name=x"],
            "dinov2 does not read the setting pretrained.name",
        ),
        (["method=adapt"], "adapt does not read the setting model.patch"),
        (
            ["method=dinov4"],
            (
                "one of: dino, dinov2, dinov3, ibot, distill, adapt, born-again, internal,"
                " self-training."
            ),
        ),
        (
            ["crops.global_size=36"],
            "crops.global_size 36 is not a multiple of the model's patch",
        ),
        (
            ["crops.local_size=20"],
            "crops.local_size 20 is not a multiple of the model's patch",
        ),
        (
            ["dino.koleo_group=3"],
            (
                "dino.koleo_group 3 does not cut the 8 images that a process takes at once into"
                " equal groups"
            ),
        ),
        (["dino.koleo_group=1"], "dino.koleo_group 1 does not cut"),
        (
            ["run.batch_size=2", "engine.accumulate=2"],
            "dino.koleo_group 0 does not cut the 1 image that",
        ),
        (
            [
                "method=dinov3",
                "gram.weight=1.0",
                "crops.resolutions=[{share: 1.0, global_size: 32, local_size: 16}]",
            ],
            "is not a multiple of the model's patch, 8 pixels",
        ),
        (
            ["crops.resolutions=[{share: 1.0, global_size: 36, local_size: 16}]"],
            "global_size of crops.resolutions 36 is",
        ),
        (
            ["method=dinov3", "gram.weight=1.0", "gram.size=50"],
            "gram.size 50 is not a multiple of the model's patch",
        ),
    ],
)
def test_settings_that_a_method_does_not_read_are_refused(
    settings: list[str], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        make_method(small_config(*settings))


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
        _, watched = method.make_targets([method.teacher_forward(views())], step=0)
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
