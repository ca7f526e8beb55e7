"""Promises of pseudo-labels: the sure ones alone, as many of each class where asked, and labels of
people's often enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from featkit.images import decode
from featkit.sources import open_source
from featkit_train.config import SelfTrainingConfig
from featkit_train.labeled.pseudo_labels import PSEUDO_FILE, accept, label_images, mixed
from featkit_train.methods.base import IMAGENET_MEAN, IMAGENET_STD
from featkit_train.networks.classifier import Classifier, build_backbone
from featkit_train.run_parts import geometry_of
from tests.train.labeled.small import draw_kinds, labeled_config

PROBS = np.array(
    [
        [0.9, 0.1, 0.0],
        [0.8, 0.1, 0.1],
        [0.7, 0.2, 0.1],
        [0.6, 0.3, 0.1],
        [0.4, 0.35, 0.25],
        [0.1, 0.55, 0.35],
        [0.0, 0.0, 0.0],
    ],
    np.float32,
)


def test_without_balance_the_sure_ones_are_learned_once_each() -> None:
    accepted = accept(PROBS, SelfTrainingConfig(confidence=0.5, balance=False), seed=0)
    assert accepted.indices.tolist() == [0, 1, 2, 3, 5]
    assert accepted.counts.tolist() == [4, 1, 0]
    assert accepted.count == 5


def test_balanced_classes_have_equally_many_images() -> None:
    accepted = accept(PROBS, SelfTrainingConfig(confidence=0.5), seed=0)
    # ceil(5 / 2) of each of the two that were found
    assert accepted.indices.tolist() == [0, 1, 2, 5, 5, 5]
    assert accepted.count == 5


def test_an_unreadable_image_is_never_accepted() -> None:
    assert 6 not in accept(PROBS, SelfTrainingConfig(confidence=0.0, balance=False), seed=0).indices
    none = accept(PROBS, SelfTrainingConfig(confidence=0.95), seed=0)
    assert none.count == len(none.indices) == 0


def test_labels_of_peoples_come_often_enough() -> None:
    pseudo = np.array([0, 2, 2])
    assert mixed(4, pseudo, labeled_share=0.0).tolist() == [0, 1, 2, 3, 4, 6, 6]
    numbers = mixed(2, np.arange(20), labeled_share=0.25)
    assert (numbers < 2).mean() >= 0.25
    assert (numbers >= 2).sum() == 20
    assert np.bincount(numbers[numbers < 2]).tolist() == [4, 4]


def test_images_are_labeled_once_and_unreadable_ones_get_zeros(
    tmp_path: Path,
) -> None:
    source = open_source(draw_kinds(tmp_path / "images", 3))
    (tmp_path / "images" / "red" / "001.png").write_text("no image")
    config = labeled_config("self-training")
    torch.manual_seed(0)
    teacher = Classifier(build_backbone(config.classifier), 2)
    geometry = geometry_of(config, patch=teacher.backbone.patch)
    path = tmp_path / "round-1" / PSEUDO_FILE
    probs = label_images(path, teacher, source, geometry)
    assert probs.shape == (6, 2)
    assert probs[4].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(probs[[0, 1, 2, 3, 5]].sum(axis=1), 1.0, rtol=1e-5)
    pixels = geometry.apply(
        decode(source.read(5), name="5", shorter_side=geometry.resize_to).pixels
    )
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = teacher.eval()((images - mean) / std).logits[-1].softmax(dim=-1)[0]
    np.testing.assert_allclose(probs[5], expected.numpy(), rtol=1e-4)
    (tmp_path / "images" / "blue" / "000.png").unlink()
    # read back, not made again
    np.testing.assert_array_equal(label_images(path, teacher, source, geometry), probs)
