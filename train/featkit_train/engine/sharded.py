"""Sharded tensors in files: each process writes its shards, and any number of processes reads them.

Uses torch.distributed.checkpoint with safetensors files; a plain safetensors file is a single
shard.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from featkit.atomic import replace_folder
from featkit.paths import text_path
from featkit_train.processes.distributed import World


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether any tensor is sharded over processes."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


@contextlib.contextmanager
def replace_folder_together(path: Path, world: World) -> Iterator[Path]:
    """`replace_folder` for all processes: yield one temporary folder to all; the main process
    renames it when all have left the block."""
    if not world.is_main:
        yield world.from_main(path)
        world.wait()
        return
    with replace_folder(path) as temporary:
        yield world.from_main(temporary)
        world.wait()


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write each process's shards to its own files. All processes must call this, with equal
    names."""
    with _plain_errors(), text_path(folder) as path:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(path, save_distributed=True))


def read_shapes(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder's safetensors files as shapes without data (device `meta`)."""
    with text_path(folder) as path:
        entries = HuggingFaceStorageReader(path).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place from a folder's files; both may be whole or sharded.

    All processes must call this if `tensors` are sharded.
    """
    with _plain_errors(), text_path(folder) as path, warnings.catch_warnings():
        # With no_dist, each process reads on its own.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(path),
            no_dist=not is_sharded(tensors),
        )


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the first process's own error; torch's CheckpointException collects all of them and is
    not an Exception.
    """
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
