"""Load the weights of a timm model, by name or from a folder with timm's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from featkit_train.networks.base import Backbone
from featkit_train.networks.borrowed import TimmModel
from featkit_train.published.downloads import download_timm
from featkit_train.published.key_maps import TIMM
from featkit_train.published.loading import fill, find_tensors, folder_geometry, origin_of
from featkit_train.published.timm_preprocessing import timm_geometry
from featkit_train.published.weight_files import read_weights
from featkit_train.weights import BackboneInfo

POSITIONS = "body.pos_embed"
# Arguments in timm's config.json that featkit sets itself.
OWN_OPTIONS = ("num_classes", "pretrained", "dynamic_img_size")


def load_timm(
    arch: str,
    weights: Path | None,
    *,
    branch: str | None,
    quiet: bool,
    config: Mapping[str, Any] | None = None,
) -> tuple[Backbone, BackboneInfo]:
    """Return a timm model in evaluation mode, and what it is; see pretrained.load_pretrained.

    config: the config.json of a timm folder, which has the model's options and its geometry.
    """
    options = _options(config or {})
    given = (config or {}).get("pretrained_cfg")
    given = given if isinstance(given, dict) else {}
    backbone = TimmModel(arch, **options)
    settings: Mapping[str, Any] = {**backbone.body.pretrained_cfg, **given}
    file = read_weights(weights or download_timm(arch, settings, quiet=quiet))
    state = dict(backbone.state_dict())
    resize = partial(_resized, backbone)
    choice = find_tensors(file, (TIMM,), state, resize, branch=branch, row=f"timm's {arch}")
    remarks = choice.remarks
    side = _native_side(backbone, choice.fit.outlines)
    if side is not None:
        backbone = TimmModel(arch, **{**options, "img_size": side})
        settings = {**settings, "input_size": (3, side, side)}
        remarks += (
            f"{file.file.name}: its position table is for {side} × {side} pixels, so the model is"
            " built for that size.",
        )
    fill(backbone, choice.fit, file)
    tag = str(given.get("tag") or "")
    source = f"hf.co/{settings.get('hf_hub_id') or 'timm/' + arch}"
    geometry, note = folder_geometry(file, weights, timm_geometry(settings, backbone.patch))
    return backbone.eval(), BackboneInfo(
        name=f"{arch}.{tag}" if tag and "." not in arch else arch,
        family="timm",
        geometry=geometry,
        license=str(settings.get("license") or "see the model's card"),
        origin={**origin_of(file, source, choice.branch), **note},
        remarks=remarks,
    )


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments in a config.json, without those that featkit sets."""
    options = config.get("model_args")
    options = dict(options) if isinstance(options, dict) else {}
    if config.get("global_pool"):
        options.setdefault("global_pool", config["global_pool"])
    return {name: value for name, value in options.items() if name not in OWN_OPTIONS}


def _resized(
    backbone: TimmModel, state: Mapping[str, Tensor], outlines: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the model's tensors, with the file's position table if it is for another square."""
    side = _native_side(backbone, outlines)
    return dict(state) if side is None else {**state, POSITIONS: outlines[POSITIONS]}


def _native_side(backbone: TimmModel, outlines: Mapping[str, Tensor]) -> int | None:
    """Return the image side in pixels that the file's position table is for.

    None if it is the architecture's own, or cannot be the table of a square image.
    """
    ours, theirs = backbone.state_dict().get(POSITIONS), outlines.get(POSITIONS)
    grid = getattr(getattr(backbone.body, "patch_embed", None), "grid_size", None)
    if ours is None or theirs is None or grid is None or ours.shape == theirs.shape:
        return None
    if ours.ndim != 3 or theirs.ndim != 3 or theirs.shape[::2] != ours.shape[::2]:
        return None
    num_prefix = ours.shape[1] - grid[0] * grid[1]
    num_patches = theirs.shape[1] - num_prefix
    side = math.isqrt(max(0, num_patches))
    return side * backbone.patch if side and side * side == num_patches else None
