"""Backbones that torchvision and timm wrote, behind featkit's own small interface.

Both are imported when one is built and not before. Letters as in base.py.
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
    """torchvision's ResNet without its classifier (DINO, arXiv 2104.14294): the class token is the
    mean of the last map."""

    def __init__(self, arch: str) -> None:
        models = borrow("torchvision.models")
        body = getattr(models, arch)(weights=None)
        super().__init__(patch=32, width=body.fc.in_features, depth=1)
        del body.fc
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features of the last stage; see Backbone."""
        _only_the_last(self, layers, attention)
        body = self.body
        places = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        places = body.layer4(body.layer3(body.layer2(body.layer1(places))))
        return Activations((Features(places.mean(dim=(2, 3)), places.permute(0, 2, 3, 1)),), None)


class ConvNeXt(Backbone):
    """timm's ConvNeXt as DINOv3 uses it: one norm over the mean of the last map and over each of
    its places."""

    def __init__(self, arch: str, **sizes: Any) -> None:
        body = borrow("timm").create_model(arch, pretrained=False, num_classes=0, **sizes)
        super().__init__(patch=32, width=body.num_features, depth=1)
        self.norm = body.head.norm
        body.head = torch.nn.Identity()
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features of the last stage; see Backbone."""
        _only_the_last(self, layers, attention)
        places = self.body.norm_pre(self.body.stages(self.body.stem(images)))
        pooled = self.norm(places.mean(dim=(2, 3), keepdim=True)).flatten(1)
        return Activations((Features(pooled, self.norm(places).permute(0, 2, 3, 1)),), None)


class TimmModel(Backbone):
    """Any timm model: the class token is what timm calls its features before the classifier.
    small_stem: see timm_body."""

    def __init__(self, arch: str, *, small_stem: bool = False, **options: Any) -> None:
        body = timm_body(arch, small_stem=small_stem, **options)
        super().__init__(patch=timm_stride(body), width=timm_width(body), depth=1)
        self.body = body

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features of the whole network; see Backbone."""
        _only_the_last(self, layers, attention)
        return Activations(
            (
                timm_features(
                    self.body, self.body.forward_features(images), images, patch=self.patch
                ),
            ),
            None,
        )


class TorchvisionModel(Backbone):
    """Any of torchvision's classifiers: the class token is what its last Linear gets, patch tokens
    are what is pooled.

    Where nothing is pooled they are a transformer's own, or else the class token as the one place
    of a map. A classifier may have layers between the two, so that their widths differ. small_stem:
    see torchvision_body.
    """

    def __init__(self, arch: str, *, small_stem: bool = False, **options: Any) -> None:
        body = torchvision_body(arch, small_stem=small_stem, **options)
        pooled, places, last = _torchvision_nodes(body, arch)
        super().__init__(patch=torchvision_stride(body), width=last.in_features, depth=1)
        # Followed by torch.fx, once for training and once for evaluation; what lies behind the two
        # is left out.
        extraction = borrow("torchvision.models.feature_extraction")
        wanted = {pooled: "pooled"} if places is None else {pooled: "pooled", places: "places"}
        self.body = extraction.create_feature_extractor(
            body, return_nodes=wanted, suppress_diff_warning=True
        )

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features of the whole network; see Backbone."""
        _only_the_last(self, layers, attention)
        found = self.body(images)
        pooled = found["pooled"]
        places = found.get("places", pooled[:, :, None, None])
        if places.ndim == 3:  # (B, 1 + N, D) tokens
            grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
            return Activations((Features(pooled, torch.unflatten(places[:, 1:], 1, grid)),), None)
        return Activations((Features(pooled, places.permute(0, 2, 3, 1)),), None)


def timm_body(arch: str, *, small_stem: bool = False, **options: Any) -> Any:
    """A timm model without its classifier, with weights as timm draws them. InputError, with near
    names, for an unknown one.

    small_stem: the first convolution is 3×3 at stride 1 and nothing is pooled behind it; InputError
    where there are not these two.
    """
    timm = borrow("timm")
    if not timm.is_model(arch):
        near = timm.list_models(f"*{arch.split('.')[0][:8]}*")[:5]
        raise InputError(
            f"timm knows no model {arch!r}; near to it are {', '.join(near) or 'none'}."
        )
    name, _, tag = arch.partition(".")
    tags = timm.list_pretrained(f"{name}.*")
    if tag and arch not in tags:
        raise InputError(
            f"timm knows no weights {tag!r} of {name}; it has {', '.join(tags[:5]) or 'none'}."
        )
    try:
        body = timm.create_model(
            arch, pretrained=False, num_classes=0, dynamic_img_size=True, **options
        )
    except TypeError:  # not a transformer with a position table
        body = timm.create_model(arch, pretrained=False, num_classes=0, **options)
    if small_stem:
        _make_stem_small(body, f"timm's {arch}")
        removed = next(row["reduction"] for row in body.feature_info if row["module"] == "layer1")
        # timm's own account of its strides, which pooling and exits go by
        for row in body.feature_info:
            row["reduction"] = max(1, row["reduction"] // removed)
    return body


def torchvision_body(arch: str, *, small_stem: bool = False, **options: Any) -> Any:
    """A classifier of torchvision's, whole, with weights as torchvision draws them; otherwise as
    timm_body."""
    models = borrow("torchvision.models")
    names = models.list_models(module=models)
    if arch not in names:
        near = difflib.get_close_matches(arch, names, n=5)
        raise InputError(
            f"torchvision knows no classifier {arch!r}; near to it are {', '.join(near) or 'none'}."
        )
    body = models.get_model(arch, weights=None, **options)
    if small_stem:
        _make_stem_small(body, f"torchvision's {arch}")
    return body


def timm_features(body: Any, found: Tensor, images: Tensor, *, patch: int) -> Features:
    """Features of what a timm model's own forward_features gave for the images."""
    pooled = body.forward_head(found, pre_logits=True)
    if found.ndim == 3:  # (B, N, D) tokens
        patches = found[:, getattr(body, "num_prefix_tokens", 0) :]
        return Features(
            pooled,
            torch.unflatten(patches, 1, (images.shape[2] // patch, images.shape[3] // patch)),
        )
    if getattr(body, "output_fmt", "NCHW") == "NHWC":
        return Features(pooled, found)
    return Features(pooled, found.permute(0, 2, 3, 1))


def timm_stride(body: Any) -> int:
    """Pixels between two places of the last map."""
    embed = getattr(body, "patch_embed", None)
    if embed is not None and not hasattr(body, "stages") and not hasattr(body, "layers"):
        return int(embed.patch_size[0])
    return int(body.feature_info[-1]["reduction"])


def timm_width(body: Any) -> int:
    """Length of what timm gives before the classifier, which for some models is not that of the
    last map."""
    return int(getattr(body, "head_hidden_size", None) or body.num_features)


def torchvision_stride(body: Any) -> int:
    """Pixels between two places of the last map."""
    models = borrow("torchvision.models")
    if isinstance(body, models.VisionTransformer):
        return int(body.patch_size)
    if isinstance(body, models.ResNet):
        return resnet_strides(body)[-1]
    return 32  # all its other classifiers halve five times


def resnet_strides(body: Any) -> tuple[int, ...]:
    """Pixels between two places behind each of the four stages of torchvision's ResNet."""
    stride = body.conv1.stride[0] * getattr(body.maxpool, "stride", 1)
    strides = []
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        stride *= stage[0].stride  # 1 where dilation takes its place
        strides.append(stride)
    return tuple(strides)


def borrow(module: str) -> Any:
    """Import torchvision or timm. EnvironmentProblem when it is missing or does not fit the torch
    that is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{error.name} is not installed; run: pip install 'featkit[train]'."
        ) from error
    except (RuntimeError, OSError) as error:
        raise EnvironmentProblem(
            f"{module.split('.')[0]} cannot be imported beside torch {torch.__version__} ({error});"
            " install torch and torchvision of one release and one kind (both for the processor,"
            " or both for CUDA): pip install --upgrade torch torchvision."
        ) from error


def _only_the_last(backbone: Backbone, layers: Sequence[int], attention: bool) -> None:
    if tuple(layers) != (backbone.depth,) or attention:
        raise ValueError("this backbone gives its last layer alone, and no attention")


def _make_stem_small(body: Any, what: str) -> None:
    """As the CIFAR ResNets begin (arXiv 1512.03385, section 4.2)."""
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
            f"{what} does not begin as a ResNet does, so small_stem has nothing to replace; leave"
            " it out, and tell a vision transformer by options what images it gets, such as"
            " {img_size: 32, patch_size: 4} in timm."
        )
    body.conv1 = nn.Conv2d(first.in_channels, norm.num_features, 3, padding=1, bias=False)
    # as both libraries do
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    body.maxpool = nn.Identity()


def _torchvision_nodes(body: Any, arch: str) -> tuple[str, str | None, nn.Linear]:
    """Names of what the last Linear gets and of the last map or tokens, if any, and that Linear."""
    extraction = borrow("torchvision.models.feature_extraction")
    _, names = extraction.get_graph_node_names(body, suppress_diff_warning=True)
    modules = dict(body.named_modules())
    linear = max(
        (at for at, name in enumerate(names) if isinstance(modules.get(name), nn.Linear)),
        default=None,
    )
    if linear is None:
        raise InputError(
            f"torchvision's {arch} does not end in a Linear layer; name another, or one of timm's."
        )
    if isinstance(body, borrow("torchvision.models").VisionTransformer):
        return names[linear - 1], "encoder.ln", modules[names[linear]]
    pools = [at for at, name in enumerate(names[:linear]) if at and _pools(modules.get(name), name)]
    return names[linear - 1], names[pools[-1] - 1] if pools else None, modules[names[linear]]


def _pools(module: nn.Module | None, name: str) -> bool:
    """Whether a node takes the mean over a map, as a module, a function or a tensor's own."""
    return (
        isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d)
        or name.split("_")[0] == "mean"
        or "avg_pool2d" in name
    )
