"""Folders of torch.distributed.checkpoint, read without running code in them.

A pickle, `.metadata`, maps each piece of a tensor to its position in the `.distcp` files. Each
piece is itself a file of torch.save.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featkit.errors import InputError
from featkit.wording import first_line
from featkit_train.published.pickles import Global, Harmful, Inert, NotReadable, unpickle
from featkit_train.published.stored import Stored
from featkit_train.published.torch_files import MAX_SHOWN, read_zip
from featkit_train.published.torch_tensors import DAMAGED, MAX_DIMENSIONS, is_size

METADATA, PIECES = ".metadata", ".distcp"
Piece = tuple[tuple[int, ...], Inert]  # offset in its tensor, and place in a file


def read_distributed(folder: Path) -> Any:
    """Return the mappings of Stored tensors that torch.distributed.checkpoint saved into a folder.

    InputError for a folder that is damaged or incomplete, or names functions that run commands.
    """
    if not (folder / METADATA).is_file():
        raise InputError(
            f"{folder} has {PIECES} files but not {METADATA}, which describes them. Copy the whole"
            " folder, or convert it where it was written: python -m"
            f" torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth."
        )
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = unpickle(file)
        return _tree_of(metadata, folder)
    except Harmful as error:
        raise InputError(
            f"{folder / METADATA} asks to run {error.name}. Nothing in it was run or read."
        ) from error
    except (NotReadable, *DAMAGED, AttributeError, TypeError) as error:
        raise InputError(
            f"{folder / METADATA} is damaged ({first_line(error, most=MAX_SHOWN)}). Copy or"
            " download the folder again."
        ) from error


def _tree_of(metadata: Any, folder: Path) -> dict[str, Any]:
    """Return the tensors of `.metadata` in the nested mappings that were saved."""
    if not isinstance(metadata, Inert):
        raise NotReadable("it is not a Metadata object")
    tensors, paths = (metadata.attribute(name) for name in ("state_dict_metadata", "planner_data"))
    if not isinstance(tensors, dict):
        raise NotReadable("it lists no tensors")
    pieces = _pieces_by_tensor(metadata.attribute("storage_data"))
    tree: dict[str, Any] = {}
    for name, about in tensors.items():
        if not isinstance(about, Inert) or about.attribute("size") is None:
            continue  # a number or another object
        tensor = _joined(str(name), about, pieces.get(str(name), []), folder)
        path = paths.get(name) if isinstance(paths, dict) else None
        _insert(tree, path if isinstance(path, tuple) and path else (str(name),), tensor)
    return tree


def _pieces_by_tensor(stored: Any) -> dict[str, list[Piece]]:
    if not isinstance(stored, dict):
        raise NotReadable("it lists no tensors")
    pieces: dict[str, list[Piece]] = {}
    for index, place in stored.items():
        if isinstance(index, Inert) and isinstance(place, Inert):
            offset = index.attribute("offset")
            starts = _sizes(offset) if offset is not None else ()
            pieces.setdefault(str(index.attribute("fqn")), []).append((starts, place))
    return pieces


def _insert(tree: dict[str, Any], path: tuple[Any, ...], tensor: Stored) -> None:
    *parents, leaf = path
    mapping = tree
    for parent in parents:
        mapping = mapping.setdefault(str(parent), {})
        if not isinstance(mapping, dict):
            raise NotReadable(f"{'.'.join(map(str, path))} lies inside a tensor")
    mapping[str(leaf)] = tensor


def _sizes(value: Any) -> tuple[int, ...]:
    """Return the sizes of a torch.Size, which is a tuple or the call that would make one."""
    if isinstance(value, Inert) and value.args:
        value = value.args[0]
    if (
        not isinstance(value, tuple | list)
        or not all(map(is_size, value))
        or len(value) > MAX_DIMENSIONS
    ):
        raise NotReadable("a tensor has no shape")
    return tuple(value)


def _joined(
    name: str, about: Inert, pieces: list[tuple[tuple[int, ...], Inert]], folder: Path
) -> Stored:
    """Return a tensor that joins pieces in the folder's files when it is read."""
    shape = _sizes(about.attribute("size"))
    properties = about.attribute("properties")
    named = (
        properties.state[0]
        if isinstance(properties, Inert) and isinstance(properties.state, tuple)
        else None
    )
    if named is None and isinstance(properties, Inert):
        named = properties.attribute("dtype")
    dtype = getattr(torch, named.name, None) if isinstance(named, Global) else None
    if not isinstance(dtype, torch.dtype):
        raise NotReadable(f"{name} has no type")

    def read() -> Tensor:
        stored = [(offset, _read_piece(place, folder)) for offset, place in pieces]
        if sum(math.prod(piece.shape) for _, piece in stored) != math.prod(shape):
            raise InputError(f"{folder} lacks pieces of {name}. Copy all of its {PIECES} files.")
        whole = torch.empty(shape, dtype=dtype)
        for offset, piece in stored:
            starts = offset if len(offset) == len(shape) else (0,) * len(shape)
            window = tuple(
                slice(start, start + side) for start, side in zip(starts, piece.shape, strict=True)
            )
            if whole[window].shape != piece.shape:
                raise InputError(
                    f"{folder} has a piece of {name} that does not fit into {shape}. Copy the"
                    " folder again."
                )
            whole[window] = piece.read()
        return whole

    return Stored(shape, dtype, read)


def _read_piece(place: Inert, folder: Path) -> Stored:
    name, offset, length = (place.attribute(key) for key in ("relative_path", "offset", "length"))
    if (
        not isinstance(name, str)
        or Path(name).name != name
        or not is_size(offset)
        or not is_size(length)
    ):
        raise InputError(f"{folder / METADATA} names files outside its folder, so it was not read.")
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder} lacks {name}. Copy all of its {PIECES} files.")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            piece = read_zip(io.BytesIO(file.read(length)), path, window=(offset, length))
    except Harmful as error:
        raise InputError(
            f"{path} asks to run {error.name}. Nothing in it was run or read."
        ) from error
    except (NotReadable, *DAMAGED) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error, most=MAX_SHOWN)}). Convert the folder where"
            " it was written: python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
            f" {folder} weights.pth."
        ) from error
    if not isinstance(piece, Stored):
        raise InputError(
            f"{path} holds something other than a tensor at byte {offset}. Copy the folder again."
        )
    return piece
