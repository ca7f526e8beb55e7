"""Checkpoints that torch.save and torch.distributed.checkpoint write, read without running what is
in them.

torch.save writes a pickle, and beside it the numbers of each storage: as records of a zip archive,
or in files from before torch 1.6 one after the other. A folder of torch.distributed.checkpoint has
a pickle, `.metadata`, that says where in the `.distcp` files each piece of a tensor lies; each
piece is a file of torch.save's again. `pickles` reads all these pickles.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from featkit.errors import InputError
from featkit.wording import first_line
from featkit_train.published.pickles import Global, Harmful, Inert, NotReadable, unpickle
from featkit_train.published.stored import Stored

METADATA, PIECES = ".metadata", ".distcp"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files from before torch 1.6
MAX_PICKLE_BYTES = 2**30
MAX_SHOWN = 200  # characters of a library's message
MAX_RATIO = 100  # torch.save itself does not compress
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
# A distributed tensor, or the pieces that FSDP leaves with each process.
SHARDED = ("ShardedTensor", "DTensor", "_rebuild_wrapper_subclass")
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
class _Storage:
    """A row of numbers in a file; `start`: of a view, its first element."""

    key: str
    dtype: torch.dtype
    length: int
    start: int = 0


ReadStorage = Callable[[_Storage], Tensor]


def read_checkpoint(path: Path) -> Any:
    """Return what torch.save wrote: containers, Stored tensors, and Inert objects in place of
    everything else.

    InputError for a file that is damaged, is another kind of file, or names functions that run
    commands.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path, path)
    except InputError:
        raise
    except Harmful as error:
        raise InputError(
            f"{path} is a pickle that asks to run {error.name}, which no file of weights has a"
            " reason to; nothing of it was run or read. Get the weights from a source you trust,"
            " as a safetensors file if there is one."
        ) from error
    except NotReadable as error:
        raise InputError(
            f"{path} is damaged or is not a checkpoint of torch ({error}); copy or download it"
            " again."
        ) from error
    except DAMAGED as error:
        raise InputError(
            f"{path} is damaged or is not a checkpoint of torch ({first_line(error, most=MAX_SHOWN)}); copy or download"
            " it again."
        ) from error


def read_distributed(folder: Path) -> Any:
    """Return what torch.distributed.checkpoint saved into a folder, as mappings of Stored tensors.
    InputError as above."""
    if not (folder / METADATA).is_file():
        raise InputError(
            f"{folder} holds {PIECES} files without {METADATA}, which says what they hold; copy the"
            " whole folder, or convert it where it was written: python -m"
            f" torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth."
        )
    try:
        with (folder / METADATA).open("rb") as file:
            told = unpickle(file)
        return _distributed(told, folder)
    except Harmful as error:
        raise InputError(
            f"{folder / METADATA} asks to run {error.name}; nothing of it was run or read."
        ) from error
    except (NotReadable, *DAMAGED, AttributeError, TypeError) as error:
        raise InputError(
            f"{folder / METADATA} is damaged ({first_line(error, most=MAX_SHOWN)}); copy or download the folder again."
        ) from error


def _read(file: IO[bytes], named: Path, place: Path) -> Any:
    start = file.read(2)
    file.seek(0)
    if start == b"PK":
        return _read_zip(file, named)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _read_legacy(mapped, place)


# Archives


def _read_zip(file: IO[bytes], named: Path, window: tuple[int, int] | None = None) -> Any:
    """A zip archive of torch's. `window`: first byte and length, where it lies inside another file."""
    archive = zipfile.ZipFile(file)
    records = {info.filename: info for info in archive.infolist()}
    for info in records.values():
        del info.CRC  # torch can be told to write no checksums, and then writes wrong ones
    pickles = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    if any(name.endswith(("constants.pkl", "bytecode.pkl")) for name in records):
        raise InputError(
            f"{named} is a TorchScript program, not a file of weights; load it with torch.jit.load"
            " where it was made and save its state_dict() with torch.save."
        )
    if any("/models/" in name and name.endswith(".json") for name in records):
        raise InputError(
            f"{named} is a program of torch.export, not a file of weights; save the model's"
            " state_dict() instead."
        )
    if len(pickles) != 1:
        held = ", ".join(list(records)[:3]) or "nothing"
        raise InputError(
            f"{named} is a zip archive that torch.save did not write (it holds {held}); name a file"
            " of weights."
        )
    prefix = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{prefix}byteorder")
    if order is not None and archive.read(order).strip() == b"big":
        raise InputError(
            f"{named} was written on a big-endian machine; save it again as a safetensors file."
        )
    if (
        any(_inflates(info) for info in archive.infolist())
        or records[pickles[0]].file_size > MAX_PICKLE_BYTES
    ):
        raise InputError(
            f"{named} would unpack to far more than its size; it is damaged, or made to fill the"
            " memory."
        )
    begin = 0 if window is None else window[0]

    def read_storage(storage: _Storage) -> Tensor:
        info = records.get(f"{prefix}data/{storage.key}")
        num_bytes = storage.length * storage.dtype.itemsize
        if info is None or info.file_size < num_bytes:
            raise InputError(
                f"{named} is cut short: storage {storage.key} is missing or incomplete; download it"
                " again."
            )
        if info.compress_type != zipfile.ZIP_STORED:
            with (
                zipfile.ZipFile(named if window is None else file) as again,
                again.open(info) as record,
            ):
                return torch.frombuffer(bytearray(record.read(num_bytes)), dtype=storage.dtype)
        with named.open("rb") as stream:
            stream.seek(begin + info.header_offset)
            header = stream.read(30)
        if header[:4] != b"PK\3\4":
            raise InputError(f"{named} is damaged at storage {storage.key}; download it again.")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return _mapped(named, begin + info.header_offset + 30 + name_length + extra_length, storage)

    return unpickle(
        io.BytesIO(archive.read(pickles[0])),
        make=_maker(read_storage, named),
        stored=lambda told: _storage_of(told, {}),
    )


def _inflates(info: zipfile.ZipInfo) -> bool:
    """Whether a compressed record says that it is far larger than any numbers or names would be."""
    return (
        info.compress_type != zipfile.ZIP_STORED
        and info.file_size > 2**20 + MAX_RATIO * info.compress_size
    )


# Files from before torch 1.6


def _read_legacy(file: mmap.mmap, path: Path) -> Any:
    stream: Any = file
    if unpickle(stream) != MAGIC:
        raise NotReadable("it does not begin as torch's files do")
    if unpickle(stream) != PROTOCOL:
        raise NotReadable("it has an unknown version")
    unpickle(stream)  # sizes of the numbers of the machine that wrote it
    places: dict[str, int] = {}
    storages: dict[str, _Storage] = {}

    def read_storage(storage: _Storage) -> Tensor:
        if storage.key not in places:
            raise InputError(
                f"{path} is cut short: storage {storage.key} is missing; download it again."
            )
        return _mapped(path, places[storage.key] + storage.start * storage.dtype.itemsize, storage)

    tree = unpickle(
        stream, make=_maker(read_storage, path), stored=lambda told: _storage_of(told, storages)
    )
    place = stream.tell
    keys = unpickle(stream)
    at = place()
    for key in keys if isinstance(keys, list) else []:
        root = storages.get(_text(key))
        if root is None:
            raise NotReadable(f"nothing says of which type storage {_text(key)} is")
        if at + 8 > len(file):
            raise InputError(f"{path} is cut short at storage {root.key}; download it again.")
        (length,) = struct.unpack("<q", file[at : at + 8])
        places[root.key] = at + 8
        if length < root.length:
            raise InputError(f"{path} is damaged at storage {root.key}; download it again.")
        at += 8 + length * root.dtype.itemsize
        if at > len(file):
            raise InputError(f"{path} is cut short at storage {root.key}; download it again.")
    return tree


def _text(key: object) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


# Tensors


def _storage_of(told: Any, roots: dict[str, _Storage]) -> Any:
    """The storage that a pickle refers to: ("storage", type, key, device, length), and in old files
    the view of it."""
    if not isinstance(told, tuple) or len(told) < 5 or _text(told[0]) != "storage":
        return Inert(None, (told,))
    kind, key, length = told[1], _text(told[2]), told[4]
    dtype = STORAGE_TYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None:
        return Inert(kind, told)
    if not _whole(length):
        raise NotReadable(f"storage {key} has no length")
    storage = roots.setdefault(key, _Storage(key, dtype, length))
    view = told[5] if len(told) > 5 else None
    if isinstance(view, tuple) and len(view) == 3:
        if not (_whole(view[1]) and _whole(view[2]) and view[1] + view[2] <= length):
            raise NotReadable(f"storage {key} has a view outside itself")
        return _Storage(key, dtype, view[2], view[1])
    return storage


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _maker(read_storage: ReadStorage, path: Path) -> Callable[[Global, tuple[Any, ...]], Any]:
    """What stands for the result of each function that a file of torch's calls: tensors as Stored,
    other things as Inert."""
    size = path.stat().st_size

    def make(function: Global, args: tuple[Any, ...]) -> Any:
        if function.module.startswith("torch") and function.name in (
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
        ):
            return (
                _tensor(args[0], args[1:4], read_storage, size)
                if len(args) >= 4
                else Inert(function, args)
            )
        if (
            function.module.startswith("torch")
            and function.name == "_rebuild_tensor_v3"
            and len(args) >= 7
        ):
            dtype = getattr(torch, args[6].name, None) if isinstance(args[6], Global) else None
            if isinstance(args[0], _Storage) and isinstance(dtype, torch.dtype):
                typed = _Storage(args[0].key, dtype, args[0].length // dtype.itemsize)
                return _tensor(typed, args[1:4], read_storage, size)
        if function.module.startswith("torch") and function.name in (
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            "Parameter",
            "Buffer",
        ):
            return args[0] if args else Inert(function)
        if (
            function.module == "torch._tensor"
            and function.name == "_rebuild_from_type_v2"
            and len(args) >= 3
        ):
            # a subclass of Tensor: its tensor
            if isinstance(args[0], Global) and isinstance(args[2], tuple):
                made = make(args[0], args[2])
                if isinstance(made, Stored):
                    return made
            return Inert(args[1] if isinstance(args[1], Global) else function, args)
        if (
            function.module == "torch"
            and function.name == "Size"
            and args
            and isinstance(args[0], list | tuple)
        ):
            return tuple(args[0])
        return Inert(function, args)

    return make


def _tensor(
    storage: Any, layout: tuple[Any, ...], read_storage: ReadStorage, file_bytes: int
) -> Any:
    """A tensor of that storage; layout: the offset of its first number, its shape and its strides,
    in numbers."""
    offset, shape, stride = layout
    if not isinstance(storage, _Storage):
        return Inert(None, (storage, offset, shape, stride))
    if not (
        isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= 16
        and all(map(_whole, (offset, *shape, *stride)))
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
    if count > max(file_bytes, 1):  # numbers that are repeated: a small file could fill the memory
        raise NotReadable(f"a tensor of shape {shape} is larger than the file")
    return Stored(
        shape, storage.dtype, lambda: torch.as_strided(read_storage(storage), shape, stride, offset)
    )


def _mapped(path: Path, begin: int, storage: _Storage) -> Tensor:
    """So many numbers of a file from that byte on, read when they are needed; writing to them does
    not change the file."""
    num_bytes = storage.length * storage.dtype.itemsize
    if not num_bytes:
        return torch.empty(0, dtype=storage.dtype)
    if begin + num_bytes > path.stat().st_size:
        raise InputError(
            f"{path} is cut short: storage {storage.key} ends behind the file; download it again."
        )
    if begin % storage.dtype.itemsize:
        with path.open("rb") as file:
            file.seek(begin)
            return torch.frombuffer(bytearray(file.read(num_bytes)), dtype=storage.dtype)
    row = np.memmap(path, dtype=np.uint8, mode="c", offset=begin, shape=(num_bytes,))
    return torch.from_numpy(row).view(storage.dtype)


# torch.distributed.checkpoint


def _distributed(told: Any, folder: Path) -> dict[str, Any]:
    """The tensors of `.metadata`, in nested mappings as they were saved."""
    if not isinstance(told, Inert):
        raise NotReadable("it is no Metadata")
    tensors, planned, stored = (
        told.attribute(name) for name in ("state_dict_metadata", "planner_data", "storage_data")
    )
    if not isinstance(tensors, dict) or not isinstance(stored, dict):
        raise NotReadable("it lists no tensors")
    pieces: dict[str, list[tuple[tuple[int, ...], Inert]]] = {}
    for index, place in stored.items():
        if isinstance(index, Inert) and isinstance(place, Inert):
            offset = index.attribute("offset")
            pieces.setdefault(str(index.attribute("fqn")), []).append(
                (_sides(offset) if offset is not None else (), place)
            )
    tree: dict[str, Any] = {}
    for name, about in tensors.items():
        if not isinstance(about, Inert) or about.attribute("size") is None:
            continue  # a number, or an object: no tensor
        tensor = _joined(str(name), about, pieces.get(str(name), []), folder)
        path = planned.get(name) if isinstance(planned, dict) else None
        *parents, leaf = path if isinstance(path, tuple) and path else (str(name),)
        mapping = tree
        for parent in parents:
            mapping = mapping.setdefault(str(parent), {})
            if not isinstance(mapping, dict):
                raise NotReadable(f"{name} lies inside a tensor")
        mapping[str(leaf)] = tensor
    return tree


def _sides(value: Any) -> tuple[int, ...]:
    """A torch.Size: a tuple, or the call that would make one."""
    if isinstance(value, Inert) and value.args:
        value = value.args[0]
    if not isinstance(value, tuple | list) or not all(map(_whole, value)) or len(value) > 16:
        raise NotReadable("a tensor has no shape")
    return tuple(value)


def _joined(
    name: str, about: Inert, pieces: list[tuple[tuple[int, ...], Inert]], folder: Path
) -> Stored:
    """A tensor that lies in pieces in the folder's files."""
    shape = _sides(about.attribute("size"))
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
        found = [(offset, _read_piece(place, folder)) for offset, place in pieces]
        if sum(math.prod(piece.shape) for _, piece in found) != math.prod(shape):
            raise InputError(f"{folder} lacks pieces of {name}; copy all of its {PIECES} files.")
        whole = torch.empty(shape, dtype=dtype)
        for offset, piece in found:
            starts = offset if len(offset) == len(shape) else (0,) * len(shape)
            window = tuple(
                slice(start, start + side) for start, side in zip(starts, piece.shape, strict=True)
            )
            if whole[window].shape != piece.shape:
                raise InputError(
                    f"{folder} has a piece of {name} that does not fit into {shape}; copy the"
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
        or not _whole(offset)
        or not _whole(length)
    ):
        raise InputError(f"{folder / METADATA} names files outside its folder; it was not read.")
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder} lacks {name}; copy all of its {PIECES} files.")
    try:
        with path.open("rb") as file:
            file.seek(offset)
            piece = _read_zip(io.BytesIO(file.read(length)), path, window=(offset, length))
    except Harmful as error:
        raise InputError(
            f"{path} asks to run {error.name}; nothing of it was run or read."
        ) from error
    except (NotReadable, *DAMAGED) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error, most=MAX_SHOWN)}); convert the folder where it was written:"
            f" python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder}"
            " weights.pth."
        ) from error
    if not isinstance(piece, Stored):
        raise InputError(
            f"{path} holds something other than a tensor at byte {offset}; copy the folder again."
        )
    return piece
