"""Backbones that torchvision and timm wrote, behind featkit's own small interface.

Both are imported when one is built and not before. Letters as in backbones.py.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from featkit.errors import EnvironmentProblem, InputError
from featkit_train.networks.base import Activations, Backbone, Features


class ResNet(Backbone):
    """torchvision's ResNet without its classifier (DINO, arXiv 2104.14294): the class token is the mean of the last map."""

    def __init__(self, arch: str) -> None:
        models = borrow("torchvision.models")
        body = getattr(models, arch)(weights=None)
        super().__init__(patch=32, width=body.fc.in_features, depth=1)
        del body.fc
        self.body = body

    def activations(self, images: Tensor, *, layers: Sequence[int], attention: bool = False) -> Activations:
        """Features of the last stage; see Backbone."""
        _only_the_last(self, layers, attention)
        body = self.body
        places = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        places = body.layer4(body.layer3(body.layer2(body.layer1(places))))
        return Activations((Features(places.mean(dim=(2, 3)), places.permute(0, 2, 3, 1)),), None)


class ConvNeXt(Backbone):
    """timm's ConvNeXt as DINOv3 uses it: one norm over the mean of the last map and over each of its places."""

    def __init__(self, arch: str, **sizes: Any) -> None:
        body = borrow("timm").create_model(arch, pretrained=False, num_classes=0, **sizes)
        super().__init__(patch=32, width=body.num_features, depth=1)
        self.norm = body.head.norm
        body.head = torch.nn.Identity()
        self.body = body

    def activations(self, images: Tensor, *, layers: Sequence[int], attention: bool = False) -> Activations:
        """Features of the last stage; see Backbone."""
        _only_the_last(self, layers, attention)
        places = self.body.norm_pre(self.body.stages(self.body.stem(images)))
        pooled = self.norm(places.mean(dim=(2, 3), keepdim=True)).flatten(1)
        return Activations((Features(pooled, self.norm(places).permute(0, 2, 3, 1)),), None)


class TimmModel(Backbone):
    """Any timm model: the class token is what timm calls its features before the classifier."""

    def __init__(self, arch: str, **options: Any) -> None:
        timm = borrow("timm")
        if not timm.is_model(arch):
            near = timm.list_models(f"*{arch.split('.')[0][:8]}*")[:5]
            raise InputError(f"timm knows no model {arch!r}; near to it are {', '.join(near) or 'none'}.")
        name, _, tag = arch.partition(".")
        tags = timm.list_pretrained(f"{name}.*")
        if tag and arch not in tags:
            raise InputError(f"timm knows no weights {tag!r} of {name}; it has {', '.join(tags[:5]) or 'none'}.")
        try:
            body = timm.create_model(arch, pretrained=False, num_classes=0, dynamic_img_size=True, **options)
        except TypeError:  # not a transformer with a position table
            body = timm.create_model(arch, pretrained=False, num_classes=0, **options)
        super().__init__(patch=_stride(body), width=_pooled_width(body), depth=1)
        self.body = body

    def activations(self, images: Tensor, *, layers: Sequence[int], attention: bool = False) -> Activations:
        """Features of the whole network; see Backbone."""
        _only_the_last(self, layers, attention)
        found = self.body.forward_features(images)
        pooled = self.body.forward_head(found, pre_logits=True)
        if found.ndim == 3:  # (B, N, D) tokens
            patches = found[:, getattr(self.body, "num_prefix_tokens", 0) :]
            grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
            places = torch.unflatten(patches, 1, grid)
        elif getattr(self.body, "output_fmt", "NCHW") == "NHWC":
            places = found
        else:
            places = found.permute(0, 2, 3, 1)
        return Activations((Features(pooled, places),), None)


def borrow(module: str) -> Any:
    """Import torchvision or timm. EnvironmentProblem when it is missing or does not fit the torch that is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(f"{error.name} is not installed; run: pip install 'featkit[train]'.") from error
    except (RuntimeError, OSError) as error:
        raise EnvironmentProblem(
            f"{module.split('.')[0]} cannot be imported beside torch {torch.__version__} ({error}); install torch and "
            "torchvision of one release and one kind (both for the processor, or both for CUDA): "
            "pip install --upgrade torch torchvision."
        ) from error


def _only_the_last(backbone: Backbone, layers: Sequence[int], attention: bool) -> None:
    if tuple(layers) != (backbone.depth,) or attention:
        raise ValueError("this backbone gives its last layer alone, and no attention")


def _stride(body: Any) -> int:
    """Pixels between two places of the last map."""
    embed = getattr(body, "patch_embed", None)
    if embed is not None and not hasattr(body, "stages") and not hasattr(body, "layers"):
        return int(embed.patch_size[0])
    return int(body.feature_info[-1]["reduction"])


def _pooled_width(body: Any) -> int:
    """Length of what timm gives before the classifier, which for some models is not that of the last map."""
    return int(getattr(body, "head_hidden_size", None) or body.num_features)
