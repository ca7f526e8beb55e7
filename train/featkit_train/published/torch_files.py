"""Checkpoints that torch.save writes, read without running code in them.

torch.save writes a pickle and, separately, the data of each storage: as records of a zip archive,
or one after the other in files from before torch 1.6. `pickles` reads the pickles, `torch_tensors`
makes tensors of them.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from featkit.errors import InputError
from featkit.wording import first_line
from featkit_train.published.pickles import Harmful, NotReadable, unpickle
from featkit_train.published.torch_tensors import (
    DAMAGED,
    ReadStorage,
    Storage,
    as_text,
    map_storage,
    storage_of,
    tensor_maker,
)

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files from before torch 1.6
MAX_PICKLE_BYTES = 2**30
MAX_SHOWN = 200  # characters of a library's message
MAX_RATIO = 100  # of sizes before and after compression; torch.save itself does not compress
LOCAL_HEADER_BYTES = 30  # of a record in a zip archive, before its name
# A distributed tensor, or the pieces that FSDP leaves with each process.
SHARDED = ("ShardedTensor", "DTensor", "_rebuild_wrapper_subclass")


def read_checkpoint(path: Path) -> Any:
    """Return what torch.save wrote: containers, Stored tensors, and Inert objects for the rest.

    InputError for a file that is damaged, of another kind, or names functions that run commands.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except InputError:
        raise
    except Harmful as error:
        raise InputError(
            f"{path} is a pickle that asks to run {error.name}, which weights never need."
            " Nothing in it was run or read. Get the weights from a source you trust, as a"
            " safetensors file if possible."
        ) from error
    except NotReadable as error:
        raise InputError(
            f"{path} is damaged or is not a torch checkpoint ({error}). Copy or download it again."
        ) from error
    except DAMAGED as error:
        raise InputError(
            f"{path} is damaged or is not a torch checkpoint"
            f" ({first_line(error, most=MAX_SHOWN)}). Copy or download it again."
        ) from error


def _read(file: IO[bytes], path: Path) -> Any:
    start = file.read(2)
    file.seek(0)
    if start == b"PK":
        return read_zip(file, path)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _read_legacy(mapped, path)


def read_zip(file: IO[bytes], path: Path, window: tuple[int, int] | None = None) -> Any:
    """Read torch's zip archive. window: its first byte and length, if it lies inside `path`."""
    archive = zipfile.ZipFile(file)
    records = {info.filename: info for info in archive.infolist()}
    for info in records.values():
        del info.CRC  # torch can leave out checksums, and then writes wrong ones
    pickle_record = _pickle_record(records, path)
    prefix = pickle_record.filename.removesuffix("data.pkl")
    order = records.get(f"{prefix}byteorder")
    if order is not None and archive.read(order).strip() == b"big":
        raise InputError(
            f"{path} was written on a big-endian machine. Save it again as a safetensors file."
        )
    if any(map(_inflates, archive.infolist())) or pickle_record.file_size > MAX_PICKLE_BYTES:
        raise InputError(
            f"{path} would unpack to far more than its size. It is damaged, or made to fill the"
            " memory."
        )
    return unpickle(
        io.BytesIO(archive.read(pickle_record)),
        make=tensor_maker(_zip_storages(records, prefix, file, path, window), path),
        stored=lambda identity: storage_of(identity, {}),
    )


def _pickle_record(records: Mapping[str, zipfile.ZipInfo], path: Path) -> zipfile.ZipInfo:
    """Return the one pickle of a checkpoint. InputError for archives that hold something else."""
    pickles = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    if any(name.endswith(("constants.pkl", "bytecode.pkl")) for name in records):
        raise InputError(
            f"{path} is a TorchScript program, not a file of weights. Load it with torch.jit.load"
            " where it was made, and save its state_dict() with torch.save."
        )
    if any("/models/" in name and name.endswith(".json") for name in records):
        raise InputError(
            f"{path} is a program of torch.export, not a file of weights. Save the model's"
            " state_dict() instead."
        )
    if len(pickles) != 1:
        held = ", ".join(list(records)[:3]) or "nothing"
        raise InputError(
            f"{path} is a zip archive that torch.save did not write (it holds {held}). Name a file"
            " of weights."
        )
    return records[pickles[0]]


def _zip_storages(
    records: Mapping[str, zipfile.ZipInfo],
    prefix: str,
    file: IO[bytes],
    path: Path,
    window: tuple[int, int] | None,
) -> ReadStorage:
    """Return a function that reads one storage of an archive, mapped from the file if possible."""
    begin = 0 if window is None else window[0]

    def read_storage(storage: Storage) -> Tensor:
        info = records.get(f"{prefix}data/{storage.key}")
        num_bytes = storage.length * storage.dtype.itemsize
        if info is None or info.file_size < num_bytes:
            raise InputError(
                f"{path} is cut short: storage {storage.key} is missing or incomplete. Download it"
                " again."
            )
        if info.compress_type != zipfile.ZIP_STORED:  # the first file object may be closed by now
            with (
                zipfile.ZipFile(path if window is None else file) as archive,
                archive.open(info) as record,
            ):
                return torch.frombuffer(bytearray(record.read(num_bytes)), dtype=storage.dtype)
        with path.open("rb") as stream:
            stream.seek(begin + info.header_offset)
            header = stream.read(LOCAL_HEADER_BYTES)
        if header[:4] != b"PK\3\4":
            raise InputError(f"{path} is damaged at storage {storage.key}. Download it again.")
        # The local header may be longer than the central one: torch pads it to align the data.
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        header_bytes = LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        return map_storage(path, begin + info.header_offset + header_bytes, storage)

    return read_storage


def _inflates(info: zipfile.ZipInfo) -> bool:
    """Return whether a compressed record claims an implausibly large size."""
    most = 2**20 + MAX_RATIO * info.compress_size
    return info.compress_type != zipfile.ZIP_STORED and info.file_size > most


def _read_legacy(file: mmap.mmap, path: Path) -> Any:
    """Read a file from before torch 1.6: pickles, then each storage's length and data."""
    stream: Any = file
    if unpickle(stream) != MAGIC:
        raise NotReadable("it does not begin like a file of torch")
    if unpickle(stream) != PROTOCOL:
        raise NotReadable("it has an unknown version")
    unpickle(stream)  # byte order and integer sizes of the machine that wrote it
    offsets: dict[str, int] = {}  # of each storage's first byte
    storages: dict[str, Storage] = {}

    def read_storage(storage: Storage) -> Tensor:
        if storage.key not in offsets:
            raise InputError(
                f"{path} is cut short: storage {storage.key} is missing. Download it again."
            )
        return map_storage(
            path, offsets[storage.key] + storage.start * storage.dtype.itemsize, storage
        )

    tree = unpickle(
        stream,
        make=tensor_maker(read_storage, path),
        stored=lambda identity: storage_of(identity, storages),
    )
    keys = unpickle(stream)
    at = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        root = storages.get(as_text(key))
        if root is None:
            raise NotReadable(f"storage {as_text(key)} has no type")
        if at + 8 > len(file):
            raise InputError(f"{path} is cut short at storage {root.key}. Download it again.")
        (length,) = struct.unpack("<q", file[at : at + 8])
        offsets[root.key] = at + 8
        if length < root.length:
            raise InputError(f"{path} is damaged at storage {root.key}. Download it again.")
        at += 8 + length * root.dtype.itemsize
        if at > len(file):
            raise InputError(f"{path} is cut short at storage {root.key}. Download it again.")
    return tree
