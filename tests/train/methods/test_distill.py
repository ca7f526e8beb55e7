"""Promises of distillation: heads train first on a frozen teacher's features, then the student."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.engine.optimizer import make_optimizer
from featkit_train.methods import make_method
from featkit_train.methods.base import IMAGENET_MEAN, IMAGENET_STD
from featkit_train.methods.distill import Distill
from featkit_train.networks.base import Backbone
from featkit_train.networks.classifier import build_backbone
from featkit_train.networks.normalization import Statistics
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.pretrained import load_pretrained
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone
from tests.torchvision_without_cuda import allow_torchvision, import_quietly
from tests.train import published_files
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
from tests.train.networks.networks import CONFIGS, drawn
from tests.train.small import small_config
from tests.train.steps import batches, make_engine

# larger, and of coarser patches than the student's 8
TEACHER = {"width": 36, "num_heads": 3, "patch": 16}
HEADS = {"shared": [], "own": [OWN_HEAD]}


def distill(folder: Path, *settings: str) -> Distill:
    """Return a method with drawn weights, except the teacher's, which come from its file."""
    backbone = save_published(folder, **TEACHER)
    method = drawn_method(
        of("distill", f"pretrained.name={folder}", "pretrained.head_steps=3", *settings)
    )
    assert isinstance(method, Distill)
    method.teacher.backbone.load_state_dict(backbone.state_dict())
    return method


def frozen_features(
    backbone: Backbone,
    global_crops: Tensor,
    *,
    side: int = 64,
    statistics: Statistics = (MEAN, STD),
) -> list[tuple[Tensor, Tensor]]:
    """Return a teacher's class tokens (B, D) and patches (B, h, w, D) for crops in its own size and
    statistics."""
    teacher_features = []
    for crop in global_crops:
        columns = [
            torch.tensor(numbers).view(3, 1, 1)
            for numbers in (IMAGENET_MEAN, IMAGENET_STD, *statistics)
        ]
        pixels = crop * columns[1] + columns[0]
        known = F.interpolate(
            (pixels - columns[2]) / columns[3], size=(side, side), mode="bicubic", antialias=True
        )
        with torch.no_grad():
            teacher_features.append(tuple(backbone(known)))
    return teacher_features


def cross_entropies(
    method: Distill,
    students: list[Tensor],
    patches: list[Tensor],
    masks: Tensor,
    teacher_features: list[tuple[Tensor, Tensor]],
    *,
    step: int,
) -> Tensor:
    """Return the class terms over pairs of views and the patch terms of masked patches."""
    teacher = method.teacher
    with torch.no_grad():
        class_probs = [
            ((teacher.head(tokens) - method.center.center) / method.teacher_temp(step)).softmax(
                dim=-1
            )
            for tokens, _ in teacher_features
        ]
        patch_probs = [
            (
                (teacher.head_of_patches(grid) - method.patch_center.center)
                / method.patch_temp(step)
            ).softmax(dim=-1)
            for _, grid in teacher_features
        ]
    pairs = [(t, s) for t in range(2) for s in range(len(students)) if s != t]
    loss = torch.stack(
        [cross_entropy(class_probs[t][b], students[s][b]) for t, s in pairs for b in range(BATCH)]
    ).mean()
    for view in range(2):
        for b in range(BATCH):
            for row, column in masks[view, b].nonzero().tolist():
                term = cross_entropy(
                    patch_probs[view][b, row, column], patches[view][b, row, column]
                )
                loss = loss + term / masks[view, b].sum() / (2 * BATCH)
    return loss


@pytest.mark.parametrize("heads", HEADS)
def test_step_equals_the_loop_over_a_frozen_teacher(tmp_path: Path, heads: str) -> None:
    method, views = distill(tmp_path / "teacher", *HEADS[heads]), random_views()
    teacher_features = frozen_features(method.teacher.backbone, views.global_crops)
    # nothing is hidden from the student
    seen = [method.student.backbone(crop) for crop in views.global_crops]
    students = [method.student.head(features.class_token) for features in seen]
    students += [
        method.student.head(method.student.backbone(crop).class_token) for crop in views.local_crops
    ]
    patches = [method.student.head_of_patches(features.patch_tokens) for features in seen]
    loss = cross_entropies(method, students, patches, views.masks, teacher_features, step=7)
    method.zero_grad()
    loss.backward()
    expected = gradients(method)
    centers = [method.center.center.clone(), method.patch_center.center.clone()]
    result, _ = take_step(method, views, step=7)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    assert_same_gradients(gradients(method), expected)
    assert all(name.startswith("student.") for name in expected)
    with torch.no_grad():
        class_logits = torch.cat([method.teacher.head(tokens) for tokens, _ in teacher_features])
        hidden = torch.cat(
            [
                method.teacher.head_of_patches(grid)[masks]
                for (_, grid), masks in zip(teacher_features, views.masks, strict=True)
            ]
        )
    for center, before, rows in zip(
        (method.center, method.patch_center), centers, (class_logits, hidden), strict=True
    ):
        torch.testing.assert_close(
            center.center, 0.9 * before + 0.1 * rows.mean(dim=0), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("heads", HEADS)
def test_first_phase_trains_heads_on_teacher_features_alone(tmp_path: Path, heads: str) -> None:
    method, views = distill(tmp_path / "teacher", *HEADS[heads]), random_views()
    teacher_features = frozen_features(method.teacher.backbone, views.global_crops)
    head: nn.Module = method.trial_heads["head"]
    patch_head: nn.Module = method.trial_heads["patch_head"] if heads == "own" else head
    students = [head(tokens) for tokens, _ in teacher_features]
    patches = [patch_head(grid) for _, grid in teacher_features]
    loss = cross_entropies(method, students, patches, views.masks, teacher_features, step=0)
    method.zero_grad()
    loss.backward()
    expected = gradients(method)
    result, _ = take_step(method, views, step=0)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    assert_same_gradients(gradients(method), expected)
    assert {name.split(".")[0] for name in expected} == {"trial_heads"}
    assert len(expected) == len(list(method.trial_heads.parameters()))


def test_optimizer_holds_the_trial_heads(tmp_path: Path) -> None:
    method = distill(tmp_path / "teacher", OWN_HEAD)
    inside = {
        parameter
        for group in make_optimizer(method, method.config.optim).param_groups
        for parameter in group["params"]
    }
    assert set(method.trial_heads.parameters()) <= inside
    assert set(method.student.parameters()) <= inside
    assert len(inside) == len([*method.trial_heads.parameters(), *method.student.parameters()])


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's parameters."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_averages_follow_and_the_teacher_backbone_stays(tmp_path: Path) -> None:
    method = distill(tmp_path / "teacher", OWN_HEAD)
    for step, followers, leaders, still in (
        (0, method.teacher.heads(), method.trial_heads, method.average),
        (3, method.average, method.student, method.teacher.heads()),
    ):
        method.enter_phase(step)
        momentum = method.momentum(step)
        before, left, frozen = (
            snapshot(followers),
            snapshot(still),
            snapshot(method.teacher.backbone),
        )
        method.after_optimizer(step=step)
        leading = snapshot(leaders)
        for name, parameter in snapshot(followers).items():
            torch.testing.assert_close(
                parameter, momentum * before[name] + (1 - momentum) * leading[name]
            )
        assert all(
            torch.equal(left[name], parameter) for name, parameter in still.named_parameters()
        )
        assert all(
            torch.equal(frozen[name], parameter)
            for name, parameter in method.teacher.backbone.named_parameters()
        )


def test_phase_change_from_heads_to_student_is_reported_once(tmp_path: Path) -> None:
    method = distill(tmp_path / "teacher")
    assert [method.enter_phase(step) for step in range(5)] == [True, False, False, True, False]
    assert all(parameter.requires_grad for parameter in method.student.parameters())
    assert not any(parameter.requires_grad for parameter in method.trial_heads.parameters())
    assert method.enter_phase(1)  # a run resumed there
    assert not any(parameter.requires_grad for parameter in method.student.parameters())


def test_teacher_like_the_student_sees_crops_unchanged(
    tmp_path: Path,
) -> None:
    backbone = save_published(tmp_path / "teacher")
    method = drawn_method(of("distill", f"pretrained.name={tmp_path / 'teacher'}"))
    assert isinstance(method, Distill)
    method.teacher.backbone.load_state_dict(backbone.state_dict())
    method.teacher_statistics = (method.mean, method.std)
    views = random_views()
    expected = backbone(views.global_crops.flatten(0, 1)).class_token
    assert torch.equal(method.teacher_forward(views).class_tokens.flatten(0, 1), expected)


def test_result_is_the_average_of_the_configured_model(tmp_path: Path) -> None:
    method = distill(tmp_path / "teacher")
    assert method.result is method.average.backbone
    assert method.result.width == 24
    assert method.teacher.backbone.width == 36


def test_student_has_no_mask_token_and_sees_everything(tmp_path: Path) -> None:
    method = distill(tmp_path / "teacher")
    assert not any("mask_token" in name for name in method.state_dict())
    hidden, whole = (
        random_views(),
        random_views(masks=torch.zeros(2, BATCH, 4, 4, dtype=torch.bool)),
    )
    method.enter_phase(7)
    with torch.no_grad():
        (targets,), _ = method.make_targets([method.teacher_forward(hidden)], step=7)
        logits = [
            method.student_outputs(views, targets, generators()).class_logits
            for views in (hidden, whole)
        ]
    assert torch.equal(logits[0], logits[1])


# -- teachers with a feature map -------------------------------------------------------------


class Source(NamedTuple):
    """A teacher's settings, the pixels between positions of its feature map, and its statistics."""

    settings: tuple[str, ...]
    backbone: Backbone
    patch: int
    statistics: Statistics


@pytest.fixture(
    params=["torchvision's ResNet-50", "timm's ResNet", "a run's ResNet"], scope="module"
)
def resnet(request: pytest.FixtureRequest) -> Iterator[Source]:
    """Write a ResNet with drawn weights to a folder, which is removed afterwards: it has 94 MB."""
    allow_torchvision()
    with tempfile.TemporaryDirectory() as folder:
        yield SOURCES[request.param](Path(folder))


def published_resnet(folder: Path) -> Source:
    """Return a ResNet teacher in its authors' file format."""
    state = published_files.official("dino_resnet50", published_files.reference("dino_resnet50"))
    torch.save(state, folder / "weights.pth")
    return read("dino_resnet50", folder / "weights.pth", patch=32)


def timm_resnet(folder: Path) -> Source:
    """Return a ResNet teacher in timm's file format."""
    model = import_quietly("timm").create_model("test_resnet.r160_in1k")
    torch.save(published_files.drawn(model.state_dict(), seed=0), folder / "weights.pth")
    return read("timm:test_resnet.r160_in1k", folder / "weights.pth", patch=32)


def run_of_resnet(folder: Path) -> Source:
    """Return a ResNet teacher from a supervised run, whose map positions are 8 pixels apart."""
    geometry = Geometry(
        height=32,
        width=32,
        resize="stretch",
        resize_to=32,
        interpolation="bicubic",
        patch=8,
        mean=MEAN,
        std=STD,
    )
    info = BackboneInfo(name="taught", family="born-again", geometry=geometry, license="none")
    save_backbone(folder / BACKBONE_FILE, drawn(build_backbone(CONFIGS["timm CNN"])), info)
    return read(str(folder), None, patch=8)


def read(name: str, weights: Path | None, *, patch: int) -> Source:
    backbone, info = load_pretrained(name, weights=weights)
    assert not isinstance(backbone, VisionTransformer)
    assert backbone.patch == patch
    settings = (
        f"pretrained.name={name}",
        *([] if weights is None else [f"pretrained.weights={weights}"]),
    )
    return Source(settings, backbone, patch, (info.geometry.mean, info.geometry.std))


SOURCES = {
    "torchvision's ResNet-50": published_resnet,
    "timm's ResNet": timm_resnet,
    "a run's ResNet": run_of_resnet,
}


def test_resnet_teacher_is_matched_on_its_feature_map(resnet: Source) -> None:
    with pytest.raises(
        InputError,
        match="is not a Vision Transformer, which `adapt` needs to hide patches; use",
    ):
        make_method(small_config("method=adapt", "model={}", *resnet.settings))
    method, views = drawn_method(of("distill", *resnet.settings)), random_views()
    assert isinstance(method, Distill)
    method.teacher.backbone.load_state_dict(resnet.backbone.state_dict())
    teacher_features = frozen_features(
        resnet.backbone, views.global_crops, side=4 * resnet.patch, statistics=resnet.statistics
    )
    assert all(grid.shape == (BATCH, 4, 4, resnet.backbone.width) for _, grid in teacher_features)
    seen = method.teacher_forward(views)
    for found, expected in zip(
        (seen.class_tokens, seen.patch_tokens), zip(*teacher_features, strict=True), strict=True
    ):
        wanted = torch.stack(expected)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    method.enter_phase(1000)
    features = [method.student.backbone(crop) for crop in views.global_crops]
    students = [method.student.head(each.class_token) for each in features]
    students += [
        method.student.head(method.student.backbone(crop).class_token) for crop in views.local_crops
    ]
    patches = [method.student.head_of_patches(each.patch_tokens) for each in features]
    loss = cross_entropies(method, students, patches, views.masks, teacher_features, step=1000)
    result, _ = take_step(method, views, step=1000)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-3)


def test_resnet_teacher_stays_unchanged_in_both_phases(
    resnet: Source,
) -> None:
    plain = ("optim.warmup_steps=0", "optim.weight_decay=0.0", "optim.weight_decay_end=0.0")
    config = of("distill", *resnet.settings, "pretrained.head_steps=1", *plain)
    engine = make_engine(config)
    assert isinstance(engine.method, Distill)
    for step, crops in enumerate(batches(config, engine, steps=2)):
        before = {name: tensor.clone() for name, tensor in engine.method.state_dict().items()}
        log = engine.step(crops, step)
        assert math.isfinite(log["loss"])
        after = engine.method.state_dict()
        moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
        learns = {"trial_heads", "teacher"} if step == 0 else {"student", "average"}
        assert moved == learns | {"center", "patch_center"}
        # The running statistics of its norms too.
        found, expected = engine.method.teacher.backbone.state_dict(), resnet.backbone.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    backbone = engine.method.student.backbone.state_dict()
    still = {
        name for name in backbone if torch.equal(backbone[name], before[f"student.backbone.{name}"])
    }
    assert still == set()
