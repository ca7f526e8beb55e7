"""Networks of torchvision and timm, built as they are, with their strides and widths.

Either library is imported only when one of its networks is built. Letters as in base.py.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featkit.errors import EnvironmentProblem, InputError
from featkit_train.networks.base import Features


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


def timm_stage_rows(body: Any) -> list[dict[str, Any]]:
    """Return timm's rows on each stage of a CNN or block of a transformer: num_chs, reduction.

    An empty list if the model does not return the outputs of its stages, or without the class token
    that it has.
    """
    rows = list(getattr(body, "feature_info", ()))
    if not rows or not hasattr(body, "prune_intermediate_layers"):
        return []
    arguments = inspect.signature(body.forward_intermediates).parameters
    if not timm_prefixes(body).keys() <= arguments.keys():  # CaiT and ConViT
        return []
    return rows[_num_stem_rows(rows) :]


def timm_indices(body: Any, stages: Sequence[int]) -> list[int]:
    """Return the indices that forward_intermediates has for stages counted from 1."""
    return [stage - 1 + _num_stem_rows(body.feature_info) for stage in stages]


def timm_prefixes(body: Any) -> dict[str, bool]:
    """Return the argument of forward_intermediates that adds class token and registers, if any."""
    return {"return_prefix_tokens": True} if getattr(body, "num_prefix_tokens", 0) else {}


def timm_outputs(body: Any, images: Tensor, stages: Sequence[int]) -> tuple[Tensor, list[Any]]:
    """Return the output of the whole network, as forward_features does, and those of `stages`.

    stages: counted from 1, in ascending order. Their outputs are before any norm: a map
    (B, C, h, w), or in a model with prefix tokens (a map, tokens).
    """
    if not stages:
        return body.forward_features(images), []
    outputs, places = body.forward_intermediates(
        images, indices=timm_indices(body, stages), **timm_prefixes(body)
    )
    return outputs, places


def _num_stem_rows(rows: Sequence[dict[str, Any]]) -> int:
    """In some models timm's feature_info begins with a row for the stem."""
    return int(rows[0]["module"].startswith(("stem", "act", "bn", "conv", "features.norm")))


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


def resnet_widths(body: Any) -> tuple[int, ...]:
    """Return the width of each of the four stages of a torchvision ResNet."""
    stages = (body.layer1, body.layer2, body.layer3, body.layer4)
    return tuple(
        [part for part in stage[-1].modules() if isinstance(part, nn.Conv2d)][-1].out_channels
        for stage in stages
    )


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
