"""Backbones from torchvision and timm behind featkit's Backbone interface.

Layers are the stages of a CNN or the blocks of a transformer, if the network returns them, and the
whole network otherwise. The last layer is always the whole network with what its classifier would
get. The class token of an earlier stage of a CNN is the mean of its map. An earlier block of a
transformer passes the network's last norm and its pooling, as in featkit's own.

Letters as in base.py, and C the width of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.networks.base import Activations, Backbone, Features
from featkit_train.networks.bodies import (
    borrow,
    resnet_widths,
    timm_body,
    timm_features,
    timm_outputs,
    timm_stage_rows,
    timm_stride,
    timm_width,
    torchvision_body,
    torchvision_stride,
)


class ResNet(Backbone):
    """torchvision's ResNet without its classifier, as in DINO (arXiv 2104.14294).

    The class token is the mean of the feature map.
    """

    def __init__(self, arch: str) -> None:
        models = borrow("torchvision.models")
        body = getattr(models, arch)(weights=None)
        widths = resnet_widths(body)
        super().__init__(patch=32, width=widths[-1], depth=len(widths), widths=widths)
        del body.fc
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the stages `layers`; see Backbone."""
        _check_layers(self, layers, attention)
        body, features = self.body, {}
        maps = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        stages = (body.layer1, body.layer2, body.layer3, body.layer4)
        for layer, stage in enumerate(stages[: max(layers)], start=1):
            maps = stage(maps)  # (B, C, h, w)
            features[layer] = _pooled(maps)
        return _in_order(features, layers)


class ConvNeXt(Backbone):
    """timm's ConvNeXt as in DINOv3: one norm for the pooled vector and every position.

    Earlier stages have no norm.
    """

    def __init__(self, arch: str, **sizes: Any) -> None:
        body = borrow("timm").create_model(arch, pretrained=False, num_classes=0, **sizes)
        widths = [row["num_chs"] for row in body.feature_info]
        super().__init__(patch=32, width=body.num_features, depth=len(widths), widths=widths)
        self.norm = body.head.norm
        body.head = torch.nn.Identity()
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the stages `layers`; see Backbone."""
        _check_layers(self, layers, attention)
        maps, features = self.body.stem(images), {}
        for layer, stage in enumerate(self.body.stages[: max(layers)], start=1):
            maps = stage(maps)  # (B, C, h, w)
            features[layer] = _pooled(maps)
        if self.depth in layers:
            maps = self.body.norm_pre(maps)
            pooled = self.norm(maps.mean(dim=(2, 3), keepdim=True)).flatten(1)  # (B, D)
            patch_tokens = self.norm(maps).permute(0, 2, 3, 1)  # (B, h, w, D)
            features[self.depth] = Features(pooled, patch_tokens)
        return _in_order(features, layers)


class TimmModel(Backbone):
    """Any timm model. The class token is the vector that its classifier would get.

    small_stem: see timm_body.
    """

    def __init__(self, arch: str, *, small_stem: bool = False, **options: Any) -> None:
        body = timm_body(arch, small_stem=small_stem, **options)
        rows, width = timm_stage_rows(body), timm_width(body)
        widths = (*(row["num_chs"] for row in rows[:-1]), width)
        super().__init__(patch=timm_stride(body), width=width, depth=len(widths), widths=widths)
        self.body, self._in_blocks = body, len({row["reduction"] for row in rows}) == 1

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the stages or blocks `layers`; see Backbone."""
        _check_layers(self, layers, attention)
        earlier = sorted(set(layers) - {self.depth})
        outputs, stages = timm_outputs(self.body, images, earlier)
        features = {
            layer: self._earlier(stage, outputs, images)
            for layer, stage in zip(earlier, stages, strict=True)
        }
        if self.depth in layers:
            features[self.depth] = timm_features(self.body, outputs, images, patch=self.patch)
        return _in_order(features, layers)

    def _earlier(
        self, stage: Tensor | tuple[Tensor, Tensor], outputs: Tensor, images: Tensor
    ) -> Features:
        """Return Features of a stage before the last; see bodies.timm_outputs."""
        maps, prefix = (stage, None) if isinstance(stage, Tensor) else stage
        if outputs.ndim != 3 or not self._in_blocks:
            return _pooled(maps)
        tokens = maps.flatten(2).transpose(1, 2)  # (B, P, D)
        if prefix is not None:
            tokens = torch.cat([prefix, tokens], dim=1)  # (B, N, D)
        return timm_features(self.body, self.body.norm(tokens), images, patch=self.patch)


class TorchvisionModel(Backbone):
    """Any torchvision classifier. The class token is the input of its last Linear.

    Patch tokens are the feature map before the last pooling. A transformer has its own patch
    tokens. A network with neither gets its class token as a map of one position. Some classifiers
    have layers between pooling and the last Linear, so the two widths may differ. Only ResNets and
    vision transformers have layers before the last. small_stem: see torchvision_body.
    """

    def __init__(self, arch: str, *, small_stem: bool = False, **options: Any) -> None:
        body = torchvision_body(arch, small_stem=small_stem, **options)
        pooled, feature_map, last = _torchvision_nodes(body, arch)
        stages = _torchvision_stages(body)
        widths = (*list(stages.values())[:-1], last.in_features)
        super().__init__(
            patch=torchvision_stride(body),
            width=last.in_features,
            depth=len(widths),
            widths=widths,
        )
        # torch.fx traces the network for training and evaluation, and drops everything after the
        # nodes.
        extraction = borrow("torchvision.models.feature_extraction")
        wanted = {pooled: "pooled"}
        if feature_map is not None:
            wanted[feature_map] = "map"
        wanted |= {name: str(layer) for layer, name in enumerate(list(stages)[:-1], start=1)}
        self.body = extraction.create_feature_extractor(
            body, return_nodes=wanted, suppress_diff_warning=True
        )

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the stages or blocks `layers`; see Backbone."""
        _check_layers(self, layers, attention)
        outputs = self.body(images)
        features = {
            layer: self._earlier(outputs[str(layer)], images)
            for layer in set(layers) - {self.depth}
        }
        if self.depth in layers:
            pooled = outputs["pooled"]  # (B, D)
            maps = outputs.get("map", pooled[:, :, None, None])  # (B, C, h, w), or (B, 1 + P, D)
            features[self.depth] = Features(pooled, self._patch_tokens(maps, images))
        return _in_order(features, layers)

    def _earlier(self, outputs: Tensor, images: Tensor) -> Features:
        """Return Features of a stage (B, C, h, w), or of a block's tokens (B, 1 + P, D)."""
        if outputs.ndim != 3:
            return _pooled(outputs)
        tokens = self.body.encoder.ln(outputs)  # (B, 1 + P, D)
        return Features(tokens[:, 0], self._patch_tokens(tokens, images))

    def _patch_tokens(self, maps: Tensor, images: Tensor) -> Tensor:
        if maps.ndim != 3:
            return maps.permute(0, 2, 3, 1)  # (B, h, w, C)
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        return torch.unflatten(maps[:, 1:], 1, grid)  # (B, h, w, D)


def _pooled(maps: Tensor) -> Features:
    """Return Features of a feature map (B, D, h, w): its mean, and its positions."""
    return Features(maps.mean(dim=(2, 3)), maps.permute(0, 2, 3, 1))  # (B, D), (B, h, w, D)


def _in_order(features: Mapping[int, Features], layers: Sequence[int]) -> Activations:
    """Return the features of `layers` in the order of the request."""
    return Activations(tuple(features[layer] for layer in layers), None)


def _check_layers(backbone: Backbone, layers: Sequence[int], attention: bool) -> None:
    """Raise ValueError for layers that the backbone does not have, for none, and for attention."""
    known = range(1, backbone.depth + 1)
    if not layers or attention or not set(layers) <= set(known):
        only = "only its last layer" if backbone.depth == 1 else f"layers 1 to {backbone.depth}"
        raise ValueError(f"this backbone has {only}, not {list(layers)}, and no attention weights")


def _torchvision_stages(body: Any) -> dict[str, int]:
    """Return the width of each stage of a ResNet or block of a vision transformer by the name of
    its node. An empty dictionary for other networks."""
    models = borrow("torchvision.models")
    if isinstance(body, models.ResNet):
        return dict(zip(("layer1", "layer2", "layer3", "layer4"), resnet_widths(body), strict=True))
    if isinstance(body, models.VisionTransformer):
        blocks = (f"encoder.layers.{name}" for name, _ in body.encoder.layers.named_children())
        return dict.fromkeys(blocks, int(body.hidden_dim))
    return {}


def _torchvision_nodes(body: Any, arch: str) -> tuple[str, str | None, nn.Linear]:
    """Return the names of the last Linear's input and of the last map, if any, and that Linear."""
    extraction = borrow("torchvision.models.feature_extraction")
    _, names = extraction.get_graph_node_names(body, suppress_diff_warning=True)
    modules = dict(body.named_modules())
    linear = max(
        (at for at, name in enumerate(names) if isinstance(modules.get(name), nn.Linear)),
        default=None,
    )
    if linear is None:
        raise InputError(
            f"torchvision's {arch} does not end in a Linear layer. Use another, or one of timm's."
        )
    if isinstance(body, borrow("torchvision.models").VisionTransformer):
        return names[linear - 1], "encoder.ln", modules[names[linear]]
    pools = [at for at, name in enumerate(names[:linear]) if at and _pools(modules.get(name), name)]
    return names[linear - 1], names[pools[-1] - 1] if pools else None, modules[names[linear]]


def _pools(module: nn.Module | None, name: str) -> bool:
    """Return whether a node averages a map, as a module, a function or a tensor method."""
    return (
        isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d)
        or name.split("_")[0] == "mean"
        or "avg_pool2d" in name
    )
