"""Load published weights as a backbone, by name, from a local file, or from the hub.

The file must have every tensor of the backbone in the right shape; any other content is reported.
`zoo` lists the published backbones; `key_maps` has the names of weights in files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from featkit.errors import InputError
from featkit_train.networks.base import Backbone
from featkit_train.published.anatomy import anatomy_of, rows_like
from featkit_train.published.building import build
from featkit_train.published.downloads import download
from featkit_train.published.fitting import Fit
from featkit_train.published.identify import nameless_advice
from featkit_train.published.loading import fill, find_tensors, folder_geometry, origin_of
from featkit_train.published.preprocessor import find_preprocessor, read_preprocessor
from featkit_train.published.timm_models import load_timm
from featkit_train.published.weight_files import CONFIG, Weights, read_json, read_weights
from featkit_train.published.zoo import Published, find_by_config, find_published, similar_names
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, is_featkits, load_backbone

TIMM = "timm:"


def load_pretrained(
    name: str, *, weights: Path | None = None, branch: str | None = None, quiet: bool = False
) -> tuple[Backbone, BackboneInfo]:
    """Return a backbone in evaluation mode, and what it is.

    name: a published backbone (`dinov2_vits14`, `dinov2-small` or `facebook/dinov2-small`),
    `timm:NAME`, a run folder of `featkit train`, or a folder as Hugging Face or timm keeps it, with
    its config.json.
    weights: a local file or folder to read instead of downloading. branch: which weights to take
    from a training checkpoint, `teacher`, `ema` or `student`; by default the first that it has.

    InputError for an unknown name, and for weights that do not fit, with what differs.
    EnvironmentProblem if the hub cannot be reached or refuses access, with the file to fetch.
    """
    if name.startswith(TIMM):
        return load_timm(name.removeprefix(TIMM), weights, branch=branch, quiet=quiet)
    published = find_published(name)
    if published is not None:
        return load_published(published, weights=weights, branch=branch, quiet=quiet)
    path = Path(name)
    if (path / BACKBONE_FILE).is_file() or is_featkits(path) or (path / "config.yaml").is_file():
        if weights is not None:
            raise InputError(
                f"{path} is a run folder with weights of its own. Leave out --weights, or name a"
                " published model to load them into."
            )
        return load_backbone(path)
    if path.is_dir():
        return _load_folder(path, weights or path, branch=branch, quiet=quiet)
    if path.is_file():
        raise InputError(
            f"{path} does not say which model its weights belong to. Name the model, and pass the"
            f" file as its --weights.{nameless_advice(path)}"
        )
    raise InputError(_unknown(name))


def _load_folder(
    folder: Path, weights: Path, *, branch: str | None, quiet: bool
) -> tuple[Backbone, BackboneInfo]:
    """Load a folder as timm or Hugging Face keeps it; its config.json says which model it is."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "architecture" in config:  # timm's
        arch = str(config["architecture"])
        return load_timm(arch, weights, config=config, branch=branch, quiet=quiet)
    return load_published(_recognize(folder), weights=weights, branch=branch, quiet=quiet)


def load_published(
    published: Published,
    *,
    weights: Path | None = None,
    branch: str | None = None,
    quiet: bool = False,
) -> tuple[Backbone, BackboneInfo]:
    """Return the backbone of a row of the zoo, and what it is; see load_pretrained."""
    if weights is not None and (is_featkits(weights) or is_featkits(weights / BACKBONE_FILE)):
        raise InputError(
            f"{weights} was written by `featkit train` and needs no model's name. Name it instead"
            f" of {published.name}."
        )
    file = read_weights(weights or download(published, quiet=quiet))
    state = dict(build(published).state_dict())
    maps = published.key_maps
    choice = find_tensors(file, maps, state, _resized, branch=branch, row=published)
    fitted = _adapted(published, choice.fit.outlines)
    remarks = choice.remarks
    if fitted.patch != published.patch:
        remarks += (_other_patch(file, choice.fit, fitted, published),)
    backbone = build(fitted)
    fill(backbone, choice.fit, file)
    geometry, note = folder_geometry(file, weights, fitted.geometry)
    return backbone.eval(), BackboneInfo(
        name=fitted.name,
        family=published.family,
        geometry=geometry,
        license=published.license,
        origin={**origin_of(file, published.source, choice.branch), **note},
        remarks=remarks,
    )


def _resized(state: Mapping[str, Tensor], outlines: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ViT's tensors with the file's position table, patches and registers.

    These sizes may differ from training to training.
    """
    sized = dict(state)
    for name, free_axes in (
        ("patch_positions", (0, 1)),
        ("patch_embed.weight", (2, 3)),
        ("registers", (1,)),
    ):
        ours, theirs = state.get(name), outlines.get(name)
        if ours is not None and theirs is not None and _may_replace(ours, theirs, free_axes):
            sized[name] = theirs
    return sized


def _may_replace(ours: Tensor, theirs: Tensor, free_axes: tuple[int, ...]) -> bool:
    """Return whether two tensors differ only along the free axes, and theirs is square in them."""
    if not ours.numel() or not theirs.numel() or ours.ndim != theirs.ndim:
        return False
    fixed_axes = [axis for axis in range(ours.ndim) if axis not in free_axes]
    is_square = len({theirs.shape[axis] for axis in free_axes}) == 1
    return is_square and all(ours.shape[axis] == theirs.shape[axis] for axis in fixed_axes)


def _adapted(published: Published, outlines: Mapping[str, Tensor]) -> Published:
    """Return the row with a file's position table, patches and registers.

    With another patch the native size becomes the nearest multiple, and the name says the patch.
    """
    if published.kind != "vit":
        return published
    arch = dict(published.arch)
    if "patch_positions" in outlines:
        arch["position_grid"] = outlines["patch_positions"].shape[0]
    if arch.get("num_registers"):
        arch["num_registers"] = outlines["registers"].shape[1]
    patch = arch["patch"] = outlines["patch_embed.weight"].shape[-1]
    if patch == published.patch:
        return dataclasses.replace(published, arch=arch)
    side = max(1, round(published.geometry.height / patch)) * patch
    resize_to = max(side, round(published.geometry.resize_to * side / published.geometry.height))
    geometry = dataclasses.replace(
        published.geometry, height=side, width=side, resize_to=resize_to, patch=patch
    )
    name = re.sub(rf"(?<=[a-z]){published.patch}(?!\d)", str(patch), published.name)
    return dataclasses.replace(published, name=name, arch=arch, patch=patch, geometry=geometry)


def _other_patch(file: Weights, fit: Fit, fitted: Published, published: Published) -> str:
    """Return a remark on another patch size. InputError if it is another published model's."""
    anatomy = anatomy_of(fit.outlines)
    others = [row.name for row in rows_like(anatomy)] if anatomy else []
    if others:
        raise InputError(
            f"{file.file} has patches of {fitted.patch} pixels, but {published.name} has"
            f" {published.patch}. The file fits {' or '.join(others)}: use that name."
        )
    return (
        f"{file.file.name}: its patches are {fitted.patch} pixels, not the {published.patch} of"
        f" {published.name}."
    )


def _recognize(folder: Path) -> Published:
    """Return which published backbone a Hugging Face folder holds, by its config.json.

    If two have the same sizes, the folder's mean decides. A fine-tuned model with another mean is
    treated as the first of them.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} has neither {BACKBONE_FILE} nor {CONFIG}. Name a run folder, a folder as"
            " Hugging Face keeps it, or a published model with this folder as its --weights."
        )
    config = read_json(folder / CONFIG)
    model_type = config.get("model_type")
    if not model_type:
        raise InputError(
            f"{folder / CONFIG} has no model_type, so the model is unknown. Name one that featkit"
            f" export --list shows, with this folder as its --weights.{nameless_advice(folder)}"
        )
    rows = find_by_config(config)
    if not rows:
        raise InputError(
            f"{folder} holds a {model_type} of width {config.get('hidden_size')} with"
            f" {config.get('num_hidden_layers')} blocks, which is not among the published backbones"
            " that featkit export --list shows."
        )
    preprocessor = find_preprocessor(folder)
    if preprocessor is None:
        return rows[0]
    mean = read_preprocessor(preprocessor, patch=rows[0].patch, default=rows[0].geometry).mean
    return next((row for row in rows if row.geometry.mean == mean), rows[0])


def _unknown(name: str) -> str:
    near = similar_names(name)
    similar = f"; similar names: {', '.join(near)}" if near else ""
    return (
        f"{name} is not a published backbone (featkit export --list shows them{similar}),"
        f" timm:NAME, a run folder, a folder with {CONFIG}, or an existing file."
    )
