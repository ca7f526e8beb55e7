"""Checkpoints: one folder a step, there whole or not at all, tensors in safetensors and numbers in JSON, no pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from featkit.atomic import remove_partials, replace_folder
from featkit.errors import InputError
from featkit_train.weights import misfit, write_tensors

FORMAT = 1
STATE_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"
MODEL, MOMENTS = "model.", "optimizer."


def save_checkpoint(folder: Path, *, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write `folder`/step-00001000 after `step` finished steps, and remove all but the newest `keep`."""
    tensors = {MODEL + name: tensor for name, tensor in method.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"{MOMENTS}{number}.{name}": tensor for name, tensor in moments.items()})
    path = folder / f"step-{step:08d}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    with replace_folder(path) as temporary:
        write_tensors(temporary / STATE_FILE, tensors)
        (temporary / PROGRESS_FILE).write_text(json.dumps({"format": FORMAT, "step": step}))
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def load_checkpoint(path: Path, *, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore method and optimizer in place and return the number of finished steps.

    InputError when the checkpoint is damaged, newer than this featkit, or of another architecture.
    """
    try:
        progress = json.loads((path / PROGRESS_FILE).read_text())
        if progress["format"] > FORMAT:
            raise InputError(f"{path} has format {progress['format']}, newer than the {FORMAT} read here; update featkit.")
        step = int(progress["step"])
        tensors = load_file(path / STATE_FILE)
    except InputError:
        raise
    except Exception as error:  # safetensors raises its own, json and the file system theirs
        raise InputError(f"{path} is not a checkpoint that can be read ({error}); remove it to use the one before.") from error
    state = {name[len(MODEL) :]: tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    problem = misfit(method, state)
    if problem is not None:
        raise InputError(f"{path} is of another architecture than this run's config: {problem}.")
    method.load_state_dict(state)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(MOMENTS):
            number, moment = name[len(MOMENTS) :].split(".")
            moments.setdefault(int(number), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
