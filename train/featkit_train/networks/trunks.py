"""Networks of timm, torchvision and featkit that return the outputs of their stages and can be cut
after any stage.

Letters: B images, (H, W) pixels, (h, w) positions, C channels of a stage, D width of the deepest.
A stage is a stage of a CNN or a block of a transformer; both are counted from 1.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.networks.base import Features
from featkit_train.networks.bodies import (
    borrow,
    resnet_strides,
    resnet_widths,
    timm_body,
    timm_features,
    timm_indices,
    timm_outputs,
    timm_prefixes,
    timm_stage_rows,
    timm_stride,
    timm_width,
    torchvision_body,
)
from featkit_train.networks.convnet import ConvNet, native_model


class Stage(NamedTuple):
    """Outputs of a stage before any norm: a map (B, C, h, w), and the class token (B, C) if any."""

    places: Tensor
    token: Tensor | None = None


class Trunk(nn.Module, ABC):
    """A network without its classifier.

    widths, strides (in pixels): those of each stage's map. width: D, the width of the vector before
    the classifier.
    in_blocks: True if the stages are blocks of a transformer, which share width and stride.
    """

    def __init__(
        self,
        *,
        patch: int,
        width: int,
        widths: Sequence[int],
        strides: Sequence[int],
        in_blocks: bool,
    ) -> None:
        super().__init__()
        self.patch, self.width, self.in_blocks = patch, width, in_blocks
        self.widths, self.strides = tuple(widths), tuple(strides)

    @abstractmethod
    def forward(self, images: Tensor, at: Sequence[int]) -> tuple[list[Stage], Features]:
        """Return the outputs of the stages `at`, in ascending order, and of the whole network."""

    @abstractmethod
    def up_to(self, images: Tensor, at: int) -> Stage:
        """Return the output of the stage `at`, without computing later stages."""

    @abstractmethod
    def cut(self, at: int) -> Trunk:
        """Return a copy with only the weights that `up_to` needs."""


def build_trunk(library: str, arch: str, *, small_stem: bool = False, **options: Any) -> Trunk:
    """Build a trunk of `library`: timm, torchvision or featkit. InputError for a network that
    cannot return the outputs of its stages.
    """
    if library == "featkit":
        network = native_model(arch, small_stem=small_stem, **options)
        assert isinstance(network, ConvNet)
        return ConvNetTrunk(network)
    if library == "timm":
        body = timm_body(arch, small_stem=small_stem, **options)
        if not timm_stage_rows(body):
            raise InputError(
                f"timm's {arch} does not give feature maps of its stages, so it cannot have exits."
                " Leave out the exits, or use another network, such as resnet18."
            )
        return TimmTrunk(body)
    body, models = (
        torchvision_body(arch, small_stem=small_stem, **options),
        borrow("torchvision.models"),
    )
    if isinstance(body, models.ResNet):
        return ResNetTrunk(body)
    if isinstance(body, models.VisionTransformer):
        return ViTTrunk(body)
    raise InputError(
        f"torchvision's {arch} cannot have exits; only its ResNets, ResNeXts and vision"
        " transformers can. Leave out the exits, or use a network of timm's, most of which can."
    )


class ConvNetTrunk(Trunk):
    """featkit's convnet."""

    def __init__(self, body: ConvNet) -> None:
        super().__init__(
            patch=body.patch,
            width=body.width,
            widths=body.widths,
            strides=[body.patch >> later for later in reversed(range(body.depth))],
            in_blocks=False,
        )
        self.body = body

    def forward(self, images: Tensor, at: Sequence[int]) -> tuple[list[Stage], Features]:
        """See Trunk."""
        layers = (*at, len(self.widths))
        *stages, deepest = self.body.activations(images, layers=layers).features
        return [Stage(stage.patch_tokens.permute(0, 3, 1, 2)) for stage in stages], deepest

    def up_to(self, images: Tensor, at: int) -> Stage:
        """See Trunk."""
        (stage,) = self.body.activations(images, layers=(at,)).features
        return Stage(stage.patch_tokens.permute(0, 3, 1, 2))

    def cut(self, at: int) -> ConvNetTrunk:
        """See Trunk."""
        trunk = copy.deepcopy(self)
        trunk.body.stages = trunk.body.stages[:at]
        return trunk


class TimmTrunk(Trunk):
    """A timm model, through its forward_intermediates."""

    def __init__(self, body: Any) -> None:
        rows = timm_stage_rows(body)
        strides = [row["reduction"] for row in rows]
        super().__init__(
            patch=timm_stride(body),
            width=timm_width(body),
            widths=[row["num_chs"] for row in rows],
            strides=strides,
            in_blocks=len(set(strides)) == 1,
        )
        self.body = body

    def forward(self, images: Tensor, at: Sequence[int]) -> tuple[list[Stage], Features]:
        """See Trunk."""
        outputs, stages = timm_outputs(self.body, images, at)
        features = timm_features(self.body, outputs, images, patch=self.patch)
        return [self._stage(stage) for stage in stages], features

    def up_to(self, images: Tensor, at: int) -> Stage:
        """See Trunk."""
        (stage,) = self.body.forward_intermediates(
            images,
            indices=timm_indices(self.body, [at]),
            stop_early=True,
            intermediates_only=True,
            **timm_prefixes(self.body),
        )
        return self._stage(stage)

    def cut(self, at: int) -> TimmTrunk:
        """See Trunk."""
        trunk = copy.deepcopy(self)
        trunk.body.prune_intermediate_layers(
            timm_indices(trunk.body, [at]), prune_norm=True, prune_head=True
        )
        return trunk

    def _stage(self, outputs: Tensor | tuple[Tensor, Tensor]) -> Stage:
        if isinstance(outputs, Tensor):
            return Stage(outputs)
        places, prefix = outputs  # prefix tokens: the class token first, then registers
        has_class_token = getattr(self.body, "cls_token", None) is not None
        return Stage(places, prefix[:, 0] if has_class_token else None)


class ResNetTrunk(Trunk):
    """A torchvision ResNet."""

    def __init__(self, body: Any) -> None:
        strides = resnet_strides(body)
        stages = (body.layer1, body.layer2, body.layer3, body.layer4)
        super().__init__(
            patch=strides[-1],
            width=body.fc.in_features,
            widths=resnet_widths(body),
            strides=strides,
            in_blocks=False,
        )
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor, at: Sequence[int]) -> tuple[list[Stage], Features]:
        """See Trunk."""
        places, maps = self.stem(images), []
        for stage in self.stages:
            places = stage(places)
            maps.append(Stage(places))
        return [maps[stage - 1] for stage in at], Features(
            places.mean(dim=(2, 3)), places.permute(0, 2, 3, 1)
        )

    def up_to(self, images: Tensor, at: int) -> Stage:
        """See Trunk."""
        places = self.stem(images)
        for stage in self.stages[:at]:
            places = stage(places)
        return Stage(places)

    def cut(self, at: int) -> ResNetTrunk:
        """See Trunk."""
        trunk = copy.deepcopy(self)
        trunk.stages = trunk.stages[:at]
        return trunk


class ViTTrunk(Trunk):
    """A torchvision vision transformer; it takes images of the size it was built for."""

    def __init__(self, body: Any) -> None:
        num_blocks, width, patch = len(body.encoder.layers), body.hidden_dim, body.patch_size
        super().__init__(
            patch=patch,
            width=width,
            widths=[width] * num_blocks,
            strides=[patch] * num_blocks,
            in_blocks=True,
        )
        self.body = body
        body.heads = nn.Identity()

    def forward(self, images: Tensor, at: Sequence[int]) -> tuple[list[Stage], Features]:
        """See Trunk."""
        tokens, stages = self._embed(images), []
        for block, layer in enumerate(self.body.encoder.layers, start=1):
            tokens = layer(tokens)
            if block in at:
                stages.append(self._stage(tokens, images))
        token, places = _split(self.body.encoder.ln(tokens), images, self.patch)
        return stages, Features(token, places)

    def up_to(self, images: Tensor, at: int) -> Stage:
        """See Trunk."""
        return self._stage(self.body.encoder.layers[:at](self._embed(images)), images)

    def cut(self, at: int) -> ViTTrunk:
        """See Trunk."""
        trunk = copy.deepcopy(self)
        trunk.body.encoder.layers, trunk.body.encoder.ln = (
            trunk.body.encoder.layers[:at],
            nn.Identity(),
        )
        return trunk

    def _embed(self, images: Tensor) -> Tensor:
        """Return the tokens (B, 1 + h * w, D) with their positions.

        Repeats what torchvision's VisionTransformer and Encoder do before the first layer.
        """
        patches = self.body._process_input(images)
        tokens = torch.cat([self.body.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        embedded: Tensor = self.body.encoder.dropout(tokens + self.body.encoder.pos_embedding)
        return embedded

    def _stage(self, tokens: Tensor, images: Tensor) -> Stage:
        token, places = _split(tokens, images, self.patch)
        return Stage(places.permute(0, 3, 1, 2), token)


def _split(tokens: Tensor, images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Split tokens (B, 1 + h * w, D) into the class token (B, D) and a map (B, h, w, D)."""
    return tokens[:, 0], torch.unflatten(
        tokens[:, 1:], 1, (images.shape[2] // patch, images.shape[3] // patch)
    )
