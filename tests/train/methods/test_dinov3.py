"""Promises of DINOv3: one step against a plain loop, and the life of its Gram teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.losses import gram_loss
from featkit_train.methods import MomentumTeacher, Views, make_method
from featkit_train.methods.dinov3 import DinoV3
from featkit_train.networks.base import Masked
from featkit_train.networks.noise import draw_noise
from featkit_train.networks.vit import VisionTransformer
from tests.train.methods.published_backbone import MEAN, STD, save_published
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

ROTARY = ["model.position=rotary", "model.key_bias=false"]
GRAM = ["gram.weight=2.0", "gram.size=64"]


def dinov3(*settings: str) -> DinoV3:
    """Return a DINOv3 with rotary positions and drawn weights."""
    method = drawn_method(of("dinov3", *ROTARY, OWN_HEAD, *settings))
    assert isinstance(method, DinoV3)
    return method


def plain_loss(method: DinoV3, views: Views, *, step: int) -> Tensor:
    """Return all terms, image by image."""
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
    hidden = views.masks.flatten(0, 1)
    assert student.mask_token is not None
    seen = student.backbone.student_forward(
        views.global_crops.flatten(0, 1), masked=Masked(hidden, student.mask_token), noise=noises[0]
    )
    last: list[Tensor] = []
    block = student.backbone.get_submodule("blocks.1")
    hook = block.register_forward_hook(lambda _module, _inputs, output: last.append(output[0]))
    student.backbone.student_forward(views.local_crops.flatten(0, 1), noise=noises[1])
    hook.remove()
    assert isinstance(student.local_norm, nn.LayerNorm)
    local = student.local_norm(last[0][:, 0])
    students = student.head(torch.cat([seen.class_token, local])).split(BATCH)
    student_patches = student.head_of_patches(seen.patch_tokens[hidden])
    with torch.no_grad():
        theirs = teacher.backbone(views.global_crops.flatten(0, 1))
        class_probs = (
            (teacher.head(theirs.class_token) - method.center.center) / method.teacher_temp(step)
        ).softmax(dim=-1)
        patch_logits = teacher.head_of_patches(theirs.patch_tokens[hidden])
        patch_probs = (
            (patch_logits - method.patch_center.center) / method.patch_temp(step)
        ).softmax(dim=-1)
    teachers = class_probs.split(BATCH)
    pairs = [(t, s) for t in range(2) for s in range(4) if s != t]
    loss = torch.stack(
        [cross_entropy(teachers[t][b], students[s][b]) for t, s in pairs for b in range(BATCH)]
    ).mean()
    row = 0
    for masks in hidden:
        for _ in range(int(masks.sum())):
            loss = loss + cross_entropy(patch_probs[row], student_patches[row]) / masks.sum() / len(
                hidden
            )
            row += 1
    if method.gram_teacher is not None:
        with torch.no_grad():
            anchors = method.gram_teacher(views.gram_crops.flatten(0, 1)).patch_tokens
        of_images = [
            gram_loss(seen.patch_tokens[n : n + 1], anchors[n : n + 1]) for n in range(2 * BATCH)
        ]
        loss = loss + config.gram.weight * torch.stack(of_images).mean()
    return loss


@pytest.mark.parametrize(
    "settings", [[], GRAM, ["noise.rotary_rescale=2.0", "noise.drop_path=0.4"]]
)
def test_step_equals_the_papers_loop_with_and_without_gram(settings: list[str]) -> None:
    method = dinov3(*settings)
    views = random_views(gram_size=64 if settings == GRAM else None)
    loss = plain_loss(method, views, step=7)
    method.zero_grad()
    loss.backward()
    expected = gradients(method)
    result, _ = take_step(method, views, step=7)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(method), expected)
    assert {
        name for name, _ in method.named_parameters() if name.startswith("student.")
    } == expected.keys()
    assert ("gram_loss" in result.logged) == (settings == GRAM)


def test_coordinates_are_rescaled_for_the_student_alone() -> None:
    method, views = dinov3("noise.rotary_rescale=2.0"), random_views()
    (targets,), _ = method.make_targets([method.teacher_forward(views)], step=0)
    with torch.no_grad():
        first, again, other = (
            method(views, targets, generators(seed)).loss.item() for seed in (0, 0, 1)
        )
    assert first == again != other
    assert torch.equal(
        method.teacher_forward(views).class_logits, dinov3().teacher_forward(views).class_logits
    )


def test_local_norm_is_averaged_and_absent_from_the_result() -> None:
    method = dinov3()
    ours, theirs = (
        method.get_parameter(f"{branch}.local_norm.weight") for branch in ("teacher", "student")
    )
    before = ours.clone()
    method.after_optimizer(step=0)
    expected = method.momentum(0) * before + (1 - method.momentum(0)) * theirs
    torch.testing.assert_close(ours, expected)
    assert not any("local_norm" in name for name in method.result.state_dict())


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    """Assert that two states are equal bit for bit."""
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_gram_teacher_is_the_runs_initial_teacher() -> None:
    method, views = dinov3(*GRAM), random_views(gram_size=64)
    assert method.gram_teacher is not None
    assert not same(method.gram_teacher, method.teacher.backbone)
    method.start_run()
    assert same(method.gram_teacher, method.teacher.backbone)
    take_step(method, views, step=0)
    method.after_optimizer(step=0)
    assert not same(method.gram_teacher, method.teacher.backbone)
    assert not any(parameter.requires_grad for parameter in method.gram_teacher.parameters())


def test_gram_teacher_is_updated_max_updates_times() -> None:
    method = dinov3(*GRAM, "gram.update_every=3", "gram.max_updates=2")
    assert method.gram_teacher is not None
    method.start_run()
    updated = []
    for step in range(12):
        with torch.no_grad():
            method.teacher.get_parameter("backbone.class_token").fill_(float(step))
        token = method.gram_teacher.get_parameter("class_token")
        before = token.clone()
        assert method.enter_phase(step) is False
        if not torch.equal(before, token):
            assert same(method.gram_teacher, method.teacher.backbone)
            updated.append(step)
    assert updated == [3, 6]


def test_gram_teacher_is_state_and_requests_its_crop_size() -> None:
    plain, anchored = make_method(of("dinov3", *ROTARY)), make_method(of("dinov3", *ROTARY, *GRAM))
    assert plain.gram_size is None
    assert anchored.gram_size == 64
    assert len(anchored.branches()) == len(plain.branches()) + 1
    assert {name.split(".")[0] for name in anchored.state_dict()} - {
        name.split(".")[0] for name in plain.state_dict()
    } == {"gram_teacher"}


def test_gram_teacher_of_another_run_survives_the_start(
    tmp_path: Path,
) -> None:
    backbone = save_published(tmp_path / "earlier", position="rotary", key_bias=False)
    method = dinov3(*GRAM, f"gram.teacher={tmp_path / 'earlier'}", "gram.max_updates=0")
    with torch.no_grad():
        fresh = make_method(
            of(
                "dinov3",
                *ROTARY,
                *GRAM,
                f"gram.teacher={tmp_path / 'earlier'}",
                "gram.max_updates=0",
            )
        )
    fresh.start_run()
    fresh.enter_phase(10_000)
    assert isinstance(fresh, DinoV3)
    assert fresh.gram_teacher is not None
    assert same(fresh.gram_teacher, backbone)
    assert method.gram_size == 64


def test_gram_teacher_of_another_architecture_must_stay_fixed(
    tmp_path: Path,
) -> None:
    save_published(tmp_path / "wide", width=36, num_heads=3)
    settings = [*ROTARY, *GRAM, f"gram.teacher={tmp_path / 'wide'}"]
    with pytest.raises(
        InputError,
        match=r"gram.teacher wide has another architecture than .* set gram\.max_updates to 0",
    ):
        make_method(of("dinov3", *settings))
    method = drawn_method(of("dinov3", *settings, "gram.max_updates=0"))
    result, _ = take_step(method, random_views(gram_size=64), step=0)
    assert result.logged["gram_loss"].isfinite()


def test_gram_teacher_sees_pixels_in_its_own_statistics(tmp_path: Path) -> None:
    backbone = save_published(tmp_path / "earlier", position="rotary", key_bias=False)
    method = dinov3(*GRAM, f"gram.teacher={tmp_path / 'earlier'}", "gram.max_updates=0")
    assert isinstance(method, DinoV3)
    assert method.gram_teacher is not None
    method.gram_teacher.load_state_dict(backbone.state_dict())
    views = random_views(gram_size=64)
    result, _ = take_step(method, views, step=0)
    crops = views.gram_crops.flatten(0, 1)
    channels = [
        torch.tensor(values).view(3, 1, 1) for values in (method.mean, method.std, MEAN, STD)
    ]
    seen = (crops * channels[1] + channels[0] - channels[2]) / channels[3]
    outputs = method.student_outputs(
        views, method.make_targets([method.teacher_forward(views)], step=0)[0][0], generators()
    )
    expected = gram_loss(outputs.patch_tokens.flatten(0, 1), backbone(seen).patch_tokens)
    assert result.logged["gram_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_gram_size_that_is_no_multiple_of_the_patch_is_refused(tmp_path: Path) -> None:
    save_published(tmp_path / "coarse", patch=16)
    with pytest.raises(
        InputError,
        match=r"gram\.teacher .*coarse has patches of 16 pixels, but 40 is not a multiple",
    ):
        make_method(
            of(
                "dinov3",
                *ROTARY,
                "gram.weight=1.0",
                "gram.size=40",
                f"gram.teacher={tmp_path / 'coarse'}",
            )
        )


def test_rotary_positions_and_jitter_are_the_backbones() -> None:
    method: MomentumTeacher = dinov3()
    backbone = method.result
    assert isinstance(backbone, VisionTransformer)
    assert backbone.config.position == "rotary"
    assert "patch_positions" not in dict(backbone.named_parameters())
