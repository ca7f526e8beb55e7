"""Promises of DINOv2: one step against a plain loop over its paper's terms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from featkit_train.losses import koleo_loss
from featkit_train.methods import MomentumTeacher, Views
from featkit_train.networks.base import Masked
from featkit_train.networks.noise import draw_noise
from tests.train.methods.training import (
    BATCH,
    OWN_HEAD,
    assert_same_gradients,
    cross_entropy,
    drawn_method,
    generators,
    gradients,
    of,
    random_views,
    take_step,
)
from tests.train.momentum import make_teacher

NOISE = ["noise.drop_path=0.4", "noise.drop_path_rule=uniform"]


def sinkhorn(logits: Tensor, temp: float) -> Tensor:
    """Return SwAV's loop: columns to 1 / K each, rows to 1 / R each, three times."""
    q = torch.exp(logits / temp)
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True) / len(q)
    return q * len(q)


def centered(logits: Tensor, temp: float, center: Tensor) -> Tensor:
    """Return the mean cross-entropy of DINO's pairs."""
    return ((logits - center) / temp).softmax(dim=-1)


def plain_loss(method: MomentumTeacher, views: Views, *, step: int) -> tuple[Tensor, list[Tensor]]:
    """Return both losses and KoLeo, image by image, and the logits that update the centers."""
    config, student, teacher = method.config, method.student, method.teacher
    chance = generators()
    noises = [
        draw_noise(
            config.noise,
            chance.own,
            depth=2,
            num_crops=len(crops) * BATCH,
            rotary_rng=chance.common,
        )
        for crops in (views.global_crops, views.local_crops)
    ]
    assert student.mask_token is not None
    masked = Masked(views.masks.flatten(0, 1), student.mask_token)
    seen = student.backbone.student_forward(
        views.global_crops.flatten(0, 1), masked=masked, noise=noises[0]
    )
    local = student.backbone.student_forward(views.local_crops.flatten(0, 1), noise=noises[1])
    students = student.head(torch.cat([seen.class_token, local.class_token])).split(BATCH)
    hidden = views.masks.flatten(0, 1)
    student_patches = student.head_of_patches(seen.patch_tokens[hidden])
    with torch.no_grad():
        theirs = teacher.backbone(views.global_crops.flatten(0, 1))
        class_logits = teacher.head(theirs.class_token)
        patch_logits = teacher.head_of_patches(theirs.patch_tokens[hidden])
        temps = method.teacher_temp(step), method.patch_temp(step)
        if config.dino.centering == "sinkhorn":
            class_probs, patch_probs = (
                sinkhorn(class_logits, temps[0]),
                sinkhorn(patch_logits, temps[1]),
            )
        else:
            class_probs = centered(class_logits, temps[0], method.center.center.clone())
            patch_probs = centered(patch_logits, temps[1], method.patch_center.center.clone())
    teachers = class_probs.split(BATCH)
    pairs = [(t, s) for t in range(2) for s in range(4) if s != t]
    class_loss = torch.stack(
        [cross_entropy(teachers[t][b], students[s][b]) for t, s in pairs for b in range(BATCH)]
    ).mean()
    patch_loss, row = torch.zeros(()), 0
    for masks in hidden:
        number = int(masks.sum())
        for _ in range(number):
            patch_loss = patch_loss + cross_entropy(
                patch_probs[row], student_patches[row]
            ) / number / len(hidden)
            row += 1
    # DINOv2: summed over the two global crops
    koleo = sum(koleo_loss(view) for view in seen.class_token.split(BATCH))
    loss = class_loss + config.ibot.weight * patch_loss + config.dino.koleo_weight * koleo
    return loss, [class_logits, patch_logits]


@pytest.mark.parametrize("noise", ["quiet", "noisy"])
@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
def test_step_equals_the_papers_loop(centering: str, noise: str) -> None:
    settings = [
        OWN_HEAD,
        f"dino.centering={centering}",
        "dino.koleo_weight=0.1",
        "ibot.weight=0.8",
        "run.batch_size=5",
    ]
    method, views = (
        drawn_method(of("dinov2", *settings, *(NOISE if noise == "noisy" else []))),
        random_views(),
    )
    centers = [method.center.center.clone(), method.patch_center.center.clone()]
    loss, logits = plain_loss(method, views, step=7)
    method.zero_grad()
    loss.backward()
    expected = gradients(method)
    result, _ = take_step(method, views, step=7)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(method), expected)
    assert {
        name for name, _ in method.named_parameters() if name.startswith("student.")
    } == expected.keys()
    for center, before, rows in zip(
        (method.center, method.patch_center), centers, logits, strict=True
    ):
        # of the hidden patches alone
        moved = before if centering == "sinkhorn" else 0.9 * before + 0.1 * rows.mean(dim=0)
        torch.testing.assert_close(center.center, moved)


def test_noise_changes_the_student_but_not_its_teacher() -> None:
    quiet, noisy, views = (
        drawn_method(of("dinov2")),
        drawn_method(of("dinov2", *NOISE)),
        random_views(),
    )
    assert torch.equal(
        quiet.teacher_forward(views).class_logits, noisy.teacher_forward(views).class_logits
    )
    assert take_step(quiet, views, step=0)[0].loss.item() != pytest.approx(
        take_step(noisy, views, step=0)[0].loss.item()
    )


def test_teacher_heads_are_averages_of_the_students() -> None:
    method = drawn_method(of("dinov2", OWN_HEAD))
    before = {name: parameter.clone() for name, parameter in method.teacher.named_parameters()}
    momentum = method.momentum(3)
    method.after_optimizer(step=3)
    student = dict(method.student.named_parameters())
    assert any(name.startswith("patch_head") for name in before)
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(
            parameter, momentum * before[name] + (1 - momentum) * student[name]
        )


def test_model_configures_swiglu_registers_and_layer_scale() -> None:
    method = make_teacher(of("dinov2", "model.mlp=swiglu", "model.layer_scale=1e-5"))
    names = dict(method.student.backbone.named_parameters())
    assert names["registers"].shape == (1, 2, 24)
    assert "blocks.0.mlp.gate_and_value.weight" in names
    assert names["blocks.1.scale2.gamma"].unique().tolist() == pytest.approx([1e-5])
