"""Tensors in torch's pickles: the meaning of the calls in a pickle, and the location of the
data."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featkit.errors import InputError
from featkit_train.published.pickles import Global, Inert, NotReadable
from featkit_train.published.stored import Stored

MAX_DIMENSIONS = 16
REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")
REBUILD_PARAMETER = (
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "Parameter",
    "Buffer",
)
STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# What the zip, pickle and torch readers raise for a damaged file.
DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat array in a file. length: number of elements. start: first element of a view."""

    key: str
    dtype: torch.dtype
    length: int
    start: int = 0


ReadStorage = Callable[[Storage], Tensor]


def tensor_maker(read_storage: ReadStorage, path: Path) -> Callable[[Global, tuple[Any, ...]], Any]:
    """Return a function for unpickle that turns calls into Stored tensors or Inert objects."""
    file_bytes = path.stat().st_size

    def make(function: Global, args: tuple[Any, ...]) -> Any:
        if function.module == "torch._tensor" and function.name == "_rebuild_from_type_v2":
            return make_subclass(function, args)
        if not function.module.startswith("torch"):
            return Inert(function, args)
        if function.name in REBUILD_TENSOR and len(args) >= 4:
            return _tensor(args[0], args[1:4], read_storage, file_bytes)
        if function.name == "_rebuild_tensor_v3" and len(args) >= 7:
            storage = _typed(args[0], args[6])
            if storage is not None:
                return _tensor(storage, args[1:4], read_storage, file_bytes)
        if function.name in REBUILD_PARAMETER:
            return args[0] if args else Inert(function)
        if (function.module, function.name) == ("torch", "Size") and args:
            return tuple(args[0]) if isinstance(args[0], list | tuple) else Inert(function, args)
        return Inert(function, args)

    def make_subclass(function: Global, args: tuple[Any, ...]) -> Any:
        """Return the tensor of a subclass of Tensor."""
        if len(args) < 3:
            return Inert(function, args)
        if isinstance(args[0], Global) and isinstance(args[2], tuple):
            made = make(args[0], args[2])
            if isinstance(made, Stored):
                return made
        return Inert(args[1] if isinstance(args[1], Global) else function, args)

    return make


def _typed(storage: Any, dtype_name: Any) -> Storage | None:
    """Return an untyped storage as one of a type; None if either is something else."""
    dtype = getattr(torch, dtype_name.name, None) if isinstance(dtype_name, Global) else None
    if isinstance(storage, Storage) and isinstance(dtype, torch.dtype):
        return Storage(storage.key, dtype, storage.length // dtype.itemsize)
    return None


def _tensor(
    storage: Any, layout: tuple[Any, ...], read_storage: ReadStorage, file_bytes: int
) -> Any:
    """Return the tensor of a storage. layout: offset, shape and strides, in elements."""
    offset, shape, stride = layout
    if not isinstance(storage, Storage):
        return Inert(None, (storage, offset, shape, stride))
    if not (
        isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= MAX_DIMENSIONS
        and all(map(is_size, (offset, *shape, *stride)))
    ):
        raise NotReadable("a tensor has no shape")
    count = math.prod(shape)
    last = (
        offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        if count
        else 0
    )
    if last >= storage.length and count:
        raise NotReadable(f"a tensor of shape {shape} lies outside its storage")
    # A stride of 0 repeats elements, so a small file could fill the memory.
    if count > max(file_bytes, 1):
        raise NotReadable(f"a tensor of shape {shape} is larger than the file")
    return Stored(
        shape, storage.dtype, lambda: torch.as_strided(read_storage(storage), shape, stride, offset)
    )


def storage_of(identity: Any, roots: dict[str, Storage]) -> Any:
    """Return the storage that a pickle refers to.

    identity: ("storage", type, key, device, length) and in old files a view (key, start, length).
    roots: the storages so far, by key; the new one is added.
    """
    if not isinstance(identity, tuple) or len(identity) < 5 or as_text(identity[0]) != "storage":
        return Inert(None, (identity,))
    kind, key, length = identity[1], as_text(identity[2]), identity[4]
    dtype = STORAGE_TYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None:
        return Inert(kind, identity)
    if not is_size(length):
        raise NotReadable(f"storage {key} has no length")
    storage = roots.setdefault(key, Storage(key, dtype, length))
    view = identity[5] if len(identity) > 5 else None
    return _view(storage, view) if isinstance(view, tuple) and len(view) == 3 else storage


def _view(storage: Storage, view: tuple[Any, ...]) -> Storage:
    _, start, length = view
    if not (is_size(start) and is_size(length) and start + length <= storage.length):
        raise NotReadable(f"storage {storage.key} has a view outside itself")
    return Storage(storage.key, storage.dtype, length, start)


def is_size(value: object) -> bool:
    """Return whether a value can be a size or an offset."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def as_text(key: object) -> str:
    """Return a key as text; pickles of Python 2 hold bytes."""
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def map_storage(path: Path, begin: int, storage: Storage) -> Tensor:
    """Map a storage from the file, from byte `begin` on. Writing to it does not change the file."""
    num_bytes = storage.length * storage.dtype.itemsize
    if not num_bytes:
        return torch.empty(0, dtype=storage.dtype)
    if begin + num_bytes > path.stat().st_size:
        raise InputError(
            f"{path} is cut short: storage {storage.key} ends after the file. Download it again."
        )
    if begin % storage.dtype.itemsize:  # torch cannot view unaligned bytes as another type
        with path.open("rb") as file:
            file.seek(begin)
            return torch.frombuffer(bytearray(file.read(num_bytes)), dtype=storage.dtype)
    data = np.memmap(path, dtype=np.uint8, mode="c", offset=begin, shape=(num_bytes,))
    return torch.from_numpy(data).view(storage.dtype)
