"""A trained backbone, or a whole classifier, as one safetensors file, with all that builds it again
in its header."""

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
# of files with a classifier's network; 1 knew featkit's own ViT alone, whose files say 1 still
FORMAT = 2

Built = TypeVar("Built", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What a backbone is and where it comes from; `origin` are free notes such as data, recipe and
    steps.

    remarks: what to tell the user of how the weights were read, in sentences; they are not written
    to files.
    """

    name: str
    family: str
    geometry: Geometry
    license: str
    origin: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def save_backbone(path: Path, backbone: Backbone, info: BackboneInfo) -> None:
    """Write the weights and their header, whole or not at all; equal weights and header give equal
    bytes.

    ValueError for a backbone that no config builds again: published weights, or a network cut at an
    exit.
    """
    _save(path, backbone, {**_recipe_of(backbone), **_header_of(info)})


def save_classifier(
    path: Path, classifier: Classifier, info: BackboneInfo, classes: Sequence[str]
) -> None:
    """The same of a classifier with its heads; `classes` are named in the order of its logits.

    ValueError as for save_backbone, and where there are more or fewer names than logits.
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
        f"a {type(backbone).__name__} that build_backbone has not made has no config that a file"
        " could hold"
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
    """A safetensors file. OSError for a full disk and its like, of which safetensors makes an error
    of its own."""
    # Contiguous copies: safetensors refuses tensors that share memory.
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def load_backbone(path: Path) -> tuple[Backbone, BackboneInfo]:
    """The backbone of a run folder, or of its backbone.safetensors, in evaluation mode.

    InputError when there is none, when it is of another make or a newer format, or when its tensors
    do not fit.
    """
    file = path / BACKBONE_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{path} has no {BACKBONE_FILE}; name a folder that `featkit train` has written a"
            " checkpoint to."
        )
    header = _readable_header(file)
    if "classes" in header:
        raise InputError(
            f"{file} holds a classifier with its heads; name its folder, or the {BACKBONE_FILE}"
            " in it."
        )
    backbone, info = _build(file, header, lambda: _backbone_of(header))
    return backbone.eval(), info


def load_classifier(path: Path) -> tuple[Classifier, BackboneInfo, tuple[str, ...]]:
    """The classifier of a run folder, or of its classifier.safetensors, in evaluation mode, and its
    classes' names.

    InputError as for load_backbone.
    """
    file = path / CLASSIFIER_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"{path} has no {CLASSIFIER_FILE}; name the folder of a run of `featkit train` that"
            " learns labels."
        )
    header = _readable_header(file)
    if "classes" not in header:
        raise InputError(
            f"{file} holds no heads for classes; name its folder, or the {CLASSIFIER_FILE} in it."
        )
    classifier, info = _build(
        file, header, lambda: Classifier(_backbone_of(header), len(header["classes"]))
    )
    return classifier.eval(), info, tuple(map(str, header["classes"]))


def _readable_header(file: Path) -> Mapping[str, Any]:
    header = read_header(file)
    if header.get("format", 0) > FORMAT:
        raise InputError(
            f"{file} has format {header['format']}, newer than the {FORMAT} read here; update"
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
    """What the header describes, with the tensors of the file."""
    try:
        module = without_weights(build)
        info = BackboneInfo(
            name=header["name"],
            family=header["family"],
            geometry=Geometry.from_dict(header["geometry"]),
            # files of earlier versions spell it so
            license=header["license"] if "license" in header else header["licence"],  # quoted
            origin=header["origin"],
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{file} has a header that cannot be used: {error}") from error
    with text_path(file) as path, safe_open(path, framework="pt") as tensors:
        state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    problem = misfit(module, state)
    if problem is not None:
        raise InputError(f"{file} holds tensors that do not fit its own header: {problem}.")
    # Copied: those of the file are mapped from it, and would change or break with it.
    copies = {
        name: state[name].to(tensor.dtype, copy=True)
        for name, tensor in module.state_dict().items()
    }
    problem = not_finite(copies)
    if problem is not None:
        raise InputError(
            f"{file} holds {problem}; it cannot be used. Take an earlier snapshot, or train again"
            " with a lower learning rate."
        )
    module.load_state_dict(copies, assign=True)
    return module, info


def without_weights(build: Callable[[], Built]) -> Built:
    """What `build` makes, for a state to be loaded into by `assign`: nothing is drawn, and no
    memory taken, where that works.

    Where it does not, weights are drawn in vain, and torch's generator is put back: a few networks
    look at numbers as they are built, and some keep numbers that no state holds.
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
    """The featkit header of a safetensors file. InputError when the file is not one of featkit's."""
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
    """Whether a file is a safetensors file that featkit wrote."""
    try:
        return file.is_file() and bool(read_header(file))
    except InputError:
        return False


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor with a number that is NaN or infinite, as in "NaN in norm.weight"; None
    where all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"{'NaN' if tensor.isnan().any() else 'infinity'} in {name}"
    return None


def misfit(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """What keeps `state` from being the module's, said of the first tensor that does not fit; None
    where all do.

    load_state_dict says it too, but of every tensor and over as many lines.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            return f"{name} is missing"
        if state[name].shape != tensor.shape:
            return f"{name} is of shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    return next((f"{name} has no place in it" for name in state if name not in wanted), None)
