"""Take a backbone's tensors out of a file: find them, check them, copy them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.networks.base import Backbone
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.branches import PLAIN, choose, remarks
from featkit_train.published.fitting import Fit, fits
from featkit_train.published.identify import misfit
from featkit_train.published.key_maps import KeyMap
from featkit_train.published.preprocessor import find_preprocessor, read_preprocessor
from featkit_train.published.weight_files import Weights
from featkit_train.published.zoo import Published
from featkit_train.weights import not_finite

# In an origin: the file that the geometry was read from, if it is not the family's own.
PREPROCESSING = "preprocessing"
# Weights with these names lie in a folder whose other files belong to the same model.
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")

# The backbone's tensors in the sizes that a file may choose: (ours, the file's) to ours.
Resize = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]


class Choice(NamedTuple):
    """The tensors to take from a file, their branch, and remarks for the user."""

    branch: str
    fit: Fit
    remarks: tuple[str, ...]


def find_tensors(
    file: Weights,
    maps: Sequence[KeyMap],
    state: Mapping[str, Tensor],
    resize: Resize,
    *,
    branch: str | None,
    row: Published | str,
) -> Choice:
    """Find the backbone's tensors in a file. InputError that explains the misfit if it has none.

    state: the backbone's own tensors. branch: see branches.choose. row: the model, for messages.
    """

    def wanted(outlines: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Files leave out tensors that are empty, and periods that follow from the config.
        return {
            name: tensor
            for name, tensor in resize(state, outlines).items()
            if name in outlines or (tensor.numel() and name != "rotary_periods")
        }

    tried = fits(file, maps, wanted, names=state)
    whole = [fit for fit in tried if fit.whole]
    if not whole:
        raise InputError(misfit(file, tried, row))
    taken, fit = choose(whole, branch, file=str(file.file))
    return Choice(taken, fit, remarks(taken, fit, whole, file))


def fill(backbone: Backbone, fit: Fit, file: Weights) -> None:
    """Load the tensors into the backbone, in the backbone's dtypes.

    InputError for a tensor of another kind, and for one that is not finite.
    """
    wanted = backbone.state_dict()
    for name, outline in fit.outlines.items():
        _check_type(outline.dtype, wanted[name].dtype, fit.source(name), file.file)
    state = fit.read(what=str(file.file))
    for name, tensor in wanted.items():
        if tensor.numel() == 0:
            state.setdefault(name, torch.zeros(tensor.shape))
        elif name == "rotary_periods" and isinstance(backbone, VisionTransformer):
            state.setdefault(name, _rotary_periods(backbone))
    # Copied: tensors mapped from the file would change or break together with it.
    for name, tensor in wanted.items():
        state[name] = state[name].to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    problem = not_finite({fit.source(name): tensor for name, tensor in state.items()})
    if problem is not None:
        raise InputError(
            f"{file.file} holds {problem}, so its weights cannot be used. Use an earlier checkpoint"
            " of that training."
        )
    backbone.load_state_dict(state, assign=True)


def _rotary_periods(backbone: VisionTransformer) -> Tensor:
    """Return the periods of the config: the backbone's own have no data yet."""
    return VisionTransformer(dataclasses.replace(backbone.config, depth=0)).rotary_periods


def _check_type(theirs: torch.dtype, ours: torch.dtype, name: str, file: Path) -> None:
    if theirs.is_floating_point and theirs.itemsize == 1:
        raise InputError(
            f"{file} stores {name} as {_dtype(theirs)}, which cannot be read without its scales."
            " Save the weights as float32, float16 or bfloat16."
        )
    if theirs.is_floating_point != ours.is_floating_point or theirs.is_complex:
        raise InputError(
            f"{file} stores {name} as {_dtype(theirs)}, not {_dtype(ours)}. Use the file as it was"
            " published."
        )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def folder_geometry(
    file: Weights, weights: Path | None, default: Geometry
) -> tuple[Geometry, dict[str, str]]:
    """Return how a folder prepares images, or `default`, and a note for the origin.

    weights: what the user named. Without it, a model's name means the recipe of its row, even if
    the download has a preprocessor_config.json.
    """
    if weights is None or not (file.file.is_dir() or file.file.name in HUGGING_FACE_FILES):
        return default, {}
    preprocessor = find_preprocessor(file.file if file.file.is_dir() else file.file.parent)
    if preprocessor is None:
        return default, {}
    geometry = read_preprocessor(preprocessor, patch=default.patch, default=default)
    return geometry, {PREPROCESSING: preprocessor.name}


def origin_of(file: Weights, source: str, branch: str) -> dict[str, str]:
    """Return where weights come from, for the header and the model file."""
    origin = {"source": source, "file": file.file.name, "sha256": file.sha256}
    return origin if branch == PLAIN else {**origin, "branch": branch}
