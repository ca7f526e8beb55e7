"""Backbones from torchvision and timm behind featkit's Backbone interface.

Either library is imported only when one of its networks is built. Letters as in base.py.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featkit.errors import EnvironmentProblem, InputError
from featkit_train.networks.base import Activations, Backbone, Features


class ResNet(Backbone):
    """torchvision's ResNet without its classifier, as in DINO (arXiv 2104.14294).

    The class token is the mean of the last feature map.
    """

    def __init__(self, arch: str) -> None:
        models = borrow("torchvision.models")
        body = getattr(models, arch)(weights=None)
        super().__init__(patch=32, width=body.fc.in_features, depth=1)
        del body.fc
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the last stage; see Backbone."""
        _only_the_last(self, layers, attention)
        body = self.body
        maps = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        maps = body.layer4(body.layer3(body.layer2(body.layer1(maps))))  # (B, D, h, w)
        return Activations((_pooled(maps),), None)


class ConvNeXt(Backbone):
    """timm's ConvNeXt as in DINOv3: one norm for the pooled vector and every position."""

    def __init__(self, arch: str, **sizes: Any) -> None:
        body = borrow("timm").create_model(arch, pretrained=False, num_classes=0, **sizes)
        super().__init__(patch=32, width=body.num_features, depth=1)
        self.norm = body.head.norm
        body.head = torch.nn.Identity()
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the last stage; see Backbone."""
        _only_the_last(self, layers, attention)
        maps = self.body.norm_pre(self.body.stages(self.body.stem(images)))  # (B, D, h, w)
        pooled = self.norm(maps.mean(dim=(2, 3), keepdim=True)).flatten(1)  # (B, D)
        patch_tokens = self.norm(maps).permute(0, 2, 3, 1)  # (B, h, w, D)
        return Activations((Features(pooled, patch_tokens),), None)


class TimmModel(Backbone):
    """Any timm model. The class token is the vector that its classifier would get.

    small_stem: see timm_body.
    """

    def __init__(self, arch: str, *, small_stem: bool = False, **options: Any) -> None:
        body = timm_body(arch, small_stem=small_stem, **options)
        super().__init__(patch=timm_stride(body), width=timm_width(body), depth=1)
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the whole network; see Backbone."""
        _only_the_last(self, layers, attention)
        outputs = self.body.forward_features(images)
        return Activations((timm_features(self.body, outputs, images, patch=self.patch),), None)


class TorchvisionModel(Backbone):
    """Any torchvision classifier. The class token is the input of its last Linear.

    Patch tokens are the feature map before the last pooling. A transformer has its own patch
    tokens. A network with neither gets its class token as a map of one position. Some classifiers
    have layers between pooling and the last Linear, so the two widths may differ. small_stem: see
    torchvision_body.
    """

    def __init__(self, arch: str, *, small_stem: bool = False, **options: Any) -> None:
        body = torchvision_body(arch, small_stem=small_stem, **options)
        pooled, feature_map, last = _torchvision_nodes(body, arch)
        super().__init__(patch=torchvision_stride(body), width=last.in_features, depth=1)
        # torch.fx traces the network for training and evaluation, and drops everything after the
        # nodes.
        extraction = borrow("torchvision.models.feature_extraction")
        wanted = {pooled: "pooled"}
        if feature_map is not None:
            wanted[feature_map] = "map"
        self.body = extraction.create_feature_extractor(
            body, return_nodes=wanted, suppress_diff_warning=True
        )

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the whole network; see Backbone."""
        _only_the_last(self, layers, attention)
        outputs = self.body(images)
        pooled = outputs["pooled"]  # (B, D)
        maps = outputs.get("map", pooled[:, :, None, None])  # (B, C, h, w), or tokens (B, 1 + P, D)
        if maps.ndim == 3:
            grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
            patch_tokens = torch.unflatten(maps[:, 1:], 1, grid)  # (B, h, w, D)
        else:
            patch_tokens = maps.permute(0, 2, 3, 1)  # (B, h, w, C)
        return Activations((Features(pooled, patch_tokens),), None)


def timm_body(arch: str, *, small_stem: bool = False, **options: Any) -> Any:
    """Build a timm model without its classifier, with weights as timm initializes them.

    small_stem: replace the first convolution by 3×3 at stride 1 and drop the pooling after it.
    InputError for an unknown name, with similar ones, and for a small stem on a network whose stem
    is not a ResNet's.
    """
    timm = borrow("timm")
    if not timm.is_model(arch):
        near = timm.list_models(f"*{arch.split('.')[0][:8]}*")[:5]
        raise InputError(f"timm has no model {arch!r}; similar names: {', '.join(near) or 'none'}.")
    name, _, tag = arch.partition(".")
    tags = timm.list_pretrained(f"{name}.*")
    if tag and arch not in tags:
        raise InputError(
            f"timm has no weights {tag!r} for {name}, only {', '.join(tags[:5]) or 'none'}."
        )
    try:
        body = timm.create_model(
            arch, pretrained=False, num_classes=0, dynamic_img_size=True, **options
        )
    except TypeError:  # only transformers with a position table take dynamic_img_size
        body = timm.create_model(arch, pretrained=False, num_classes=0, **options)
    if small_stem:
        _make_stem_small(body, f"timm's {arch}")
        removed = next(row["reduction"] for row in body.feature_info if row["module"] == "layer1")
        # Pooling and exits read their strides from feature_info, which timm does not update.
        for row in body.feature_info:
            row["reduction"] = max(1, row["reduction"] // removed)
    return body


def torchvision_body(arch: str, *, small_stem: bool = False, **options: Any) -> Any:
    """Build a whole torchvision classifier, with weights as torchvision initializes them.

    small_stem and errors as in timm_body.
    """
    models = borrow("torchvision.models")
    names = models.list_models(module=models)
    if arch not in names:
        near = difflib.get_close_matches(arch, names, n=5)
        raise InputError(
            f"torchvision has no classifier {arch!r}; similar names: {', '.join(near) or 'none'}."
        )
    body = models.get_model(arch, weights=None, **options)
    if small_stem:
        _make_stem_small(body, f"torchvision's {arch}")
    return body


def timm_features(body: Any, outputs: Tensor, images: Tensor, *, patch: int) -> Features:
    """Return Features from what a timm model's forward_features returned for the images."""
    pooled = body.forward_head(outputs, pre_logits=True)  # (B, D)
    if outputs.ndim == 3:  # (B, N, D) tokens
        patches = outputs[:, getattr(body, "num_prefix_tokens", 0) :]  # (B, P, D)
        grid = (images.shape[2] // patch, images.shape[3] // patch)
        return Features(pooled, torch.unflatten(patches, 1, grid))  # (B, h, w, D)
    if getattr(body, "output_fmt", "NCHW") == "NHWC":  # Swin and similar
        return Features(pooled, outputs)
    return Features(pooled, outputs.permute(0, 2, 3, 1))  # (B, h, w, D)


def timm_stride(body: Any) -> int:
    """Return the stride of the last feature map, in pixels."""
    embed = getattr(body, "patch_embed", None)
    if embed is not None and not hasattr(body, "stages") and not hasattr(body, "layers"):
        return int(embed.patch_size[0])
    return int(body.feature_info[-1]["reduction"])


def timm_width(body: Any) -> int:
    """Return the width of the vector before the classifier; in some models the last map's width
    differs."""
    return int(getattr(body, "head_hidden_size", None) or body.num_features)


def torchvision_stride(body: Any) -> int:
    """Return the stride of the last feature map, in pixels."""
    models = borrow("torchvision.models")
    if isinstance(body, models.VisionTransformer):
        return int(body.patch_size)
    if isinstance(body, models.ResNet):
        return resnet_strides(body)[-1]
    return 32  # its other classifiers halve the size five times


def resnet_strides(body: Any) -> tuple[int, ...]:
    """Return the stride of each of the four stages of a torchvision ResNet, in pixels."""
    stride = body.conv1.stride[0] * getattr(body.maxpool, "stride", 1)
    strides = []
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        stride *= stage[0].stride  # 1 if the stage is dilated
        strides.append(stride)
    return tuple(strides)


def borrow(module: str) -> Any:
    """Import torchvision or timm. EnvironmentProblem if it is missing or incompatible with
    torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{error.name} is not installed. Run: pip install 'featkit[train]'."
        ) from error
    except (RuntimeError, OSError) as error:
        raise EnvironmentProblem(
            f"{module.split('.')[0]} cannot be imported with torch {torch.__version__} ({error})."
            " Install torch and torchvision of the same release, both for CPU or both for CUDA:"
            " pip install --upgrade torch torchvision."
        ) from error


def _pooled(maps: Tensor) -> Features:
    """Return Features of a feature map (B, D, h, w): its mean, and its positions."""
    return Features(maps.mean(dim=(2, 3)), maps.permute(0, 2, 3, 1))  # (B, D), (B, h, w, D)


def _only_the_last(backbone: Backbone, layers: Sequence[int], attention: bool) -> None:
    if tuple(layers) != (backbone.depth,) or attention:
        raise ValueError("this backbone has only its last layer, and no attention weights")


def _make_stem_small(body: Any, what: str) -> None:
    """Replace the stem with that of the CIFAR ResNets (arXiv 1512.03385, section 4.2)."""
    norm = getattr(body, "bn1", None)
    first = next(
        (
            module
            for module in getattr(body, "conv1", nn.Identity()).modules()
            if isinstance(module, nn.Conv2d)
        ),
        None,
    )
    if first is None or norm is None or not hasattr(body, "maxpool") or not hasattr(body, "layer1"):
        raise InputError(
            f"{what} does not begin like a ResNet, so small_stem cannot replace its stem. Leave"
            " small_stem out. For a vision transformer, set its image size in options, such as"
            " {img_size: 32, patch_size: 4} in timm."
        )
    body.conv1 = nn.Conv2d(first.in_channels, norm.num_features, 3, padding=1, bias=False)
    # The same initialization as in both libraries.
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    body.maxpool = nn.Identity()


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
