"""Published weights as a backbone: by name, from a local file or from the hub, every key accounted
for.

Families keep their own position rule, geometry and statistics: they stand in `zoo`. Names in files
stand in `key_maps`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.networks.base import Backbone
from featkit_train.networks.borrowed import TimmModel
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.anatomy import anatomy_of, rows_like
from featkit_train.published.building import MAPS, build
from featkit_train.published.downloads import download, download_timm
from featkit_train.published.fitting import PLAIN, Fit, choose, fits
from featkit_train.published.fitting import remarks as remarks_on
from featkit_train.published.identify import identify, misfit
from featkit_train.published.key_maps import KeyMap
from featkit_train.published.preprocessor import find_preprocessor, read_preprocessor, timm_geometry
from featkit_train.published.weight_files import CONFIG, Weights, read_json, read_weights
from featkit_train.published.zoo import (
    FAMILY_OF_MODEL_TYPE,
    PUBLISHED,
    Published,
    find_published,
)
from featkit_train.weights import (
    BACKBONE_FILE,
    BackboneInfo,
    is_featkits,
    load_backbone,
    not_finite,
)

TIMM = "timm:"
# in an origin: the file that the geometry was read from, where it is not the family's own
PREPROCESSING = "preprocessing"
# in a folder whose other files speak of them
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
TIMM_POSITIONS = "body.pos_embed"


def load_pretrained(
    name: str, *, weights: Path | None = None, branch: str | None = None, quiet: bool = False
) -> tuple[Backbone, BackboneInfo]:
    """The backbone of that name in evaluation mode, and what it is.

    name: of a published backbone (`dinov2_vits14`, `dinov2-small`, `facebook/dinov2-small`),
    `timm:NAME`, or a folder or file: a run of `featkit train`, or a folder of Hugging Face's or
    timm's with its config.json.
    weights: a local file or folder, instead of the hub. branch: whose weights of a training
    checkpoint, `teacher`, `ema` or `student`; by default the first of these that is there.
    InputError for a name nobody knows, and for weights that are not the model's: what differs is
    named. EnvironmentProblem when the hub is out of reach or does not let this user in; it says
    which file to fetch.
    """
    if name.startswith(TIMM):
        return _load_timm(name.removeprefix(TIMM), weights, branch=branch, quiet=quiet)
    published = find_published(name)
    if published is not None:
        return load_published(published, weights=weights, branch=branch, quiet=quiet)
    path = Path(name)
    if (path / BACKBONE_FILE).is_file() or is_featkits(path) or (path / "config.yaml").is_file():
        if weights is not None:
            raise InputError(
                f"{path} is a run of its own; leave out --weights, or name a published model to"
                " load them into."
            )
        return load_backbone(path)
    if path.is_dir():
        config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
        if "architecture" in config:  # timm's
            return _load_timm(
                str(config["architecture"]),
                weights or path,
                config=config,
                branch=branch,
                quiet=quiet,
            )
        return load_published(_recognize(path), weights=weights or path, branch=branch, quiet=quiet)
    if path.is_file():
        raise InputError(_nameless(path))
    raise InputError(_unknown(name))


def load_published(
    published: Published,
    *,
    weights: Path | None = None,
    branch: str | None = None,
    quiet: bool = False,
) -> tuple[Backbone, BackboneInfo]:
    """The backbone of a row of the zoo; see load_pretrained."""
    if weights is not None and (is_featkits(weights) or is_featkits(weights / BACKBONE_FILE)):
        raise InputError(
            f"{weights} is a run of featkit's and says itself what it is; name it in place of"
            f" {published.name}."
        )
    found = read_weights(weights or download(published, quiet=quiet))
    state = dict(build(published).state_dict())
    taken, chosen, remarks = _find(
        found, MAPS[published.kind], state, _sizes_of_a_file, branch=branch, row=published
    )
    fitted = _adapted(published, chosen.outlines)
    if fitted.patch != published.patch:
        anatomy = anatomy_of(chosen.outlines)
        others = [row.name for row in rows_like(anatomy)] if anatomy else []
        if others:
            raise InputError(
                f"{found.file} has patches of {fitted.patch} pixels, and {published.name} has"
                f" {published.patch}; the file fits {' or '.join(others)}: name that."
            )
        remarks += (
            (
                f"{found.file.name}: patches are {fitted.patch} pixels there, not the"
                f" {published.patch} of {published.name}."
            ),
        )
    backbone = build(fitted)
    _fill(backbone, chosen, found)
    geometry, note = _prepared_as(found, weights, fitted.geometry)
    return backbone.eval(), BackboneInfo(
        name=fitted.name,
        family=published.family,
        geometry=geometry,
        license=published.license,
        origin={**_origin(found, published.source, taken), **note},
        remarks=remarks,
    )


def with_depth(published: Published, depth: int) -> Published:
    """The same ViT of so many blocks, for trying what a whole one would take too long or too much
    memory for."""
    return dataclasses.replace(published, arch={**published.arch, "depth": depth})


def _find(
    found: Weights,
    maps: Sequence[KeyMap],
    state: Mapping[str, torch.Tensor],
    resized: Callable[
        [Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], dict[str, torch.Tensor]
    ],
    *,
    branch: str | None,
    row: Published | str,
) -> tuple[str, Fit, tuple[str, ...]]:
    """The branch that is taken of a file, its tensors, and what to say of the choice. InputError if
    none fits.

    state: the backbone's own tensors. resized: gives them the sizes that a file may choose.
    """

    def wanted(outlines: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Files leave out what is empty or follows from the config.
        return {
            name: tensor
            for name, tensor in resized(state, outlines).items()
            if name in outlines or (tensor.numel() and name != "rotary_periods")
        }

    tried = fits(found, maps, wanted, names=state)
    whole = [fit for fit in tried if fit.whole]
    if whole:
        taken, chosen = choose(whole, branch, file=str(found.file))
        return taken, chosen, remarks_on(taken, chosen, whole, found)
    raise InputError(misfit(found, tried, row))


def _sizes_of_a_file(
    state: Mapping[str, torch.Tensor], outlines: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A ViT's tensors with the position table, patches and registers of a file: what may differ
    from training to training."""
    sized = dict(state)
    for name, free in (
        ("patch_positions", (0, 1)),
        ("patch_embed.weight", (2, 3)),
        ("registers", (1,)),
    ):
        ours, theirs = state.get(name), outlines.get(name)
        if ours is None or theirs is None or not ours.numel() or ours.ndim != theirs.ndim:
            continue
        fixed = [at for at in range(ours.ndim) if at not in free]
        square = len(free) < 2 or theirs.shape[free[0]] == theirs.shape[free[1]]
        if square and theirs.numel() and all(ours.shape[at] == theirs.shape[at] for at in fixed):
            sized[name] = theirs
    return sized


def _adapted(published: Published, outlines: Mapping[str, torch.Tensor]) -> Published:
    """The row with the position table, patches and registers of a file, and images of a multiple
    of its patches."""
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


def _load_timm(
    arch: str,
    weights: Path | None,
    *,
    branch: str | None,
    quiet: bool,
    config: Mapping[str, Any] | None = None,
) -> tuple[Backbone, BackboneInfo]:
    """A timm model. config: the config.json of a folder as timm keeps it on the hub, with its
    options and its geometry."""
    options = _timm_options(config or {})
    told = (config or {}).get("pretrained_cfg")
    told = told if isinstance(told, dict) else {}
    backbone = TimmModel(arch, **options)
    settings: Mapping[str, Any] = {**backbone.body.pretrained_cfg, **told}
    found = read_weights(weights or download_timm(arch, settings, quiet=quiet))
    taken, chosen, remarks = _find(
        found,
        MAPS["timm"],
        dict(backbone.state_dict()),
        partial(_timm_sizes, backbone),
        branch=branch,
        row=f"timm's {arch}",
    )
    side = _timm_side(backbone, chosen.outlines)
    if side is not None:
        backbone = TimmModel(arch, **{**options, "img_size": side})
        settings = {**settings, "input_size": (3, side, side)}
        remarks += (
            (
                f"{found.file.name}: its position table is for {side} × {side} pixels, so that is"
                " the model's size."
            ),
        )
    _fill(backbone, chosen, found)
    tag = str(told.get("tag") or "")
    geometry, note = _prepared_as(found, weights, timm_geometry(settings, backbone.patch))
    return backbone.eval(), BackboneInfo(
        name=f"{arch}.{tag}" if tag and "." not in arch else arch,
        family="timm",
        geometry=geometry,
        license=str(settings.get("license") or "see the model's card"),
        origin={
            **_origin(found, f"hf.co/{settings.get('hf_hub_id') or 'timm/' + arch}", taken),
            **note,
        },
        remarks=remarks,
    )


def _timm_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of how the model was made, without what is asked for anyway."""
    options = config.get("model_args")
    options = dict(options) if isinstance(options, dict) else {}
    if config.get("global_pool"):
        options.setdefault("global_pool", config["global_pool"])
    return {
        name: value
        for name, value in options.items()
        if name not in ("num_classes", "pretrained", "dynamic_img_size")
    }


def _timm_sizes(
    backbone: TimmModel, state: Mapping[str, torch.Tensor], outlines: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A timm model's tensors with the position table of a file, where it is of another square."""
    side = _timm_side(backbone, outlines)
    return dict(state) if side is None else {**state, TIMM_POSITIONS: outlines[TIMM_POSITIONS]}


def _timm_side(backbone: TimmModel, outlines: Mapping[str, torch.Tensor]) -> int | None:
    """Height and width in pixels that a file's position table is for, where it is not the
    architecture's own."""
    ours, theirs = backbone.state_dict().get(TIMM_POSITIONS), outlines.get(TIMM_POSITIONS)
    grid = getattr(getattr(backbone.body, "patch_embed", None), "grid_size", None)
    if (
        ours is None
        or theirs is None
        or grid is None
        or ours.shape == theirs.shape
        or ours.ndim != 3
    ):
        return None
    prefix = ours.shape[1] - grid[0] * grid[1]
    rows = theirs.shape[1] - prefix if theirs.ndim == 3 else 0
    side = math.isqrt(max(0, rows))
    return (
        side * backbone.patch
        if side and side * side == rows and theirs.shape[::2] == ours.shape[::2]
        else None
    )


def _prepared_as(
    found: Weights, weights: Path | None, default: Geometry
) -> tuple[Geometry, dict[str, str]]:
    """How the folder that the user named prepares its images, else the family's own recipe; and a
    note for the origin.

    Only for a folder that the user named: a name alone stands for the recipe of its row.
    """
    if weights is None or not (found.file.is_dir() or found.file.name in HUGGING_FACE_FILES):
        return default, {}
    folder = found.file if found.file.is_dir() else found.file.parent
    file = find_preprocessor(folder)
    if file is None:
        return default, {}
    return read_preprocessor(file, patch=default.patch, default=default), {PREPROCESSING: file.name}


def _fill(backbone: Backbone, chosen: Fit, found: Weights) -> None:
    """Put the tensors in their places, as float32. InputError for numbers of another kind, and for
    one that is not finite.

    They are copied: those of the file are mapped from it, and would change or break with it.
    """
    wanted = backbone.state_dict()
    for name, outline in chosen.outlines.items():
        _check_type(outline.dtype, wanted[name].dtype, chosen.source(name), found.file)
    state = chosen.read(what=str(found.file))
    # what files leave out since it is empty or follows from the config
    for name, tensor in wanted.items():
        if tensor.numel() == 0:
            state.setdefault(name, torch.zeros(tensor.shape))
        elif name == "rotary_periods" and isinstance(backbone, VisionTransformer):
            state.setdefault(
                name,
                VisionTransformer(dataclasses.replace(backbone.config, depth=0)).rotary_periods,
            )
    for name, tensor in wanted.items():
        state[name] = state[name].to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    problem = not_finite({chosen.source(name): tensor for name, tensor in state.items()})
    if problem is not None:
        raise InputError(
            f"{found.file} holds {problem}; it cannot be used. Take an earlier checkpoint of that"
            " training."
        )
    backbone.load_state_dict(state, assign=True)


def _check_type(theirs: torch.dtype, ours: torch.dtype, name: str, file: Path) -> None:
    if theirs.is_floating_point and theirs.itemsize == 1:
        raise InputError(
            f"{file} has {name} as {_dtype(theirs)}, which means little without its scales; save"
            " the weights as float32, float16 or bfloat16."
        )
    if theirs.is_floating_point != ours.is_floating_point or theirs.is_complex:
        raise InputError(
            f"{file} has {name} as {_dtype(theirs)}, not {_dtype(ours)}; give the file as it was"
            " published."
        )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _origin(found: Weights, source: str, branch: str) -> dict[str, str]:
    origin = {"source": source, "file": found.file.name, "sha256": found.sha256}
    return origin if branch == PLAIN else {**origin, "branch": branch}


def _recognize(folder: Path) -> Published:
    """Which published backbone a folder of Hugging Face's holds, by its config.json; of two alike,
    by its statistics.

    Other statistics, as a fine-tuned model may have, are no reason to refuse it.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} has neither {BACKBONE_FILE} nor {CONFIG}; name the folder of a run, one as"
            " Hugging Face keeps it, or a published model with the folder as its --weights."
        )
    config = read_json(folder / CONFIG)
    if not config.get("model_type"):
        raise InputError(
            f"{folder / CONFIG} does not say which model the weights are of; name one that featkit"
            f" export --list shows, with the folder as its --weights.{_nameless_advice(folder)}"
        )
    kind, width, depth = (
        config.get(name) for name in ("model_type", "hidden_size", "num_hidden_layers")
    )
    alike = []
    for row in PUBLISHED.values():
        if row.kind == "convnext":
            same = kind == "dinov3_convnext" and [
                list(row.arch["dims"]),
                list(row.arch["depths"]),
            ] == [
                config.get("hidden_sizes"),
                config.get("depths"),
            ]
        else:
            same = (
                row.kind == "vit"
                and row.family == FAMILY_OF_MODEL_TYPE.get(str(kind))
                and (kind != "vit" or row.patch == config.get("patch_size"))
                and (row.arch["width"], row.arch["depth"]) == (width, depth)
                and (row.arch.get("mlp") == "swiglu")
                == bool(config.get("use_gated_mlp") or config.get("use_swiglu_ffn"))
                and row.arch.get("num_registers", 0) == config.get("num_register_tokens", 0)
            )
        if same:
            alike.append(row)
    if not alike:
        raise InputError(
            f"{folder} holds a {kind} of width {width} and {depth} blocks, which is none of the"
            " published backbones that featkit export --list shows."
        )
    file = find_preprocessor(folder)
    mean = (
        None
        if file is None
        else read_preprocessor(file, patch=alike[0].patch, default=alike[0].geometry).mean
    )
    return next((row for row in alike if row.geometry.mean == mean), alike[0])


def _nameless(path: Path) -> str:
    """What is said of a file of weights that was named in place of a model."""
    return (
        f"{path} does not say which model it is of; name the model, and pass the file as its"
        f" --weights.{_nameless_advice(path)}"
    )


def _nameless_advice(path: Path) -> str:
    """The command for the one model that the shapes fit, or for one of several."""
    rows: list[Published] = []
    with suppress(InputError):  # what is wrong with the file is said when it is read as a model's
        _, rows = identify(read_weights(path))
    if not rows:
        return ""
    names = " or ".join(row.name for row in rows)
    return (
        f" Its shapes are those of {names}: featkit export {rows[0].name} --weights {path} --out"
        " m.onnx."
    )


def _unknown(name: str) -> str:
    known = [alias for row in PUBLISHED.values() for alias in (row.name, *row.aliases)]
    near = difflib.get_close_matches(name, known, n=3)
    nearest = f"; near to it: {', '.join(near)}" if near else ""
    return (
        f"{name} is neither a published backbone (featkit export --list shows them{nearest}), nor"
        f" timm:NAME, nor a run folder, a folder with {CONFIG}, or a file that is there."
    )
