"""Reading weights that others published, without running anything that is in the file.

.pth and .bin: pickles, read by torch's own restricted unpickler, which builds tensors, plain containers and the few harmless
classes of ALLOWED; a file that wants anything else is refused with its name. .safetensors, one file or several with an index:
no code at all. A folder of Hugging Face's: its config.json and its safetensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featkit.errors import InputError
from featkit_train.published.downloads import first_line

_NUMPY_SCALAR: Any = np.float32(0).__reduce__()[0]  # the function that a pickle of a NumPy number names
# What published checkpoints hold beside tensors: the options of a run, a path among them, a loss as a NumPy number.
ALLOWED: tuple[Any, ...] = (
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
)
SAFETENSORS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SHOWN_KEYS = 4


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors as a file names them, where they were, and config.json where one lay beside them."""

    tensors: dict[str, Tensor]
    file: Path
    sha256: str  # of the file; of several, of their sums in order
    config: Mapping[str, Any] = field(default_factory=dict)


def read_weights(path: Path, *, branch: str = "teacher") -> Weights:
    """The tensors of a file or folder. `branch` is taken where a checkpoint holds both teacher and student.

    InputError, naming what is wrong, for a file that is missing, damaged, of another kind, or that holds code.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a .pth or .safetensors file, or a folder with {SAFETENSORS} in it.")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = find_tensors(_read_pickle(path), path, branch=branch)
    return Weights(tensors=tensors, file=path, sha256=_sha256([path]))


def find_tensors(checkpoint: object, path: Path, *, branch: str = "teacher") -> dict[str, Tensor]:
    """The backbone's tensors inside a checkpoint: under teacher, student, state_dict or model, without wrappers' prefixes.

    Of a full checkpoint whose teacher is {backbone.*, head.*} the head is left out. InputError when there is no backbone, or
    the other branch alone.
    """
    inner = checkpoint
    for _ in range(3):
        if not isinstance(inner, Mapping) or any(isinstance(value, Tensor) for value in inner.values()):
            break
        names = [branch, "teacher", "student", "state_dict", "model_state_dict", "model"]
        chosen = next((name for name in names if isinstance(inner.get(name), Mapping)), None)
        if chosen is None:
            break
        if chosen in ("teacher", "student") and chosen != branch:
            raise InputError(f"{path} has no {branch}, only a {chosen}; take it by --branch {chosen}.")
        inner = inner[chosen]
    tensors = (
        {str(name): value for name, value in inner.items() if isinstance(value, Tensor)} if isinstance(inner, Mapping) else {}
    )
    if not tensors:
        held = ", ".join(map(str, list(inner)[:SHOWN_KEYS])) if isinstance(inner, Mapping) else type(inner).__name__
        raise InputError(f"{path} holds no weights that could be found: at its place for them are {held or 'nothing'}.")
    return _without_wrappers(tensors, path)


def _without_wrappers(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without `module.` of data parallelism and `_orig_mod.` of a compiled model; of a backbone with heads, the backbone."""
    plain = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in tensors.items()}
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in plain.items() if name.startswith("backbone.")}
    if backbone:
        return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in backbone.items()}
    if all(name.split(".")[0] in ("head", "mlp", "last_layer", "dino_head", "ibot_head") for name in plain):
        keys = ", ".join(list(plain)[:SHOWN_KEYS])
        raise InputError(f"{path} holds a head alone ({keys} …), without the backbone; name the backbone's file.")
    return plain


def _read_pickle(path: Path) -> object:
    zipped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(list(ALLOWED)), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # other than 2, which is none of the user's work
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)|(?:class|function) \W*([\w.]+\.[\w.]+)", str(error))
        if wanted is None:
            raise InputError(
                f"{path} is no checkpoint that torch reads without running what is in it; fetch it again, or ask its author "
                "for a safetensors file."
            ) from error
        raise InputError(
            f"{path} is a pickle that asks for {wanted[1] or wanted[2]}, and was not read: a pickle can run any code. Ask its "
            "author for a safetensors file, or for one that holds tensors alone."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        raise InputError(f"{path} is no checkpoint that torch reads: {first_line(error)}.") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {first_line(error)}.") from error


def _read_folder(folder: Path) -> Weights:
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if (folder / SAFETENSORS).is_file():
        files = [folder / SAFETENSORS]
    elif (folder / INDEX).is_file():
        files = _files_of_index(folder / INDEX)
    else:
        raise InputError(f"{folder} has neither {SAFETENSORS} nor {INDEX}; name a folder as Hugging Face keeps it, or a file.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_read_safetensors(file))
    return Weights(tensors=tensors, file=folder, sha256=_sha256(files), config=config)


def _files_of_index(index: Path) -> list[Path]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise InputError(f"{index} names no files under weight_map; it is not a published index.")
    if any(not isinstance(part, str) or Path(part).name != part or part in ("", "..") for part in parts.values()):
        raise InputError(f"{index} names files outside its folder; it is not a published index.")
    return [index.with_name(part) for part in sorted(set(parts.values()))]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. InputError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {first_line(error)}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object.")
    return values


def _sha256(files: list[Path]) -> str:
    sums = []
    for path in files:
        with path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
