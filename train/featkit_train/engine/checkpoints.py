"""Checkpoints of a run: one folder for each, written whole or not at all.

Tensors are in safetensors files and the rest in JSON; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from featkit.atomic import explain_os_errors, remove_partials, replace_folder
from featkit.errors import InputError
from featkit_train.engine.sharded import (
    is_sharded,
    read_shapes,
    read_shards,
    replace_folder_together,
    write_shards,
)
from featkit_train.log import Log
from featkit_train.methods.base import Method
from featkit_train.processes.distributed import ALONE, World
from featkit_train.weights import misfit, write_tensors

FORMAT = 2
STATE_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"
SHARDS = "shards"  # in progress.json: the files that hold sharded state instead of STATE_FILE
MODEL, MOMENTS = "model.", "optimizer."


@dataclass(kw_only=True)
class Progress:
    """The progress of a run, apart from its tensors."""

    step: int = 0  # finished steps
    scores: Log = field(default_factory=dict)  # last score on the held-out images
    best_step: int = 0
    best_scores: Log = field(default_factory=dict)
    falls: int = 0  # consecutive measurements below the best by more than the tolerance
    given_up: bool = False
    unreadable: int = 0  # failed reads of images, over all processes


def save_checkpoint(
    folder: Path,
    *,
    progress: Progress,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint such as `folder`/step-00001000, and remove all but the newest `keep`.

    All processes must call this. The main process writes whole tensors; each process writes its
    shards of sharded ones.
    """
    path = folder / f"step-{progress.step:08d}"
    if world.from_main(path.exists()):
        return path
    tensors = {MODEL + name: tensor for name, tensor in method.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"{MOMENTS}{index}.{name}": tensor for name, tensor in moments.items()})
    record = {"format": FORMAT, **dataclasses.asdict(progress)}
    if world.is_main:
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
    if is_sharded(tensors):
        with replace_folder_together(path, world) as temporary:
            write_shards(temporary, tensors)
            if world.is_main:
                record[SHARDS] = sorted(file.name for file in temporary.iterdir())
                (temporary / PROGRESS_FILE).write_text(json.dumps(record), encoding="utf-8")
    elif world.is_main:
        with replace_folder(path) as temporary:
            write_tensors(temporary / STATE_FILE, tensors)
            (temporary / PROGRESS_FILE).write_text(json.dumps(record), encoding="utf-8")
    if world.is_main:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def load_checkpoint(path: Path, *, method: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore method and optimizer in place and return the run's progress.

    All processes must call this; their number may differ from that of the run that wrote it.
    InputError if the checkpoint is damaged, or of another format or architecture.
    """
    progress, stored = _open(path)
    problem = misfit(method, _model(stored))
    if problem is not None:
        raise InputError(f"{path} has another architecture than this run's config: {problem}.")
    moments = _empty_moments(stored, optimizer)
    tensors = {MODEL + name: tensor for name, tensor in method.state_dict().items()}
    for index, named in moments.items():
        tensors.update({f"{MOMENTS}{index}.{name}": tensor for name, tensor in named.items()})
    _read(path, tensors)
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return progress


def load_method(path: Path, *, method: Method) -> None:
    """Load weights and centers from an earlier run's checkpoint, without its optimizer.

    The method's `new_state` keeps its values, such as a Gram teacher that the earlier run did not
    have. InputError if anything else is missing or does not fit.
    """
    _, stored = _open(path)
    ours = method.state_dict()
    own = {name: tensor for name, tensor in ours.items() if name.startswith(method.new_state)}
    theirs = {
        name: tensor
        for name, tensor in _model(stored).items()
        if not name.startswith(method.new_state)
    }
    problem = misfit(method, theirs | own)
    if problem is not None:
        raise InputError(
            f"{path} cannot begin this run: {problem}; give it the earlier run's model and heads."
        )
    _read(path, {MODEL + name: ours[name] for name in theirs})


def _model(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(MODEL) :]: tensor for name, tensor in stored.items() if name.startswith(MODEL)}


def _empty_moments(
    stored: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """Return tensors to read each parameter's moments into, sharded like the parameter.

    A parameter that never had a gradient has no moments.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        if key.startswith(MOMENTS):
            index, name = key[len(MOMENTS) :].split(".")
            parameter = parameters[int(index)].detach()
            is_moment = tensor.ndim > 0 and tensor.shape == parameter.shape  # `step` is a scalar
            empty = (
                torch.zeros_like(parameter)
                if is_moment
                else torch.zeros(tensor.shape, dtype=tensor.dtype)
            )
            moments.setdefault(int(index), {})[name] = empty
    return moments


def _open(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Return the run's progress, and the stored tensors as shapes without data."""
    with _damage(path):
        record = json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise InputError(
                f"{path} has another checkpoint format than this version reads ({FORMAT}); resume"
                " with the version of featkit that wrote it."
            )
        for name in record.pop(SHARDS, [STATE_FILE]):
            if not (path / name).is_file():
                raise FileNotFoundError(f"{name} is missing")
        return Progress(**record), read_shapes(path)


def _read(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with _damage(path):
        read_shards(path, tensors)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    # safetensors, json and the file system each raise exceptions of their own
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint ({error}); remove it to use the previous one."
        ) from error
