"""Read files and folders of weights without running anything in them.

A file is read by its content, whatever its suffix: a checkpoint of torch.save (`torch_files`) or a
safetensors file. A folder is as Hugging Face or timm keeps it, with one file or several and an
index, one of torch.distributed.checkpoint, or one with a single file of weights. `fitting` finds
out which of the tensors are the backbone's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featkit import filetypes
from featkit.digests import sha256_of
from featkit.errors import InputError
from featkit.filetypes import what_is
from featkit.paths import text_path
from featkit.wording import counted, first_line
from featkit_train.published.distributed_files import METADATA, PIECES, read_distributed
from featkit_train.published.pickles import Global, Inert
from featkit_train.published.stored import Stored
from featkit_train.published.torch_files import SHARDED, read_checkpoint

SAFETENSORS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
READS = f"featkit reads weights from {', '.join(SUFFIXES[:-1])} and {SUFFIXES[-1]} files"
SHARD = re.compile(r"(?P<begin>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
# Other files that trainings save in the same folder.
BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state|random_states|sampler)\b.*"
    r"|optimizer_.*|rng_state_.*"
)
OTHER_LIBRARIES = {
    ".msgpack": "Flax",
    ".h5": "TensorFlow",
    ".keras": "Keras",
    ".tflite": "TensorFlow Lite",
    ".onnx": "ONNX",
}
# Words that wrapping modules put into the names of weights, at any position.
WRAPPERS = frozenset(
    "module _orig_mod _fsdp_wrapped_module _fpw_module _checkpoint_wrapped_module _forward_module"
    " _ddp_module".split()
)
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
MAX_DEPTH = 8  # of mappings inside mappings

Group = dict[str, Stored]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a file or folder, by the mapping they are in.

    groups: "" is the only mapping of a flat file; a checkpoint has names such as "teacher".
    sha256: of the file; for several files, the sha256 of their digests in order. config: the
    folder's config.json.
    sharded: names of tensors that the file holds only one process's share of.
    """

    groups: Mapping[str, Group]
    file: Path
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sharded: Sequence[str] = ()


def read_weights(path: Path) -> Weights:
    """Return the tensors of a file or folder. InputError if it has none or cannot be read."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(
            f"{path} does not exist. Name a .pth or .safetensors file, or a folder with"
            f" {SAFETENSORS} in it."
        )
    if path.suffix == PIECES or path.name == METADATA:
        return _read_folder(path.parent)
    shards = _shards_beside(path)
    if shards is not None:
        return _read_files(shards, path)
    return _read_files([path], path)


def _read_files(
    files: Sequence[Path], named: Path, config: Mapping[str, Any] | None = None
) -> Weights:
    groups: dict[str, Group] = {}
    sharded: list[str] = []
    for file in files:
        more, others = _read_file(file)
        for name, group in more.items():
            groups.setdefault(name, {}).update(group)
        sharded += others
    return Weights(
        groups=groups, file=named, sha256=_sha256(files), config=config or {}, sharded=sharded
    )


def _read_file(path: Path) -> tuple[dict[str, Group], list[str]]:
    with path.open("rb") as file:
        head = file.read(filetypes.NUM_BYTES)
    if not head:
        raise InputError(f"{path} is empty. Copy or download it again.")
    kind = what_is(head)
    if kind == filetypes.SAFETENSORS or (kind is None and path.suffix == ".safetensors"):
        return {"": without_wrappers(_read_safetensors(path))}, []
    if kind not in (None, filetypes.TORCH, filetypes.ZIP, filetypes.PICKLE):
        raise InputError(kind.sentence(str(path), otherwise=READS))
    library = OTHER_LIBRARIES.get(path.suffix)
    if library is not None:
        raise InputError(f"{path} is a file of {library}; {READS}.")
    return groups_of(read_checkpoint(path), path)


def groups_of(tree: object, path: Path) -> tuple[dict[str, Group], list[str]]:
    """Return the tensors of a checkpoint by their mappings, and the names of sharded ones.

    InputError if it has no tensors.
    """
    groups: dict[str, Group] = {}
    sharded: list[str] = []
    for place, mapping in _mappings(tree):
        group: Group = {}
        for name, value in mapping.items():
            if isinstance(value, Stored):
                group[str(name)] = value
            if _is_share(name, value):
                sharded.append(".".join((*place, str(name))))
        if group:
            groups[".".join(place)] = without_wrappers(group)
    if not groups and not sharded:
        held = ", ".join(map(str, list(tree)[:4])) if isinstance(tree, dict) else _kind_of(tree)
        raise InputError(
            f"{path} holds no weights, only {held or 'an empty mapping'}. Name a file of weights."
        )
    return groups, sharded


def without_wrappers(group: Group) -> Group:
    """Remove the words of wrappers such as DDP, torch.compile and FSDP from names."""
    plain = {
        ".".join(word for word in name.split(".") if word not in WRAPPERS): name for name in group
    }
    if len(plain) != len(group):  # two names would become one
        return group
    return {name: group[theirs] for name, theirs in plain.items()}


def _mappings(tree: object) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield every mapping of a checkpoint once, with its path, outer ones first.

    A pickled module counts as a mapping of its weights.
    """
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], object]] = [((), tree)]
    while waiting:
        place, value = waiting.pop(0)
        if isinstance(value, Inert):
            value = _module(value) or value.items
        if not isinstance(value, dict) or id(value) in seen or len(place) > MAX_DEPTH:
            continue
        seen.add(id(value))
        yield place, value
        waiting += [
            ((*place, str(name)), inner)
            for name, inner in value.items()
            if isinstance(inner, dict | Inert)
        ]


def _module(value: Inert) -> dict[str, Stored]:
    """Return the weights of a pickled module, whose state lists them by submodule."""
    weights: dict[str, Stored] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Inert]] = [("", value)]
    while waiting:
        prefix, module = waiting.pop(0)
        if id(module) in seen:
            continue
        seen.add(id(module))
        for attribute in ("_parameters", "_buffers", "_modules"):
            inner = module.attribute(attribute)
            for name, held in inner.items() if isinstance(inner, dict) else ():
                if isinstance(held, Stored):
                    weights[f"{prefix}{name}"] = held
                elif isinstance(held, Inert) and attribute == "_modules":
                    waiting.append((f"{prefix}{name}.", held))
    return weights


def _is_share(name: object, value: object) -> bool:
    made_by = value.made_by if isinstance(value, Inert) else None
    return (isinstance(made_by, Global) and made_by.name in SHARDED) or (
        isinstance(value, Stored | Inert)
        and str(name).split(".")[-1] in ("_flat_param", "flat_param")
    )


def _kind_of(tree: object) -> str:
    if isinstance(tree, Stored):
        return "a single tensor without a name"
    if isinstance(tree, Inert):
        return str(tree.made_by)
    return f"an object of type {type(tree).__name__}"


def _read_safetensors(path: Path) -> Group:
    try:
        with text_path(path) as text:
            file: Any = safe_open(text, framework="pt")
        names = file.keys()  # safe_open is not a mapping
        return {name: _of_safetensors(file, name, path) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a safetensors file, or is damaged or cut short ({first_line(error)})."
            " Download it again."
        ) from error


def _of_safetensors(file: Any, name: str, path: Path) -> Stored:
    about = file.get_slice(name)
    type_name = str(about.get_dtype())
    dtype = getattr(torch, SAFETENSORS_TYPES.get(type_name, ""), None)
    if dtype is None:
        raise InputError(
            f"{path} stores {name} as {type_name}, which featkit cannot read. Save the weights as"
            " float32 or float16."
        )

    def read() -> Tensor:
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(
                f"{path} cannot be read at {name} ({first_line(error)}). Download it again."
            ) from error
        return tensor

    return Stored(tuple(about.get_shape()), dtype, read)


# Folders


def _read_folder(folder: Path) -> Weights:
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    for name, index in ((SAFETENSORS, INDEX), (BIN, BIN_INDEX)):
        if (folder / name).is_file():
            return _read_files([folder / name], folder, config)
        if (folder / index).is_file():
            return _read_files(_files_of_index(folder / index), folder, config)
    if (folder / METADATA).is_file() or any(folder.glob(f"*{PIECES}")):
        groups, sharded = groups_of(read_distributed(folder), folder)
        files = [folder / METADATA, *sorted(folder.glob(f"*{PIECES}"))]
        return Weights(
            groups=groups, file=folder, sha256=_sha256(files), config=config, sharded=sharded
        )
    return _read_files(_only_files(folder), folder, config)


def _only_files(folder: Path) -> list[Path]:
    """Return the one file of weights in a folder, or all its shards. InputError for any other."""
    files = sorted(path for path in folder.iterdir() if _is_weights(path))
    if files:
        shards = _shards_beside(files[0])
        if shards is not None and set(files) <= set(shards):
            return shards
        if len(files) == 1:
            return files
        raise InputError(
            f"{folder} holds {counted(len(files), 'file')} of weights"
            f" ({_some([path.name for path in files])}). Name one."
        )
    raise InputError(_without_weights(folder))


def _without_weights(folder: Path) -> str:
    """Return a message for a folder without weights: its content, and what to name instead."""
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_LIBRARIES)
    if others:
        library = OTHER_LIBRARIES[Path(others[0]).suffix]
        return f"{folder} holds only weights for {library} ({_some(others)}); {READS}."
    if (folder / "snapshots").is_dir():
        return f"{folder} is a cache folder of the Hugging Face hub. Name one in its snapshots/."
    below = sorted(
        str(path.relative_to(folder))
        for path in (*folder.glob("*/*"), *folder.glob("*/*/*"))
        if _is_weights(path)
    )
    if below:
        return (
            f"{folder} holds no weights itself. Name one of those in its folders: {_some(below)}."
        )
    return (
        f"{folder} has neither {SAFETENSORS}, {INDEX}, {BIN} nor a single file of weights. Name a"
        " folder as Hugging Face or timm keeps it, or a file."
    )


def _is_weights(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and not BESIDE.fullmatch(path.name) and path.is_file()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shards_beside(path: Path) -> list[Path] | None:
    """Return all files of a set with names such as `-00001-of-00003`; None for a whole file.

    InputError if one is missing.
    """
    match = SHARD.fullmatch(path.name)
    if match is None:
        return None
    count = int(match["count"])
    names = [
        f"{match['begin']}-{index:05}-of-{count:05}{match['suffix']}"
        for index in range(1, count + 1)
    ]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing or path.name not in names:
        lacks = f"{_some(missing or [path.name])} {'is' if len(missing) < 2 else 'are'}"
        raise InputError(
            f"{path} is one of {counted(count, 'file')}, but {lacks} missing. Download all of them"
            " into the same folder."
        )
    return [path.with_name(name) for name in names]


def _files_of_index(index: Path) -> list[Path]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise InputError(f"{index} names no files under weight_map. Download it again.")
    if any(
        not isinstance(part, str) or Path(part).name != part or part in ("", "..")
        for part in parts.values()
    ):
        raise InputError(f"{index} names files outside its folder, so it was not read.")
    files = [index.with_name(part) for part in sorted(set(parts.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{index.parent} lacks {_some(missing)}, which {index.name} names. Download all of its"
            " files."
        )
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. InputError for anything else."""
    try:
        data = path.read_bytes()
        values = json.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        kind = what_is(data) if isinstance(error, ValueError) else None
        if kind in (filetypes.GIT_LFS_POINTER, filetypes.HTML):
            raise InputError(kind.sentence(str(path), otherwise="download it again")) from error
        raise InputError(f"{path} cannot be read as JSON ({first_line(error)}).") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return values


def _sha256(files: Sequence[Path]) -> str:
    sums = [sha256_of(path) for path in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
