"""Promises of the DINO method: one step against a plain loop of the paper's algorithm 1."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from featkit_train.losses import koleo_loss
from featkit_train.methods import Dino, Views
from featkit_train.methods.dino import entropies
from tests.train.small import small_config


def random_views(seed: int = 0, batch: int = 5) -> Views:
    generator = torch.Generator().manual_seed(seed)
    return Views(torch.randn(2, batch, 3, 32, 32, generator=generator), torch.randn(2, batch, 3, 16, 16, generator=generator))


def make_method(*settings: str, seed: int = 0) -> Dino:
    """A small method whose student has moved away from its teacher, as after some steps."""
    torch.manual_seed(seed)
    method = Dino(small_config(*settings))
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return method


def algorithm_1(method: Dino, views: Views, center: Tensor, *, teacher_temp: float) -> Tensor:
    """The paper's pseudocode: H(t, s) over all pairs of a teacher's global and another student's crop."""
    crops = [*views.global_crops, *views.local_crops]
    students = [method.student.head(method.student.backbone(crop).class_token) for crop in crops]
    with torch.no_grad():
        teachers = [method.teacher.head(method.teacher.backbone(crop).class_token) for crop in views.global_crops]
    terms = []
    for i, teacher in enumerate(teachers):
        target = ((teacher - center) / teacher_temp).softmax(dim=-1)
        for j, student in enumerate(students):
            if i != j:
                terms.append(-(target * F.log_softmax(student / 0.1, dim=-1)).sum(dim=-1).mean())
    return torch.stack(terms).mean()


def test_a_step_is_algorithm_1_in_loss_gradients_and_center() -> None:
    method, views = make_method("dino.koleo_weight=0.0"), random_views()
    method.center.update(torch.randn(3, 16, generator=torch.Generator().manual_seed(5)))
    center = method.center.center.clone()
    expected = algorithm_1(method, views, center, teacher_temp=method.teacher_temp(7))
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in method.student.named_parameters() if p.grad is not None}
    method.zero_grad()
    result = method(views, step=7)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradients
    for name, parameter in method.student.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        logits = torch.stack([method.teacher.head(method.teacher.backbone(g).class_token) for g in views.global_crops])
    torch.testing.assert_close(method.center.center, 0.9 * center + 0.1 * logits.mean(dim=(0, 1)))


def test_koleo_is_added_for_each_global_view_with_its_weight() -> None:
    plain, with_koleo = make_method("dino.koleo_weight=0.0"), make_method("dino.koleo_weight=0.3")
    views = random_views()
    tokens = [with_koleo.student.backbone(crop).class_token for crop in views.global_crops]
    koleo = torch.stack([koleo_loss(token) for token in tokens]).mean()
    loss = with_koleo(views, step=0).loss
    assert loss.item() == pytest.approx(plain(views, step=0).loss.item() + 0.3 * koleo.item(), rel=1e-4)


def test_sinkhorn_uses_all_prototypes_alike_and_leaves_the_center_alone() -> None:
    method = make_method("dino.centering=sinkhorn")
    logits = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)) / 10
    probs = method.teacher_probs(logits, step=0)
    used = torch.special.entr(probs.mean(dim=(0, 1))).sum() / math.log(16)
    assert used.item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(method.center.center, torch.zeros(16))


def test_the_teacher_moves_by_its_momentum_and_by_nothing_else() -> None:
    method = make_method()
    before = copy.deepcopy(method.teacher.state_dict())
    student = method.student.state_dict()
    momentum = method.momentum(2)
    assert 0.9 < momentum < 1.0
    method.update_teacher(step=2)
    for name, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * student[name])
    assert all(not parameter.requires_grad for parameter in method.teacher.parameters())


def test_the_prototypes_are_held_still_at_first_and_then_move() -> None:
    method = make_method("dino.freeze_last_layer_steps=3")
    for step, frozen in ((2, True), (3, False)):
        method.zero_grad()
        method(random_views(), step=step).loss.backward()
        method.before_optimizer(step=step)
        assert (method.student.head.prototypes.grad is None) == frozen


def test_teacher_temperature_warms_up_linearly() -> None:
    method = make_method("dino.teacher_temp=0.04", "dino.teacher_temp_end=0.08", "dino.teacher_temp_steps=10")
    assert method.teacher_temp(0) == pytest.approx(0.04)
    assert method.teacher_temp(5) == pytest.approx(0.06)
    assert method.teacher_temp(100) == pytest.approx(0.08)


def test_entropies_tell_both_collapses_apart() -> None:
    def one_hot(numbers: torch.Tensor) -> torch.Tensor:
        return F.one_hot(numbers, 8).float()

    uniform = entropies(torch.full((2, 4, 8), 1 / 8), torch.zeros(2, 4, 8))
    assert uniform["teacher_entropy"].item() == pytest.approx(1.0)
    collapsed = one_hot(torch.zeros(2, 4, dtype=torch.long))
    assert entropies(collapsed, 100 * collapsed)["batch_entropy"].item() == pytest.approx(0.0, abs=1e-6)
    distinct = one_hot(torch.arange(8).view(2, 4))
    spread = entropies(distinct, 100 * distinct)
    assert spread["teacher_entropy"].item() == pytest.approx(0.0)
    assert spread["batch_entropy"].item() == pytest.approx(1.0)
    assert math.isfinite(spread["teacher_entropy"].item())


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_a_teacher_that_says_one_prototype_of_all_pictures_shows_in_the_batch_entropy(centering: str) -> None:
    method = make_method(f"dino.centering={centering}", "dino.teacher_temp=0.02", "dino.teacher_temp_end=0.02")
    views = random_views()
    healthy = method(views, step=0).watched["batch_entropy"].item()
    with torch.no_grad():  # the same bottleneck for every picture, and a prototype that lies in its direction
        last = method.teacher.head.mlp[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.randn(last.bias.shape, generator=torch.Generator().manual_seed(0)))
        method.teacher.head.prototypes[0] = last.bias
    assert method(views, step=0).watched["batch_entropy"].item() < 0.02 < healthy
