"""Promises of featkit's convnet: timm's blocks in the same order, and what each stage returns."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.networks.classifier import ClassifierConfig, build_backbone
from featkit_train.networks.convnet import ConvNet, ResidualBlock
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.networks.networks import drawn

STEM, WIDTHS, BLOCKS = 4, (8, 12), (1, 2)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 24, generator=torch.Generator().manual_seed(1))


def some_convnet(**options: Any) -> ConvNet:
    """Return a network in evaluation mode with drawn weights and statistics."""
    network: ConvNet = drawn(ConvNet(stem=STEM, widths=WIDTHS, blocks=BLOCKS, **options))
    return network


def timms_stages(network: ConvNet) -> list[nn.Sequential]:
    """Build the stem and the stages of timm's parts, with the weights of `network`."""
    allow_torchvision()
    resnet = importlib.import_module("timm.models.resnet")
    channels, stages = STEM, [network.stem]
    for width, count in zip(WIDTHS, BLOCKS, strict=True):
        blocks = []
        for number in range(count):
            shortcut = (
                resnet.downsample_avg(channels, width, kernel_size=1, stride=2)
                if number == 0
                else None
            )
            stride = 2 if number == 0 else 1
            blocks.append(resnet.BasicBlock(channels, width, stride, shortcut))
            channels = width
        stages.append(nn.Sequential(*blocks))
    with torch.no_grad():
        ours = [value for stage in network.stages for value in by_kind(stage)]
        theirs = [value for stage in stages[1:] for value in by_kind(stage)]
        for source, target in zip(ours, theirs, strict=True):
            target.copy_(source)
    return [stage.eval() for stage in stages]


def by_kind(stage: nn.Module) -> list[Tensor]:
    """Return all tensors of the stage's convolutions and norms, main path first in each block."""
    return [
        tensor
        for block in stage.children()
        for module in block.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        for tensor in module.state_dict().values()
    ]


@torch.no_grad()
def test_every_stage_equals_timms_blocks(images: Tensor) -> None:
    network = some_convnet(pooling="mean")
    stem, *stages = timms_stages(network)
    features = network.activations(images, layers=(1, 2)).features
    maps = stem(images)
    for stage, ours in zip(stages, features, strict=True):
        maps = stage(maps)
        torch.testing.assert_close(ours.patch_tokens, maps.permute(0, 2, 3, 1))
        torch.testing.assert_close(ours.class_token, maps.mean(dim=(2, 3)))
    assert features[1].patch_tokens.shape == (3, 4, 3, 12)
    assert network.patch == 8
    assert network.widths == WIDTHS


@torch.no_grad()
def test_gem_pooling_is_the_root_of_the_mean_cube(images: Tensor) -> None:
    network = some_convnet()
    features = network(images)
    expected = (features.patch_tokens.double() ** 3).mean(dim=(1, 2)) ** (1 / 3)
    # every position is at least 1e-6 after a ReLU's zeros are raised to the floor
    torch.testing.assert_close(features.class_token.double(), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_layers_come_in_the_order_of_the_request(images: Tensor) -> None:
    network = some_convnet()
    first, second = network.activations(images, layers=(1, 2)).features
    swapped = network.activations(images, layers=(2, 1)).features
    assert torch.equal(swapped[0].class_token, second.class_token)
    assert torch.equal(swapped[1].class_token, first.class_token)


def test_blocks_begin_as_their_shortcuts() -> None:
    network = ConvNet(stem=STEM, widths=WIDTHS, blocks=BLOCKS).eval()
    maps = torch.rand(2, STEM, 8, 8)
    block = next(iter(network.stages[0].children()))
    assert isinstance(block, ResidualBlock)
    torch.testing.assert_close(block(maps), torch.relu(block.shortcut(maps)))


@pytest.mark.parametrize("layers", [(0,), (3,), (1, 3)])
def test_missing_stages_are_refused(layers: tuple[int, ...], images: Tensor) -> None:
    with pytest.raises(ValueError, match="stages 1 to 2"):
        some_convnet().activations(images, layers=layers)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"arch": "featkit:convnett"}, "its own is featkit:convnet"),
        ({"arch": "featkit:convnet", "small_stem": True}, "leave small_stem out"),
        ({"arch": "featkit:convnet", "options": {"widths": [8]}}, "as many blocks as widths"),
        ({"arch": "featkit:convnet", "options": {"pooling": "max"}}, "mean or gem, not max"),
        ({"arch": "featkit:convnet", "options": {"depth": 3}}, "cannot be built"),
    ],
)
def test_wrong_options_are_refused_with_advice(config: dict[str, Any], sentence: str) -> None:
    with refused(sentence):
        build_backbone(ClassifierConfig(**config))


def test_wrong_options_raise_input_errors() -> None:
    with pytest.raises(InputError):
        ConvNet(widths=(), blocks=())
