"""Promises of the DINO method: one step against a plain loop of the paper's algorithm 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from featkit_train.methods import MomentumTeacher, Views
from tests.train.methods.training import (
    BATCH,
    assert_same_gradients,
    cross_entropy,
    drawn_method,
    gradients,
    of,
    take_step,
    unmasked_views,
)


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
    method, crops = drawn_method(of("dino", "dino.center_momentum=0.8")), unmasked_views()
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
    method, crops = drawn_method(of("dino", "dino.centering=sinkhorn")), unmasked_views()
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
    crops = unmasked_views()._replace(local_crops=torch.zeros(0, BATCH, 3, 1, 1))
    expected = algorithm_1(
        method, crops, method.center.center.clone(), teacher_temp=method.teacher_temp(0)
    )
    assert take_step(method, crops, step=0)[0].loss.item() == pytest.approx(
        expected.item(), rel=1e-5
    )
