"""Published weights as a backbone: by name, from a local file or from the hub, every key accounted for.

Families keep their own position rule, geometry and statistics: they stand in `zoo`. Names in files stand in `key_maps`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.networks.base import Backbone
from featkit_train.networks.borrowed import ConvNeXt, ResNet, TimmModel
from featkit_train.networks.vit import VisionTransformer, ViTConfig
from featkit_train.published import key_maps
from featkit_train.published.downloads import download, download_timm
from featkit_train.published.key_maps import KeyMap, listed, rename
from featkit_train.published.preprocessor import find_preprocessor, read_preprocessor, timm_geometry
from featkit_train.published.weight_files import CONFIG, Weights, read_json, read_weights
from featkit_train.published.zoo import PUBLISHED, Published, find_published
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, load_backbone

TIMM = "timm:"
PREPROCESSING = "preprocessing"  # in an origin: the file that the geometry was read from, where it is not the family's own
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder whose other files speak of them
HUGGING_FACE_KINDS = {"dinov2": "dinov2", "dinov2_with_registers": "dinov2", "dinov3_vit": "dinov3"}  # model_type to family


def load_pretrained(
    name: str, *, weights: Path | None = None, branch: str = "teacher", quiet: bool = False
) -> tuple[Backbone, BackboneInfo]:
    """The backbone of that name in evaluation mode, and what it is.

    name: of a published backbone (`dinov2_vits14`, `dinov2-small`, `facebook/dinov2-small`), `timm:NAME`, or a folder or
    file: a run of `featkit train`, or a folder of Hugging Face's with its config.json.
    weights: a local file or folder, instead of the hub. branch: of a training checkpoint, teacher or student.
    InputError for a name nobody knows, and for weights that are not the model's: the first few keys are named.
    EnvironmentProblem when the hub is out of reach or does not let this user in; it says which file to fetch.
    """
    if name.startswith(TIMM):
        return _load_timm(name.removeprefix(TIMM), weights, quiet=quiet)
    published = find_published(name)
    if published is not None:
        return load_published(published, weights=weights, branch=branch, quiet=quiet)
    path = Path(name)
    if (
        (path / BACKBONE_FILE).is_file()
        or (path.suffix == ".safetensors" and path.is_file())
        or (path / "config.yaml").is_file()
    ):
        if weights is not None:
            raise InputError(f"{path} is a run of its own; leave out --weights, or name a published model to load them into.")
        return load_backbone(path)
    if path.is_dir():
        return load_published(_recognise(path), weights=path, branch=branch, quiet=quiet)
    if path.is_file():
        raise InputError(f"{path} does not say which model it is of; name that, and pass the file as its --weights.")
    raise InputError(_unknown(name))


def load_published(
    published: Published, *, weights: Path | None = None, branch: str = "teacher", quiet: bool = False
) -> tuple[Backbone, BackboneInfo]:
    """The backbone of a row of the zoo; see load_pretrained."""
    found = read_weights(weights or download(published, quiet=quiet), branch=branch)
    backbone = build(published)
    _fill(backbone, found, _key_map(published, found), what=f"{found.file}, read as {published.name},")
    geometry, note = _prepared_as(found, weights, published.geometry)
    return backbone.eval(), BackboneInfo(
        name=published.name,
        family=published.family,
        geometry=geometry,
        licence=published.licence,
        origin={**_origin(found, published.source), **note},
    )


def build(published: Published) -> Backbone:
    """The network of a row, with weights yet to come: none are drawn and no memory is taken."""
    with torch.device("meta"):
        if published.kind == "vit":
            return VisionTransformer(ViTConfig(**published.arch))
        if published.kind == "resnet":
            return ResNet(**published.arch)
        return ConvNeXt(**published.arch)


def with_depth(published: Published, depth: int) -> Published:
    """The same ViT of so many blocks, for trying what a whole one would take too long or too much memory for."""
    return dataclasses.replace(published, arch={**published.arch, "depth": depth})


def _load_timm(arch: str, weights: Path | None, *, quiet: bool) -> tuple[Backbone, BackboneInfo]:
    backbone = TimmModel(arch)
    settings: Mapping[str, Any] = backbone.body.pretrained_cfg
    found = read_weights(weights or download_timm(arch, settings, quiet=quiet))
    _fill(backbone, found, key_maps.TIMM, what=f"{found.file}, read as timm's {arch},")
    geometry, note = _prepared_as(found, weights, timm_geometry(settings, backbone.patch))
    return backbone.eval(), BackboneInfo(
        name=arch,
        family="timm",
        geometry=geometry,
        licence=str(settings.get("license") or "see the model's card"),
        origin={**_origin(found, f"hf.co/{settings.get('hf_hub_id') or 'timm/' + arch}"), **note},
    )


def _prepared_as(found: Weights, weights: Path | None, default: Geometry) -> tuple[Geometry, dict[str, str]]:
    """How the folder that the user named prepares its pictures, else the family's own recipe; and a note for the origin.

    Only for a folder that the user named: a name alone stands for the recipe of its row.
    """
    if weights is None or not (found.file.is_dir() or found.file.name in HUGGING_FACE_FILES):
        return default, {}
    folder = found.file if found.file.is_dir() else found.file.parent
    file = find_preprocessor(folder)
    if file is None:
        return default, {}
    return read_preprocessor(file, patch=default.patch, default=default), {PREPROCESSING: file.name}


def _key_map(published: Published, found: Weights) -> KeyMap:
    """By what the file itself looks like: names as their authors or as Hugging Face writes them."""
    hugging_face = any(name.startswith(("embeddings.", "stages.0.downsample_layers", "model.stages")) for name in found.tensors)
    if published.kind == "resnet":
        return key_maps.TORCHVISION_RESNET
    if published.kind == "convnext":
        return key_maps.HUGGING_FACE_CONVNEXT if hugging_face else key_maps.OFFICIAL_CONVNEXT
    if not hugging_face:
        return key_maps.OFFICIAL
    if published.family == "dinov3":
        gated = published.arch.get("mlp") == "swiglu"
        return key_maps.HUGGING_FACE_DINOV3_GATED if gated else key_maps.HUGGING_FACE_DINOV3
    return key_maps.HUGGING_FACE_DINOV2


def _fill(backbone: Backbone, found: Weights, keys: KeyMap, *, what: str) -> None:
    """Put the tensors in their places, as float32. InputError when one is missing, left over or of another shape.

    They are copied: those of the file are mapped from it, and would change or break with it.
    """
    state = rename(found.tensors, keys, what=what)
    wanted = backbone.state_dict()
    for name, tensor in wanted.items():  # what files leave out since it is empty or follows from the config
        if tensor.numel() == 0:
            state.setdefault(name, torch.zeros(tensor.shape))
        elif name == "rotary_periods" and isinstance(backbone, VisionTransformer):
            state.setdefault(name, VisionTransformer(dataclasses.replace(backbone.config, depth=0)).rotary_periods)
    missing = [name for name in wanted if name not in state]
    surplus = [name for name in state if name not in wanted]
    if missing or surplus:
        lacks = f"lacks {listed(missing)} ({len(missing)} of {len(wanted)})" if missing else ""
        has = f"has {listed(surplus)} that the model has no place for" if surplus else ""
        raise InputError(f"{what} {' and '.join(filter(None, (lacks, has)))}; it is another model's file, or not whole.")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{what} has {name} of shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}; it is another model's file."
            )
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise InputError(
                f"{what} has {name} as {_dtype(state[name])}, not {_dtype(tensor)}; give the file as it was published."
            )
        state[name] = state[name].to(tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    backbone.load_state_dict(state, assign=True)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _origin(found: Weights, source: str) -> dict[str, str]:
    return {"source": source, "file": found.file.name, "sha256": found.sha256}


def _recognise(folder: Path) -> Published:
    """Which published backbone a folder of Hugging Face's holds, by its config.json; of two alike, by its statistics.

    Other statistics, as a fine-tuned model may have, are no reason to refuse it.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} has neither {BACKBONE_FILE} nor {CONFIG}; name the folder of a run, one as Hugging Face keeps it, or a "
            "published model with the folder as its --weights."
        )
    config = read_json(folder / CONFIG)
    kind, width, depth = (config.get(name) for name in ("model_type", "hidden_size", "num_hidden_layers"))
    alike = []
    for row in PUBLISHED.values():
        if row.kind == "convnext":
            same = kind == "dinov3_convnext" and [list(row.arch["dims"]), list(row.arch["depths"])] == [
                config.get("hidden_sizes"),
                config.get("depths"),
            ]
        else:
            same = (
                row.kind == "vit"
                and row.family == HUGGING_FACE_KINDS.get(str(kind))
                and (row.arch["width"], row.arch["depth"]) == (width, depth)
                and (row.arch.get("mlp") == "swiglu") == bool(config.get("use_gated_mlp") or config.get("use_swiglu_ffn"))
                and row.arch.get("num_registers", 0) == config.get("num_register_tokens", 0)
            )
        if same:
            alike.append(row)
    if not alike:
        raise InputError(
            f"{folder} holds a {kind} of width {width} and {depth} blocks, which is none of the published backbones that "
            "featkit export --list shows."
        )
    file = find_preprocessor(folder)
    mean = None if file is None else read_preprocessor(file, patch=alike[0].patch, default=alike[0].geometry).mean
    return next((row for row in alike if row.geometry.mean == mean), alike[0])


def _unknown(name: str) -> str:
    known = [alias for row in PUBLISHED.values() for alias in (row.name, *row.aliases)]
    near = difflib.get_close_matches(name, known, n=3)
    nearest = f"; near to it: {', '.join(near)}" if near else ""
    return (
        f"{name} is neither a published backbone (featkit export --list shows them{nearest}), nor timm:NAME, nor a run folder, "
        f"a folder with {CONFIG}, or a file that is there."
    )
