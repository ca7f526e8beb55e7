"""A trained backbone as one safetensors file, with all that is needed to build it again in its header."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from featkit.atomic import replace_file
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.networks.vit import VisionTransformer, ViTConfig

BACKBONE_FILE = "backbone.safetensors"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What a backbone is and where it comes from; `origin` are free notes such as data, recipe and steps."""

    name: str
    family: str
    geometry: Geometry
    licence: str
    origin: dict[str, str] = field(default_factory=dict)


def save_backbone(path: Path, backbone: VisionTransformer, info: BackboneInfo) -> None:
    """Write the weights and their header, whole or not at all; equal weights and header give equal bytes."""
    header = {
        "format": FORMAT,
        "vit": asdict(backbone.config),
        "name": info.name,
        "family": info.family,
        "geometry": info.geometry.to_dict(),
        "licence": info.licence,
        "origin": info.origin,
    }
    with replace_file(path) as temporary:
        write_tensors(temporary, backbone.state_dict(), metadata={"featkit": json.dumps(header, sort_keys=True)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file. OSError for a full disk and its like, of which safetensors makes an error of its own."""
    # Contiguous copies: safetensors refuses tensors that share memory.
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def load_backbone(path: Path) -> tuple[VisionTransformer, BackboneInfo]:
    """The backbone of a run folder, or of its backbone.safetensors, in evaluation mode.

    InputError when there is none, when it is of another make or a newer format, or when its tensors do not fit.
    """
    file = path / BACKBONE_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{path} has no {BACKBONE_FILE}; name a folder that `featkit train` has written a checkpoint to.")
    header = read_header(file)
    if header.get("format", 0) > FORMAT:
        raise InputError(f"{file} has format {header['format']}, newer than the {FORMAT} read here; update featkit.")
    try:
        backbone = VisionTransformer(ViTConfig(**header["vit"]))
        info = BackboneInfo(
            name=header["name"],
            family=header["family"],
            geometry=Geometry.from_dict(header["geometry"]),
            licence=header["licence"],
            origin=header["origin"],
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{file} has a header that cannot be used: {error}") from error
    with safe_open(file, framework="pt") as tensors:
        state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    problem = misfit(backbone, state)
    if problem is not None:
        raise InputError(f"{file} holds tensors that do not fit its own header: {problem}.")
    backbone.load_state_dict(state)
    return backbone.eval(), info


def read_header(file: Path) -> Mapping[str, Any]:
    """The featkit header of a safetensors file. InputError when the file is not one of featkit's."""
    try:
        with safe_open(file, framework="pt") as tensors:
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


def misfit(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """What keeps `state` from being the module's, said of the first tensor that does not fit; None where all do.

    load_state_dict says it too, but of every tensor and over as many lines.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            return f"{name} is missing"
        if state[name].shape != tensor.shape:
            return f"{name} is of shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    return next((f"{name} has no place in it" for name in state if name not in wanted), None)
