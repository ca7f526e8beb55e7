"""Promises of exits: each gives what the network has seen by then, all from one pass, and can be
cut out whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featkit_train.networks.classifier import build_backbone
from featkit_train.networks.exits import ExitedBackbone, ShrinkingExit, TokenExit
from featkit_train.networks.trunks import Stage
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.networks.networks import (
    CONFIGS,
    SMALL_RESNET,
    add_tiny_vit,
    config,
    draw_images,
    drawn,
)

PLAIN = {
    **CONFIGS,
    "featkit convnet": config("featkit:convnet", stem=4, widths=[8, 8, 12], blocks=[1, 2, 1]),
}
EXITS = {name: dataclasses.replace(plain, exits=(1, 2)) for name, plain in PLAIN.items()}
TIMM: dict[
    str, tuple[dict[str, Any], int]
] = {  # other families, which timm cuts in ways of their own; names, options, side in pixels
    "convnext_atto": ({}, 64),
    "efficientnet_b0": ({}, 64),  # a layer behind the last map
    "regnetx_002": ({}, 64),  # a stem among its maps
    "mobilenetv3_small_050": ({}, 64),  # a vector that is wider than the last map
    "test_vit2": ({"depth": 3}, 32),  # no class token is pooled
    # height and width before the channels
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1, 1, 1), "embed_dim": 24}, 224),
    "vit_small_plus_patch16_dinov3": ({"depth": 3}, 32),  # registers
}


@pytest.fixture(autouse=True)
def _with_torchvision() -> None:
    allow_torchvision()
    add_tiny_vit()


def exited(name: str) -> ExitedBackbone:
    backbone = drawn(build_backbone(EXITS[name]))
    assert isinstance(backbone, ExitedBackbone)
    return backbone


def stages_of(backbone: ExitedBackbone, images: Tensor) -> list[Tensor]:
    """Return the output of each stage or block of the library's own modules."""
    body: Any = getattr(backbone.trunk, "body", backbone.trunk)
    if hasattr(body, "blocks"):
        parts = list(body.blocks)
    elif hasattr(body, "encoder"):
        parts = list(body.encoder.layers)
    else:
        parts = (
            list(body.stages)
            if hasattr(body, "stages")
            else [body.layer1, body.layer2, body.layer3, body.layer4]
        )
    seen: list[Tensor] = []
    hooks = [
        part.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for part in parts
    ]
    backbone(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", EXITS)
def test_an_exit_is_made_of_its_own_stage(name: str) -> None:
    backbone, images = exited(name), draw_images()
    features = backbone.all_exits(images)
    stages = stages_of(backbone, images)
    assert (len(features), backbone.depth, backbone.has_attention) == (3, 3, False)
    assert [each.class_token.shape for each in features] == [(2, backbone.width)] * 3
    for number in (1, 2):
        found = features[number - 1]
        exit_: Any = backbone.exits[number - 1]
        if stages[0].ndim == 3:  # (B, 1 + h w, D) tokens
            normed = exit_.norm(stages[number - 1])
            torch.testing.assert_close(found.class_token, normed[:, 0] + exit_.mlp(normed[:, 0]))
            torch.testing.assert_close(found.patch_tokens.flatten(1, 2), normed[:, 1:])
        else:
            torch.testing.assert_close(
                found.class_token, exit_.shrink(stages[number - 1]).mean(dim=(2, 3))
            )
            torch.testing.assert_close(found.patch_tokens, stages[number - 1].permute(0, 2, 3, 1))


@pytest.mark.parametrize("name", EXITS)
def test_the_deepest_exit_is_the_network_without_exits(name: str) -> None:
    backbone, plain = exited(name), build_backbone(PLAIN[name]).eval()
    assert (plain.width, plain.patch) == (backbone.width, backbone.patch)
    names = {
        "trunk.stem.0": "body.conv1",
        "trunk.stem.1": "body.bn1",
        "trunk.stages.": "body.layer",
        "trunk.body.s": "s",  # stem and stages of featkit's convnet
        "trunk.": "",
    }
    state = {}
    for key, tensor in backbone.state_dict().items():
        for old, new in names.items():
            if key.startswith(old):
                rest = key.removeprefix(old)
                state[new + (f"{int(rest[0]) + 1}{rest[1:]}" if new == "body.layer" else rest)] = (
                    tensor
                )
                break
    plain.load_state_dict(state)
    images = draw_images()
    torch.testing.assert_close(backbone(images), plain(images))
    torch.testing.assert_close(backbone.all_exits(images)[-1], plain(images))


@pytest.mark.parametrize("name", EXITS)
def test_only_the_exits_asked_for_are_computed(name: str) -> None:
    backbone, images = exited(name), draw_images()
    every = backbone.all_exits(images)
    backbone.exits[0].register_forward_hook(
        lambda *_: pytest.fail("an exit ran that nobody asked for")
    )
    found = backbone.activations(images, layers=(3, 2))
    torch.testing.assert_close(found.features, (every[2], every[1]))
    assert found.attention is None
    torch.testing.assert_close(backbone.student_forward(images), every[2])
    for layers, attention in (((0,), False), ((4,), False), ((3,), True)):
        with pytest.raises(ValueError, match="exits 1 to 3"):
            backbone.activations(images, layers=layers, attention=attention)


@pytest.mark.parametrize("name", EXITS)
def test_every_stage_runs_once_for_all_exits(name: str) -> None:
    backbone, images = exited(name), draw_images()
    runs: dict[str, int] = {}

    def count(key: str) -> Any:
        return lambda *_: runs.update({key: runs.get(key, 0) + 1})

    for key, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.LayerNorm):
            module.register_forward_hook(count(key))
    backbone.all_exits(images)
    twice = {key for key, number in runs.items() if number > 1}
    # of the class token, and of the places
    assert twice == ({"exits.0.norm", "exits.1.norm"} if "ViT" in name else set())


@pytest.mark.parametrize("name", EXITS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_cut_network_equals_the_exit_and_holds_no_more(name: str, number: int) -> None:
    backbone, images = exited(name), draw_images()
    cut = backbone.cut(number)
    assert (cut.depth, cut.width, cut.patch, cut.has_attention) == (
        1,
        backbone.width,
        backbone.patch,
        False,
    )
    with torch.no_grad():
        torch.testing.assert_close(
            cut(images), backbone.all_exits(images)[number - 1], rtol=0, atol=0
        )
    loss = cut(images).class_token.square().sum()
    loss.backward()
    backbone.all_exits(images)[number - 1].class_token.square().sum().backward()
    needed = {
        key: parameter.grad
        for key, parameter in backbone.named_parameters()
        if parameter.grad is not None
    }
    held = {
        key.replace("exit.", f"exits.{number - 1}."): parameter
        for key, parameter in cut.named_parameters()
    }
    assert held.keys() == needed.keys()
    for key, parameter in held.items():
        torch.testing.assert_close(parameter.grad, needed[key], rtol=1e-4, atol=1e-4, msg=key)
    with torch.no_grad():
        next(iter(cut.parameters())).zero_()
    assert next(iter(backbone.parameters())).abs().sum() > 0  # a copy


@pytest.mark.parametrize("arch", TIMM)
def test_other_families_of_timms_are_cut_exactly_too(arch: str) -> None:
    options, side = TIMM[arch]
    built = config(f"timm:{arch}", exits=(1, 2), **options)
    backbone, images = drawn(build_backbone(built)), draw_images(1, height=side, width=side)
    assert isinstance(backbone, ExitedBackbone)
    whole = build_backbone(dataclasses.replace(built, exits=()))
    whole.load_state_dict(
        {key.removeprefix("trunk."): t for key, t in backbone.state_dict().items() if key[0] == "t"}
    )
    with torch.no_grad():
        features = backbone.all_exits(images)
        torch.testing.assert_close(whole.eval()(images), features[-1])
        for number in (1, 2):
            cut = backbone.cut(number)
            torch.testing.assert_close(cut(images), features[number - 1], rtol=0, atol=0)
            assert features[number - 1].class_token.shape == (1, backbone.width)
    assert sum(p.numel() for p in backbone.cut(1).parameters()) < sum(
        p.numel() for p in backbone.cut(2).parameters()
    )
    cut(images).class_token.sum().backward()
    assert [
        key
        for key, parameter in cut.named_parameters()
        if parameter.grad is None and parameter.numel()
    ] == []


def test_an_exit_has_the_width_and_size_of_the_deepest() -> None:
    exit_ = drawn(ShrinkingExit((6, 8, 12, 20), (4, 8, 16, 16)))
    shapes = []
    for side in (1, 2, 5, 8):
        stage = Stage(draw_images(2, height=side, width=side)[:, :1].expand(2, 6, side, side))
        shapes.append(tuple(exit_.shrink(stage.places).shape))
        assert exit_(stage).class_token.shape == (2, 20)
    assert shapes == [(2, 20, 1, 1), (2, 20, 1, 1), (2, 20, 2, 2), (2, 20, 2, 2)]
    assert [layer.stride[0] for layer in exit_.modules() if isinstance(layer, nn.Conv2d)] == [
        1,
        2,
        1,
        1,
        2,
        1,
        1,
        1,
        1,
    ]
    assert [layer.out_channels for layer in exit_.modules() if isinstance(layer, nn.Conv2d)] == [
        2,
        2,
        8,
        3,
        3,
        12,
        5,
        5,
        20,
    ]


def test_a_token_exit_equals_its_formula() -> None:
    exit_ = drawn(TokenExit(6)).double()
    places = torch.randn(
        2, 6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    found = exit_(Stage(places))
    expected = []
    for image in places:  # without a class token the mean of the normed places
        normed = torch.stack(
            [exit_.norm(image[:, row, column]) for row in range(3) for column in range(4)]
        )
        mean = normed.mean(dim=0)
        hidden = torch.nn.functional.gelu(exit_.mlp[0].weight @ mean + exit_.mlp[0].bias)
        expected.append(mean + exit_.mlp[2].weight @ hidden + exit_.mlp[2].bias)
    torch.testing.assert_close(found.class_token, torch.stack(expected))
    (ours,) = torch.autograd.grad(found.class_token.square().sum(), places, retain_graph=True)
    (theirs,) = torch.autograd.grad(torch.stack(expected).square().sum(), places)
    torch.testing.assert_close(ours, theirs)


def test_running_figures_of_exits_move_in_training_alone() -> None:
    backbone, images = exited("timm CNN"), draw_images(4)
    before = {key: buffer.clone() for key, buffer in backbone.named_buffers()}
    backbone.all_exits(images)
    assert all(torch.equal(buffer, before[key]) for key, buffer in backbone.named_buffers())
    backbone.train().all_exits(images)
    still = [key for key, buffer in backbone.named_buffers() if torch.equal(buffer, before[key])]
    assert still == []


@pytest.mark.parametrize("exits", [(0,), (4,), (2, 1), (1, 1), (-1,), (1, 2, 3, 4)])
def test_a_missing_exit_is_refused_with_the_existing_ones(exits: tuple[int, ...]) -> None:
    with refused("after the stages 1 to 3", list(exits)):
        build_backbone(config("timm:resnet18", **SMALL_RESNET, exits=exits))
    with refused("after the blocks 1 to 2", [3]):
        build_backbone(dataclasses.replace(CONFIGS["torchvision ViT"], exits=(3,)))


def test_a_network_without_stage_outputs_is_refused() -> None:
    with refused("ResNets", "vision transformers", "densenet121"):
        build_backbone(config("torchvision:densenet121", exits=(1,)))


def test_an_exit_that_is_not_there_is_not_cut() -> None:
    backbone = exited("timm CNN")
    for number in (0, 4):
        with pytest.raises(ValueError, match="exits 1 to 3"):
            backbone.cut(number)
    with pytest.raises(ValueError, match="only its last layer"):
        backbone.cut(1).activations(draw_images(), layers=(2,))
