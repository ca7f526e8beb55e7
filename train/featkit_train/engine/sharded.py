"""Tensors spread over processes, to files and back: each process writes what it holds, any number
of processes reads it.

torch.distributed.checkpoint in its safetensors form, of which a plain safetensors file is the case
of one shard.
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
    """Whether any of them is spread over processes."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


@contextlib.contextmanager
def replace_folder_together(path: Path, world: World) -> Iterator[Path]:
    """`replace_folder` for all processes: a temporary folder that all see, renamed by the main
    process once all are done."""
    if not world.is_main:
        yield world.from_main(path)
        world.wait()
        return
    with replace_folder(path) as temporary:
        yield world.from_main(temporary)
        world.wait()


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write each process's part as files of its own. All processes call it, with equal names."""
    with _plain_errors(), text_path(folder) as place:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(place, save_distributed=True))


def read_shapes(folder: Path) -> dict[str, Tensor]:
    """What the safetensors files of a folder hold together, as tensors on torch's `meta` device,
    without their numbers."""
    with text_path(folder) as place:
        found = HuggingFaceStorageReader(place).read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` in place, whole or sharded, from the files of a folder, whole or sharded.
    Sharded: all call it."""
    with _plain_errors(), text_path(folder) as place, warnings.catch_warnings():
        # and so each process reads for itself
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(place),
            no_dist=not is_sharded(tensors),
        )


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """The first process's error as it was raised there: torch's collection of all is no
    Exception."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
