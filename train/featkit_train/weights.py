"""Save a trained backbone or classifier as one safetensors file, and build it from that file again.

The header of the file describes the network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from featkit.atomic import replace_file
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.paths import text_path
from featkit_train.networks.base import Backbone
from featkit_train.networks.classifier import Classifier, ClassifierConfig, build_backbone
from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig

BACKBONE_FILE = "backbone.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"
# Format 2 has a classifier's network. Format 1 has only featkit's own ViT, whose files still say 1.
FORMAT = 2

Built = TypeVar("Built", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """Facts on a backbone: its name, its preprocessing, its license and its origin.

    origin: free notes, such as data, recipe and steps.
    remarks: sentences for the user on how the weights were read; they are not written to files.
    """

    name: str
    family: str
    geometry: Geometry
    license: str
    origin: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def save_backbone(path: Path, backbone: Backbone, info: BackboneInfo) -> None:
    """Write the weights and their header atomically.

    Equal weights and headers give equal bytes. ValueError for a backbone that no config describes:
    published weights of another library, or a network cut at an exit.
    """
    _save(path, backbone, {**_recipe_of(backbone), **_header_of(info)})


def save_classifier(
    path: Path, classifier: Classifier, info: BackboneInfo, classes: Sequence[str]
) -> None:
    """Write a classifier with its heads, like save_backbone.

    classes: their names in the order of the logits. ValueError also if their number is wrong.
    """
    if len(classes) != classifier.num_classes:
        raise ValueError(
            f"{len(classes)} names of classes for a classifier of {classifier.num_classes}"
        )
    _save(
        path,
        classifier,
        {**_recipe_of(classifier.backbone), **_header_of(info), "classes": list(classes)},
    )


def _recipe_of(backbone: Backbone) -> dict[str, Any]:
    if isinstance(backbone, VisionTransformer):
        return {"format": 1, "vit": asdict(backbone.config)}
    if isinstance(backbone.built_from, ClassifierConfig):
        return {"format": FORMAT, "classifier": asdict(backbone.built_from)}
    raise ValueError(
        f"this {type(backbone).__name__} was not made by build_backbone, so no config describes it"
    )


def _header_of(info: BackboneInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "family": info.family,
        "geometry": info.geometry.to_dict(),
        "license": info.license,
        "origin": info.origin,
    }


def _save(path: Path, module: nn.Module, header: Mapping[str, Any]) -> None:
    with replace_file(path) as temporary:
        write_tensors(
            temporary, module.state_dict(), metadata={"featkit": json.dumps(header, sort_keys=True)}
        )


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file. OSError for a full disk and similar."""
    # safetensors refuses tensors that share memory or are not contiguous.
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        # safetensors wraps errors of the system in its own, with the number in the text.
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def load_backbone(path: Path) -> tuple[Backbone, BackboneInfo]:
    """Return the backbone of a run folder, or of its backbone.safetensors, in evaluation mode.

    InputError if the file is missing, not featkit's, of a newer format, or does not fit its header.
    """
    file = path / BACKBONE_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{path} has no {BACKBONE_FILE}. Name a folder that `featkit train` has written a"
            " checkpoint to."
        )
    header = _readable_header(file)
    if "classes" in header:
        raise InputError(
            f"{file} holds a classifier with its heads. Name its folder, or the {BACKBONE_FILE} in"
            " it."
        )
    backbone, info = _build(file, header, lambda: _backbone_of(header))
    return backbone.eval(), info


def load_classifier(path: Path) -> tuple[Classifier, BackboneInfo, tuple[str, ...]]:
    """Return the classifier of a run folder or file in evaluation mode, and its classes' names.

    InputError as for load_backbone.
    """
    file = path / CLASSIFIER_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{path} has no {CLASSIFIER_FILE}. Name the run folder of a `featkit train` method that"
            " learns labels."
        )
    header = _readable_header(file)
    if "classes" not in header:
        raise InputError(
            f"{file} does not hold heads for classes. Name its folder, or the {CLASSIFIER_FILE} in"
            " it."
        )
    classifier, info = _build(
        file, header, lambda: Classifier(_backbone_of(header), len(header["classes"]))
    )
    return classifier.eval(), info, tuple(map(str, header["classes"]))


def _readable_header(file: Path) -> Mapping[str, Any]:
    header = read_header(file)
    if header.get("format", 0) > FORMAT:
        raise InputError(
            f"{file} has format {header['format']}, newer than the {FORMAT} read here. Update"
            " featkit."
        )
    return header


def _backbone_of(header: Mapping[str, Any]) -> Backbone:
    if "classifier" not in header:
        return VisionTransformer(ViTConfig(**header["vit"]))
    settings = header["classifier"]
    return build_backbone(ClassifierConfig(**{**settings, "exits": tuple(settings["exits"])}))


def _build(
    file: Path, header: Mapping[str, Any], build: Callable[[], Built]
) -> tuple[Built, BackboneInfo]:
    """Build what the header describes, and load the tensors of the file into it."""
    try:
        module = without_weights(build)
        info = BackboneInfo(
            name=header["name"],
            family=header["family"],
            geometry=Geometry.from_dict(header["geometry"]),
            # earlier versions wrote the British spelling
            license=header["license"] if "license" in header else header["licence"],  # quoted
            origin=header["origin"],
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{file} has a header that cannot be used: {error}") from error
    with text_path(file) as path, safe_open(path, framework="pt") as tensors:
        names = tensors.keys()  # safe_open is not a mapping
        state = {name: tensors.get_tensor(name) for name in names}
    problem = misfit(module, state)
    if problem is not None:
        raise InputError(f"{file} holds tensors that do not fit its own header: {problem}.")
    # Copied: tensors mapped from the file would change or break together with it.
    copies = {
        name: state[name].to(tensor.dtype, copy=True)
        for name, tensor in module.state_dict().items()
    }
    problem = not_finite(copies)
    if problem is not None:
        raise InputError(
            f"{file} holds {problem}, so it cannot be used. Use an earlier snapshot, or train again"
            " with a lower learning rate."
        )
    module.load_state_dict(copies, assign=True)
    return module, info


def without_weights(build: Callable[[], Built]) -> Built:
    """Return what `build` makes, on the device `meta` if possible, for load_state_dict's `assign`.

    A few networks read values while they are built, and some keep values that their state does not
    hold. Those are built with weights, and torch's generator is restored.
    """
    try:
        with torch.device("meta"):
            module = build()
    except (InputError, NotImplementedError):
        module = None
    if module is None or any(
        buffer.is_meta for name, buffer in module.named_buffers() if name not in module.state_dict()
    ):
        with torch.random.fork_rng(devices=[]):
            module = build()
    return module


def read_header(file: Path) -> Mapping[str, Any]:
    """Return the featkit header of a safetensors file. InputError if featkit did not write it."""
    try:
        with text_path(file) as path, safe_open(path, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get("featkit")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a safetensors file: {error}") from error
    if text is None:
        raise InputError(f"{file} was not written by featkit: its header has no `featkit` entry.")
    try:
        header: Mapping[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{file} has a header that cannot be used: {error}") from error
    return header


def is_featkits(file: Path) -> bool:
    """Return whether a file is a safetensors file that featkit wrote."""
    try:
        return file.is_file() and bool(read_header(file))
    except InputError:
        return False


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the first tensor that is not finite, as in "NaN in norm.weight", or None."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"{'NaN' if tensor.isnan().any() else 'infinity'} in {name}"
    return None


def misfit(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return why the first tensor of `state` does not fit the module, or None if all fit.

    load_state_dict reports every tensor, each on a line of its own.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            return f"{name} is missing"
        if state[name].shape != tensor.shape:
            return f"{name} has the shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    return next((f"{name} does not belong to it" for name in state if name not in wanted), None)
