"""Promises of adaptation: heads train first on a frozen published backbone, then everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.engine.optimizer import make_optimizer
from featkit_train.methods import MomentumTeacher, make_method
from featkit_train.networks.borrowed import ResNet
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.pretrained import load_pretrained
from featkit_train.weights import BackboneInfo
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.methods.published_backbone import MEAN, PUBLISHED, STD, save_published
from tests.train.methods.test_dinov2 import plain_loss
from tests.train.methods.training import (
    OWN_HEAD,
    assert_same_gradients,
    draw,
    generators,
    gradients,
    random_views,
    take_step,
)
from tests.train.momentum import make_teacher
from tests.train.small import small_config


def adapt(folder: Path, *settings: str) -> MomentumTeacher:
    """Return a method over a drawn published backbone, without KoLeo."""
    save_published(folder)
    return make_teacher(config(folder, *settings))


def config(folder: Path, *settings: str) -> TrainConfig:
    """Return a config without `model`, which the published backbone brings."""
    own = [
        "method=adapt",
        "model={}",
        "dino.koleo_weight=0.0",
        f"pretrained.name={folder}",
        "pretrained.head_steps=3",
        OWN_HEAD,
    ]
    return small_config(*own, *settings)


def test_student_and_teacher_start_from_published_weights(
    tmp_path: Path,
) -> None:
    method = adapt(tmp_path / "published")
    expected = save_published(tmp_path / "again").state_dict()
    for backbone in (method.student.backbone, method.teacher.backbone):
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in backbone.state_dict().items()
        )
    assert (method.mean, method.std) == (MEAN, STD)
    assert isinstance(method.result, VisionTransformer)
    assert method.result.config == PUBLISHED


def test_step_of_the_second_phase_is_dinov2s(tmp_path: Path) -> None:
    method, views = adapt(tmp_path / "published"), random_views()
    draw(method.student, seed=1)
    draw(method.teacher, seed=2)
    method.enter_phase(7)
    loss, _ = plain_loss(method, views, step=7)
    method.zero_grad()
    loss.backward()
    expected = gradients(method)
    result, _ = take_step(method, views, step=7)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(method), expected)
    assert {
        name for name, _ in method.named_parameters() if name.startswith("student.")
    } == expected.keys()


def test_first_phase_trains_heads_and_mask_token_alone(
    tmp_path: Path,
) -> None:
    method, views = adapt(tmp_path / "published", "optim.weight_decay=0.1"), random_views()
    draw(method.student.heads(), seed=1)
    optimizer = make_optimizer(method, method.config.optim)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1e-3, 0.1
    expected = {
        name: tensor.clone() for name, tensor in method.student.backbone.state_dict().items()
    }
    before = {
        name: parameter.detach().clone() for name, parameter in method.student.named_parameters()
    }
    moved_at: dict[int, set[str]] = {}
    for step in range(4):
        take_step(method, views, step=step)
        optimizer.step()
        method.after_optimizer(step=step)
        moved = {
            name
            for name, parameter in method.student.named_parameters()
            if not torch.equal(parameter, before[name])
        }
        moved_at[step] = {name.split(".")[0] for name in moved}
        if step < 3:
            for backbone in (method.student.backbone, method.teacher.backbone):
                assert all(
                    torch.equal(tensor, expected[name])
                    for name, tensor in backbone.state_dict().items()
                )
    assert moved_at[2] == {"head", "patch_head", "mask_token"}
    assert moved_at[3] == {"head", "patch_head", "mask_token", "backbone"}


def test_phase_changes_are_reported_once(tmp_path: Path) -> None:
    method = adapt(tmp_path / "published")
    assert [method.enter_phase(step) for step in range(5)] == [True, False, False, True, False]
    cold = adapt(tmp_path / "cold", "pretrained.head_steps=0")
    assert [cold.enter_phase(step) for step in range(2)] == [True, False]
    assert all(parameter.requires_grad for parameter in cold.student.parameters())


def test_prototypes_are_frozen_at_the_start_of_each_phase(
    tmp_path: Path,
) -> None:
    # heads learn alone for 3 steps
    method = adapt(tmp_path / "published", "dino.freeze_last_layer_steps=2")
    still = []
    for step in range(7):
        method.enter_phase(step)
        targets, _ = method.make_targets([method.teacher_forward(random_views())], step=step)
        method.zero_grad()
        method(random_views(), targets[0], generators()).loss.backward()
        method.before_optimizer(step=step)
        still.append(method.student.head.prototypes.grad is None)
    assert still == [True, True, False, True, True, False, False]


def test_branch_of_a_checkpoint_is_configured_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_published(tmp_path / "published")
    asked = {}

    def load(name: str, **options: object) -> object:
        asked.update(options)
        backbone, info = load_pretrained(name)
        return backbone, dataclasses.replace(info, remarks=("read the weights of the student.",))

    monkeypatch.setattr("featkit_train.methods.heads_first.load_pretrained", load)
    method = make_method(config(tmp_path / "published", "pretrained.branch=student"))
    assert asked["branch"] == "student"
    assert method.remarks == ("read the weights of the student.",)
    with pytest.raises(InputError, match=r"pretrained\.branch is one of teacher, ema, student"):
        config(tmp_path / "published", "pretrained.branch=both")


def test_network_that_cannot_hide_patches_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_torchvision()
    save_published(tmp_path / "published")
    geometry = load_pretrained(str(tmp_path / "published"))[1].geometry
    info = BackboneInfo(name="r", family="dino", geometry=geometry, license="", origin={})
    monkeypatch.setattr(
        "featkit_train.methods.heads_first.load_pretrained",
        lambda *_, **__: (ResNet("resnet18"), info),
    )
    with pytest.raises(
        InputError,
        match="published is not a Vision Transformer, which `adapt` needs to hide patches; use",
    ):
        make_method(config(tmp_path / "published"))
