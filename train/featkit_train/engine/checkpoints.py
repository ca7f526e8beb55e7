"""Checkpoints: one folder a step, there whole or not at all, tensors in safetensors and numbers in
JSON, no pickle."""

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
from featkit_train.processes.distributed import ALONE, World
from featkit_train.weights import misfit, write_tensors

FORMAT = 2
STATE_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"
SHARDS = "shards"  # in progress.json, the files that hold the state where there is no STATE_FILE
MODEL, MOMENTS = "model.", "optimizer."
OWN_OF_A_STAGE = "gram_teacher."  # what an earlier stage of a run has not


@dataclass(kw_only=True)
class Progress:
    """How far a run is, beside its tensors."""

    step: int = 0  # finished steps
    scores: Log = field(default_factory=dict)  # last measured on the held-out images
    best_step: int = 0
    best_scores: Log = field(default_factory=dict)
    falls: int = 0  # measurements in a row that were worse than the best by more than is tolerated
    given_up: bool = False
    unreadable: int = 0  # images that no process could read, each time that one was asked for


def save_checkpoint(
    folder: Path,
    *,
    progress: Progress,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
    world: World = ALONE,
) -> Path:
    """Write `folder`/step-00001000 after so many finished steps, and remove all but the newest
    `keep`.

    All processes call it. Whole tensors are the main process's to write; of sharded ones each
    writes what it holds.
    """
    path = folder / f"step-{progress.step:08d}"
    if world.from_main(path.exists()):
        return path
    tensors = {MODEL + name: tensor for name, tensor in method.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"{MOMENTS}{number}.{name}": tensor for name, tensor in moments.items()})
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
                (temporary / PROGRESS_FILE).write_text(json.dumps(record))
    elif world.is_main:
        with replace_folder(path) as temporary:
            write_tensors(temporary / STATE_FILE, tensors)
            (temporary / PROGRESS_FILE).write_text(json.dumps(record))
    if world.is_main:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def load_checkpoint(path: Path, *, method: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore method and optimizer in place and return how far the run was. All processes call it.

    Written by one process or many, read by one or many. InputError when the checkpoint is damaged,
    of another format than this featkit's, or of another architecture.
    """
    progress, found = _open(path)
    problem = misfit(method, _model(found))
    if problem is not None:
        raise InputError(f"{path} is of another architecture than this run's config: {problem}.")
    moments = _empty_moments(found, optimizer)
    tensors = {MODEL + name: tensor for name, tensor in method.state_dict().items()}
    for number, named in moments.items():
        tensors.update({f"{MOMENTS}{number}.{name}": tensor for name, tensor in named.items()})
    _read(path, tensors)
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return progress


def load_method(path: Path, *, method: nn.Module) -> None:
    """The weights and centers of an earlier run's checkpoint as the beginning of this one; its
    optimizer is left behind.

    What only this run has (a Gram teacher) keeps what it has. InputError where anything else is
    missing or does not fit.
    """
    _, found = _open(path)
    ours = method.state_dict()
    own = {name: tensor for name, tensor in ours.items() if name.startswith(OWN_OF_A_STAGE)}
    theirs = {
        name: tensor
        for name, tensor in _model(found).items()
        if not name.startswith(OWN_OF_A_STAGE)
    }
    problem = misfit(method, theirs | own)
    if problem is not None:
        raise InputError(
            f"{path} cannot begin this run: {problem}; give it the earlier run's model and heads."
        )
    _read(path, {MODEL + name: ours[name] for name in theirs})


def _model(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(MODEL) :]: tensor for name, tensor in found.items() if name.startswith(MODEL)}


def _empty_moments(
    found: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """Tensors to read each parameter's moments into, sharded as it is. A parameter that never had a
    gradient has none."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, stored in found.items():
        if key.startswith(MOMENTS):
            number, name = key[len(MOMENTS) :].split(".")
            parameter = parameters[int(number)].detach()
            alike = stored.ndim > 0 and stored.shape == parameter.shape  # `step` is a number
            empty = (
                torch.zeros_like(parameter)
                if alike
                else torch.zeros(stored.shape, dtype=stored.dtype)
            )
            moments.setdefault(int(number), {})[name] = empty
    return moments


def _open(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    """How far the run was, and the shapes of what is stored."""
    with _damage(path):
        record = json.loads((path / PROGRESS_FILE).read_text())
        if record.pop("format") != FORMAT:
            raise InputError(
                f"{path} is of another format than the {FORMAT} read here; use the featkit that"
                " wrote it."
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
    except Exception as error:  # safetensors raises its own, json and the file system theirs
        raise InputError(
            f"{path} is not a checkpoint that can be read ({error}); remove it to use the one"
            " before."
        ) from error
