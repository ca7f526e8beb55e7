"""Promises of a classifier of timm's or torchvision's: the library's own network, and a head for
each of its exits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from featkit_train.networks.borrowed import TimmModel, TorchvisionModel
from featkit_train.networks.classifier import Classifier, ClassifierConfig, build_backbone
from featkit_train.networks.exits import ExitedBackbone
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision, import_quietly
from tests.train.networks.networks import (
    CONFIGS,
    SMALL_RESNET,
    add_tiny_vit,
    config,
    draw_images,
    drawn,
)


@pytest.fixture(autouse=True)
def _with_torchvision() -> None:
    allow_torchvision()
    add_tiny_vit()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("exits", [(), (1,), (1, 2)])
def test_each_head_reads_its_exits_vector(name: str, exits: tuple[int, ...]) -> None:
    backbone = build_backbone(dataclasses.replace(CONFIGS[name], exits=exits))
    classifier, images = drawn(Classifier(backbone, 5)), draw_images()
    logits, vectors, patch_tokens = classifier(images)
    features = (
        backbone.all_exits(images) if isinstance(backbone, ExitedBackbone) else (backbone(images),)
    )
    assert logits.shape == (len(exits) + 1, 2, 5)
    torch.testing.assert_close(vectors, torch.stack([each.class_token for each in features]))
    torch.testing.assert_close(patch_tokens, features[-1].patch_tokens)
    for head, row, vector in zip(classifier.heads, logits, vectors, strict=True):
        torch.testing.assert_close(row, vector @ head.weight.T + head.bias)
    assert backbone.built_from == dataclasses.replace(CONFIGS[name], exits=exits)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_learns_from_the_logits(name: str) -> None:
    backbone = build_backbone(dataclasses.replace(CONFIGS[name], exits=(1, 2)))
    classifier = drawn(Classifier(backbone, 5)).train()
    classifier(draw_images(4)).logits.square().sum().backward()
    still = [
        key
        for key, weight in classifier.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ]
    assert still == []


def test_exits_are_of_one_kind_in_mixed_precision() -> None:
    backbone = build_backbone(dataclasses.replace(CONFIGS["timm ViT"], exits=(1,)))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = drawn(Classifier(backbone, 5))(draw_images())
    assert outputs.logits.isfinite().all()
    assert outputs.vectors.shape == (2, 2, backbone.width)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_small_stem_is_the_one_of_the_cifar_resnets(library: str) -> None:
    options: dict[str, Any] = SMALL_RESNET if library == "timm" else {}
    small = build_backbone(config(f"{library}:resnet18", small_stem=True, **options))
    large = build_backbone(config(f"{library}:resnet18", **options))
    assert (small.patch, large.patch) == (8, 32)
    first = small.get_parameter("body.conv1.weight")
    assert first.shape[1:] == (3, 3, 3)
    assert first.std().item() == pytest.approx((2 / (first.shape[0] * 9)) ** 0.5, rel=0.15)
    assert small(draw_images(height=32, width=48)).patch_tokens.shape[:3] == (2, 4, 6)
    assert large(draw_images(height=32, width=64)).patch_tokens.shape[:3] == (2, 1, 2)
    # All else is as it was.
    kept = {
        key: tensor.shape
        for key, tensor in large.state_dict().items()
        if key != "body.conv1.weight"
    }
    assert {
        key: tensor.shape
        for key, tensor in small.state_dict().items()
        if key != "body.conv1.weight"
    } == kept


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm:test_vit", "{img_size: 32, patch_size: 4}"),
        ("timm:convnext_atto", "small_stem"),
        ("torchvision:shufflenet_v2_x0_5", "small_stem"),
    ],
)
def test_a_network_with_another_stem_has_no_small_one(arch: str, words: str) -> None:
    with refused(arch.split(":")[1], words):
        build_backbone(config(arch, small_stem=True))


def test_options_reach_the_librarys_constructor() -> None:
    backbone = build_backbone(config("timm:resnet18", **SMALL_RESNET))
    assert isinstance(backbone, TimmModel)
    assert (backbone.width, len(backbone.body.layer1), len(backbone.body.layer4)) == (128, 1, 1)
    assert build_backbone(config("timm:test_vit", img_size=32, patch_size=4)).patch == 4
    vit = build_backbone(config("torchvision:featkit_tiny_vit", image_size=16))
    assert isinstance(vit, TorchvisionModel)
    assert vit(draw_images(height=16, width=16)).patch_tokens.shape == (2, 2, 2, 24)


def test_stochastic_depth_is_drawn_in_training_alone() -> None:
    backbone = build_backbone(config("timm:resnet18", **SMALL_RESNET, drop_path_rate=0.5))
    images = draw_images()
    drawn(backbone)
    torch.testing.assert_close(backbone(images), backbone(images), rtol=0, atol=0)
    backbone.train()
    torch.manual_seed(0)
    seen = {backbone(images).class_token.sum().item() for _ in range(8)}
    assert len(seen) > 1


@pytest.mark.parametrize("options", [{"color": 1}, {"layers": "many"}, {"num_classes": 3}])
@pytest.mark.parametrize("exits", [(), (1,)])
def test_options_that_a_network_does_not_take_are_refused(
    options: dict[str, Any], exits: tuple[int, ...]
) -> None:
    with refused("timm:resnet18 cannot be built with the options", options):
        build_backbone(config("timm:resnet18", exits=exits, **options))


@pytest.mark.parametrize("arch", ["resnet18", "keras:resnet18", "timm:", ""])
def test_a_library_that_is_not_there_is_refused(arch: str) -> None:
    with refused(repr(arch), "timm:NAME or torchvision:NAME"):
        ClassifierConfig(arch=arch)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (
            "timm:test_resnet",
            lambda: import_quietly("timm").create_model("test_resnet", num_classes=0),
        ),
        ("torchvision:resnet18", lambda: import_quietly("torchvision.models").resnet18()),
    ],
)
def test_fresh_weights_are_the_librarys_under_the_same_seed(name: str, make: Any) -> None:
    torch.manual_seed(3)
    ours = build_backbone(config(name)).state_dict()
    torch.manual_seed(3)
    theirs = make().state_dict()
    shared = [key for key in theirs if not key.startswith("fc.")]
    assert len(shared) > 20
    for key in shared:
        assert torch.equal(ours[f"body.{key}"], theirs[key]), key
