"""Promises of joint training: labels and DINO's loss in one step, against loops of their own.

Letters: B images, G global crops of each, K classes.
"""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featkit.errors import Interrupted
from featkit.sources import concatenate, open_source
from featkit_train.config import TrainConfig
from featkit_train.log import Log
from featkit_train.loop import train
from featkit_train.methods import Labels, Views, make_method
from featkit_train.methods.joint import Joint, cut_mix
from featkit_train.methods.labels import UNKNOWN, label_of_each, labels_to_learn
from featkit_train.methods.momentum import Targets
from featkit_train.networks.convnet import ConvNet
from featkit_train.watching.listener import Listener
from featkit_train.weights import load_backbone
from tests.sentences import refused
from tests.train.labeled.small import draw_kinds
from tests.train.methods.training import (
    BATCH,
    assert_same_gradients,
    draw,
    generators,
    gradients,
    take_step,
    unmasked_views,
)
from tests.train.small import small_config

CLASSES = ("ash", "beech", "elm")
CLASS_IDS = np.array([2, UNKNOWN, 0, 1, 2], np.int64)  # of BATCH images
CONVNET = {
    "arch": "featkit:convnet",
    "options": {"stem": 4, "widths": [8, 12], "blocks": [1, 2]},
}
SMOOTHING, TEMPERATURE, LABEL_WEIGHT, SELF_WEIGHT = 0.1, 0.2, 0.7, 1.6


def joint_config(*settings: str) -> TrainConfig:
    """Return a config with a small convnet and small heads."""
    return small_config(
        "method=joint",
        *(f"network={CONVNET}", "crops.num_local=0", "dino.centering=sinkhorn"),
        "dino.koleo_weight=0.0",
        "dino.head={num_prototypes: 16, hidden_width: 32, bottleneck_width: 16}",
        *settings,
    )


def drawn_joint(*settings: str) -> Joint:
    """Create a method whose student and teacher have different drawn weights."""
    config = joint_config(
        *(f"labels.smoothing={SMOOTHING}", f"joint.temperature={TEMPERATURE}"),
        *(f"joint.label_weight={LABEL_WEIGHT}", f"joint.self_weight={SELF_WEIGHT}"),
        *("joint.hidden_width=10", "joint.bottleneck_width=6"),
        *settings,
    )
    method = make_method(config, labels=Labels(classes=CLASSES, class_ids=CLASS_IDS))
    assert isinstance(method, Joint)
    draw(method)
    return method


def label_loss(method: Joint, views: Views) -> Tensor:
    """Return the mean cross-entropy of both global crops of the images with a label."""
    crops = views.global_crops.flatten(0, 1)  # one batch, as the norms see it
    cosines = method.student.label_head(method.student.backbone(crops).class_token)
    labels = torch.from_numpy(CLASS_IDS).repeat(2)
    known = labels != UNKNOWN
    loss: Tensor = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)(
        cosines[known] / TEMPERATURE, labels[known]
    )
    return loss


def test_step_adds_the_labels_loss_to_dinos() -> None:
    method, views = drawn_joint(), unmasked_views()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    result, _ = take_step(method, views, step=3)
    ours = gradients(method)

    method.load_state_dict(state)  # norms and centers as before the step
    method.config = joint_config("joint.label_weight=0.0", f"joint.self_weight={SELF_WEIGHT}")
    own, _ = take_step(method, views, step=3)
    own_gradients = gradients(method)
    method.load_state_dict(state)
    method.zero_grad()
    expected = label_loss(method, views)
    (LABEL_WEIGHT * expected).backward()
    summed = {
        name: gradient + own_gradients.get(name, 0) for name, gradient in gradients(method).items()
    }
    assert result.logged["label_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.loss.item() == pytest.approx(
        own.loss.item() + LABEL_WEIGHT * expected.item(), rel=1e-5
    )
    assert_same_gradients(ours, own_gradients | summed)


def test_self_weight_scales_dinos_loss() -> None:
    method, views = drawn_joint("joint.label_weight=0.0"), unmasked_views()
    result, _ = take_step(method, views, step=3)
    expected = SELF_WEIGHT * result.logged["dino_loss"].item()
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_labels_has_no_label_loss() -> None:
    method, views = drawn_joint(), unmasked_views()
    unlabeled = views._replace(indices=torch.tensor([[1] * BATCH, [0] * BATCH]))
    result, _ = take_step(method, unlabeled, step=0)
    assert result.logged["label_loss"].item() == 0
    assert torch.isfinite(result.loss)


def test_cut_mix_mixes_pixels_and_targets_by_area() -> None:
    views = unmasked_views()
    generator = torch.Generator().manual_seed(5)
    class_probs = torch.rand(2, BATCH, 7, generator=generator).softmax(dim=-1)
    label_probs = torch.eye(3)[[2, 0, 1, 1, 2]]
    targets = Targets(class_probs, torch.zeros(0, 7), None)  # type: ignore[arg-type]
    mixed, new_targets, new_labels = cut_mix(views, targets, label_probs, np.random.default_rng(3))
    for image in range(BATCH):
        changed = (mixed.global_crops[:, image] != views.global_crops[:, image]).all(dim=(0, 1))
        share = changed.float().mean().item()
        rows, columns = torch.nonzero(changed, as_tuple=True)
        others = [
            other
            for other in range(BATCH)
            if torch.equal(
                mixed.global_crops[:, image][..., rows, columns],
                views.global_crops[:, other][..., rows, columns],
            )
        ]
        (other,) = others if share else [image]
        for probs, new in ((class_probs[0], new_targets.class_probs[0]), (label_probs, new_labels)):
            torch.testing.assert_close(
                new[image], (1 - share) * probs[image] + share * probs[other]
            )
    assert not torch.equal(mixed.global_crops, views.global_crops)


def test_mixed_steps_are_drawn_by_their_share() -> None:
    method, views = drawn_joint("joint.mix_probability=0.5"), unmasked_views()
    (targets,), _ = method.make_targets([method.teacher_forward(views)], step=0)
    plain = drawn_joint()(views, targets, generators()).loss.item()
    losses = [method(views, targets, generators(seed)).loss.item() for seed in range(40)]
    num_plain = sum(loss == pytest.approx(plain, rel=1e-6) for loss in losses)
    assert 8 < num_plain < 32


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    source = open_source(draw_kinds(tmp_path / "images", 24))
    config = joint_config("run.steps=6", "resize=stretch", "joint.mix_probability=0.5")
    whole = train(config, [source], tmp_path / "whole")

    def stop(log: Log) -> None:
        if log["step"] == 4 and "loss" in log:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config, [source], tmp_path / "cut", listener=Listener(on_log=stop))
    resumed = train(config, [source], tmp_path / "cut", resume=True)
    assert resumed.steps == 2
    assert resumed.backbone.read_bytes() == whole.backbone.read_bytes()
    assert resumed.scores == whole.scores
    backbone, _ = load_backbone(whole.backbone)
    assert isinstance(backbone, ConvNet)


def test_a_run_learns_to_name_kinds(tmp_path: Path) -> None:
    source = open_source(draw_kinds(tmp_path / "images", 24))
    report = train(joint_config("run.steps=30"), [source], tmp_path / "run")
    assert report.scores["accuracy"] > 0.9  # 0.5 by chance


def test_unlabeled_images_take_part_without_a_class(tmp_path: Path) -> None:
    labeled = open_source(draw_kinds(tmp_path / "kinds", 4))
    plain = tmp_path / "plain"
    plain.mkdir()
    for number, path in enumerate(sorted((tmp_path / "kinds").rglob("*.png"))[:3]):
        (plain / f"{number}.png").write_bytes(path.read_bytes())
    both = concatenate([labeled, open_source(plain)])
    labels = labels_to_learn(both, "label", np.arange(len(both)))
    assert len(labels.classes) == 2
    assert (labels.class_ids[-3:] == UNKNOWN).all()
    assert (labels.class_ids[:-3] != UNKNOWN).all()


def test_images_of_one_kind_are_refused(tmp_path: Path) -> None:
    source = open_source(draw_kinds(tmp_path / "images", 8))
    labels = label_of_each(source, "label")
    ids = np.array([index for index, label in enumerate(labels) if label == labels[0]])
    with refused("1 label", "at least two"):
        labels_to_learn(source, "label", ids)
