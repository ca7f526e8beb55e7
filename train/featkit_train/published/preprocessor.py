"""How a published folder prepares its images, read as featkit's Geometry, for torch weights and
ONNX files alike.

Read, in this order: `processor_config.json` with an `image_processor` in it,
`preprocessor_config.json` (both of transformers), and the `pretrained_cfg` of timm's `config.json`.
A field that a file leaves out has the default of the class that the file names, as in transformers
5; a file that names no class takes it from the family's own recipe. Steps that Geometry cannot
express are refused by name: padding, swapped channels, resizes that leave no one size, other
filters, and classes whose code does more than their fields say. No torch here: ONNX files are
adopted without it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

from featkit.errors import InputError
from featkit.geometry import Geometry

PREPROCESSOR, PROCESSOR, CONFIG = "preprocessor_config.json", "processor_config.json", "config.json"
# Pillow's numbers
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
INTERPOLATIONS = ("lanczos", "bilinear", "bicubic")
RESCALE_FACTOR = 1 / 255
WARPED_FROM = 384  # ConvNextImageProcessor stretches instead of cropping from this size on

_STANDARD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_SQUARE = {"height": 224, "width": 224}
_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# Defaults of transformers' classes, without `ImageProcessor` and its suffixes. Only classes that do
# what their fields say.
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "ViT": {"size": _SQUARE, "resample": 2, **_STANDARD},
    "DeiT": {
        "size": {"height": 256, "width": 256},
        "crop_size": 224,
        "do_center_crop": True,
        "resample": 3,
        **_STANDARD,
    },
    "Beit": {"size": _SQUARE, "crop_size": 224, "resample": 3, **_STANDARD},
    "DINOv3ViT": {"size": _SQUARE, "resample": 2, **_IMAGENET},
    "Siglip": {"size": _SQUARE, "resample": 3, **_STANDARD},
    "Pvt": {"size": _SQUARE, "resample": 3, **_IMAGENET},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "resample": 3, **_STANDARD},
}
# a bare number as `size` is their shorter side
SHORTER_SIDE_CLASSES = ("Bit", "CLIP", "ChineseCLIP", "Siglip", "ConvNext")
# The class that transformers takes for a file that names none, by the config's model_type.
CLASS_OF_MODEL = {
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "dinov3_vit": "DINOv3ViT",
    "dinov3_convnext": "DINOv3ViT",
    "vit": "ViT",
    "deit": "DeiT",
    "beit": "Beit",
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
    "siglip": "Siglip",
    "siglip_vision_model": "Siglip",
    "convnext": "ConvNext",
    "convnextv2": "ConvNext",
    "ijepa": "ViT",
    "swin": "ViT",
    "swinv2": "ViT",
}
EXPRESSED_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
IGNORED_STEPS = ("do_reduce_labels",)  # of segmentation maps
REFUSED_OPTIONS = (
    "rescale_offset",
    "offset",
    "keep_aspect_ratio",
    "ensure_multiple_of",
    "size_divisor",
    "patch_size",
)


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """What `config.json` says of the network: its family in transformers' word, its patch in
    pixels, its registers.

    num_registers is None where the config does not tell.
    """

    family: str
    patch: int
    num_registers: int | None


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """A recipe and the file that it was read from."""

    geometry: Geometry
    file: Path

    @property
    def in_words(self) -> str:
        """The recipe in one line, such as `shorter side to 256, center crop 224×224, bicubic, ...`."""
        return in_words(self.geometry)


def in_words(geometry: Geometry) -> str:
    """A recipe in one line."""
    size = f"{geometry.height}×{geometry.width}"
    steps = {
        "shorter_side": f"shorter side to {geometry.resize_to}, center crop {size}",
        "stretch": f"stretched to {size}",
        "cover": f"resized to cover {size}, center crop",
        "stretch_then_crop": (
            f"stretched to {geometry.resize_to} on the longer side, center crop {size}"
        ),
        "cover_then_crop": (
            f"resized to cover {geometry.resize_to} on the longer side, center crop {size}"
        ),
    }[geometry.resize]
    mean, std = (
        ", ".join(f"{number:.4g}" for number in numbers)
        for numbers in (geometry.mean, geometry.std)
    )
    return f"{steps}, {geometry.interpolation}, mean {mean}, std {std}"


def read_config(folder: Path) -> PublishedConfig:
    """Read `folder`/config.json. InputError when it is missing, no JSON object, or has no patch.

    A model of images and text, such as SigLIP, has what its vision tower is made of under
    `vision_config`.
    """
    path = folder / CONFIG
    values = _read_object(path)
    vision = values.get("vision_config")
    inner = {**values, **vision} if isinstance(vision, dict) else values
    patch = inner.get("patch_size")
    if isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1]:
        patch = patch[0]
    num_registers = inner.get("num_register_tokens")
    family = values.get("model_type")
    if not _is_count(patch):
        raise InputError(
            f"{path} has the patch_size {patch!r}; one whole number of pixels is wanted, as vision"
            " transformers have."
        )
    if num_registers is not None and (type(num_registers) is not int or num_registers < 0):
        raise InputError(
            f"{path} has the num_register_tokens {num_registers!r}; a whole number from 0 on is"
            " wanted."
        )
    return PublishedConfig(
        family=family if isinstance(family, str) else "vit",
        patch=patch,
        num_registers=num_registers,
    )


def find_preprocessor(folder: Path) -> Path | None:
    """The file in a folder that says how images are prepared; None where none does."""
    if (folder / PROCESSOR).is_file() and isinstance(
        _read_object(folder / PROCESSOR).get("image_processor"), dict
    ):
        return folder / PROCESSOR
    if (folder / PREPROCESSOR).is_file():
        return folder / PREPROCESSOR
    if (folder / CONFIG).is_file() and _timm_settings(_read_object(folder / CONFIG)) is not None:
        return folder / CONFIG
    return None


def read_preprocessor(
    path: Path, *, patch: int | None = None, default: Geometry | None = None
) -> Geometry:
    """The recipe of a folder, or of one of the files that `find_preprocessor` looks for.

    patch, in pixels: by default that of config.json beside it. default: the family's own recipe,
    for what a file leaves out that names no class. The size may be no multiple of the patch:
    `check_patch` refuses that.

    InputError, naming the file, the field and what it holds, for a file that is missing or no JSON
    object, and for all that a Geometry cannot express.
    """
    if path.is_dir():
        path = find_preprocessor(path) or path / PREPROCESSOR
    values = _read_object(path)
    patch = read_config(path.parent).patch if patch is None else patch
    if path.name == PROCESSOR:
        values = values["image_processor"]
    settings = _timm_settings(values)
    try:
        if settings is not None:
            return timm_geometry(settings, patch)
        return _read_hugging_face(path, values, patch=patch, default=default)
    except InputError as error:
        text = str(error)
        raise (
            error if str(path) in text else InputError(f"{path} cannot be used: {text}")
        ) from error


def check_patch(geometry: Geometry, *, source: object) -> None:
    """InputError, with the nearest sizes, for a recipe whose size the patch does not divide.
    source: where it comes from."""
    patch = geometry.patch
    if geometry.height % patch or geometry.width % patch:
        near = " or ".join(
            (
                f"{rows * patch}x{columns * patch}"
                if geometry.height != geometry.width
                else str(rows * patch)
            )
            for rows, columns in dict.fromkeys(
                (max(1, geometry.height // patch + more), max(1, geometry.width // patch + more))
                for more in (0, 1)
            )
        )
        raise InputError(
            f"{source} leads to images of {geometry.height}×{geometry.width}, which the patch of"
            f" {patch} does not divide; choose the size by --size {near}."
        )


# timm ---------------------------------------------------------------------------------------------


def _timm_settings(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The evaluation settings in timm's config.json, or in what TimmWrapperImageProcessor saves;
    None where there are none."""
    nested = values.get("pretrained_cfg")
    if isinstance(nested, dict):
        return nested
    # as before timm 0.9
    return (
        values if "architecture" in values and isinstance(values.get("input_size"), list) else None
    )


def timm_geometry(settings: Mapping[str, Any], patch: int) -> Geometry:
    """timm's evaluation transform (`timm.data.create_transform`) as a recipe. InputError for what
    no Geometry expresses."""
    # timm takes its default for None, 0 and ""
    given = {name: value for name, value in settings.items() if value}
    size = given.get("input_size", (3, 224, 224))
    if not (
        isinstance(size, list | tuple)
        and len(size) == 3
        and size[0] == 3
        and all(map(_is_count, size))
    ):
        raise InputError(
            f"timm's input_size is {size!r}; wanted are three channels, a height and a width, such"
            " as [3, 224, 224]."
        )
    _, height, width = size
    interpolation = given.get("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise InputError(
            f"timm resizes this model's images by {interpolation}, which featkit does not know;"
            f" known are {known}."
        )
    crop_pct = given.get("crop_pct", 0.875)
    if not _is_number(crop_pct) or not 0 < crop_pct <= 1:
        raise InputError(f"timm's crop_pct is {crop_pct!r}; wanted is a share above 0 and up to 1.")
    mode = given.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise InputError(
            f"timm's crop_mode is {mode!r}, which pads images; featkit does center and squash."
        )
    side = max(height, width)
    resize_to = math.floor(side / crop_pct)
    if mode == "squash":
        resize = "stretch" if resize_to == side else "stretch_then_crop"
    elif height == width:
        resize = "shorter_side"
    else:
        resize = "cover" if resize_to == side else "cover_then_crop"
    return Geometry(
        height=height,
        width=width,
        resize=cast(Any, resize),
        resize_to=resize_to,
        interpolation=interpolation,
        patch=patch,
        mean=_three("mean", given.get("mean", _IMAGENET["image_mean"])),
        std=_three("std", given.get("std", _IMAGENET["image_std"])),
        rounding="none" if resize == "stretch" else "even",
    )


# Hugging Face -------------------------------------------------------------------------------------


def _read_hugging_face(
    path: Path, written: Mapping[str, Any], *, patch: int, default: Geometry | None
) -> Geometry:
    named = written.get("image_processor_type") or written.get("feature_extractor_type")
    kind = _class_of(path, named)
    values = {name: value for name, value in written.items() if value is not None}
    defaults = CLASSES[kind] if named else _as_values(default) if default else CLASSES.get(kind, {})
    values = {**{name: value for name, value in defaults.items() if name not in written}, **values}
    _refuse_steps(path, values, kind)
    resample = values.get("resample")
    interpolation = _interpolation(resample)
    if interpolation is None:
        known = ", ".join(
            f"{number} ({name})" for number, name in FILTERS.items() if name in INTERPOLATIONS
        )
        name = f" ({FILTERS[resample]})" if type(resample) is int and resample in FILTERS else ""
        raise _refusal(path, "resample", f"{resample!r}{name}", f"one of {known}")
    resize, resize_to, height, width = _sizes(path, values, kind)
    mean, std = _normalization(path, values)
    return Geometry(
        height=height,
        width=width,
        resize=cast(Any, resize),
        resize_to=resize_to,
        interpolation=interpolation,
        patch=patch,
        mean=mean,
        std=std,
        rounding="none" if resize == "stretch" else "down",
    )


def _class_of(path: Path, named: object) -> str:
    """The processor's class without its suffixes, `` where neither the file nor the config beside
    it tells."""
    if not named:
        config = path.parent / CONFIG
        kind = _read_object(config).get("model_type") if config.is_file() else None
        return CLASS_OF_MODEL.get(str(kind), "")
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(named))
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise InputError(
            f"{path} names the class {named!r}, whose steps featkit does not know; known are"
            f" {known}. If it prepares images as one of these does, write that name there, such"
            " as ViTImageProcessor."
        )
    return kind


def _as_values(geometry: Geometry) -> dict[str, Any]:
    """The family's recipe in the words of a preprocessor_config.json."""
    values: dict[str, Any] = {
        "resample": {name: number for number, name in FILTERS.items()}[geometry.interpolation]
    }
    values |= {"image_mean": list(geometry.mean), "image_std": list(geometry.std)}
    size = {"height": geometry.height, "width": geometry.width}
    if geometry.resize == "stretch":
        return {**values, "size": size}
    return {
        **values,
        "size": {"shortest_edge": geometry.resize_to},
        "do_center_crop": True,
        "crop_size": size,
    }


def _refuse_steps(path: Path, values: Mapping[str, Any], kind: str) -> None:
    """InputError for a step or option that a Geometry does not have."""
    steps = [
        name
        for name in values
        if name.startswith("do_") and name not in (*EXPRESSED_STEPS, *IGNORED_STEPS)
    ]
    options = [name for name in REFUSED_OPTIONS if name in values]
    if "crop_pct" in values and kind != "ConvNext":
        options.append("crop_pct")
    for name in (*steps, *options):
        if values[name] is not False:
            raise _refusal(
                path,
                name,
                repr(values[name]),
                "no such step, which featkit's geometry cannot express",
            )
    for name in EXPRESSED_STEPS:
        if not isinstance(values.get(name, True), bool):
            raise _refusal(path, name, repr(values[name]), "true or false")
    if values.get("do_resize", True) is not True:
        raise _refusal(
            path,
            "do_resize",
            repr(values["do_resize"]),
            "true, since a model file's images have one size",
        )


def _interpolation(resample: object) -> Literal["lanczos", "bilinear", "bicubic"] | None:
    name = (
        FILTERS.get(resample)
        if type(resample) is int
        else resample.lower()
        if isinstance(resample, str)
        else None
    )
    return cast(Any, name) if name in INTERPOLATIONS else None


def _sizes(path: Path, values: Mapping[str, Any], kind: str) -> tuple[str, int, int, int]:
    """(resize, resize_to, height, width) as Geometry has them."""
    size, crops = _named_size(path, values, kind), values.get("do_center_crop", False)
    if kind == "ConvNext":
        return _convnext_sizes(path, values, size)
    crop = _crop(path, values) if crops is True else None
    if set(size) == {"shortest_edge"}:
        shorter = size["shortest_edge"]
        if crop is None:
            raise _refusal(
                path,
                "do_center_crop",
                repr(crops),
                "true, since a resize of the shorter side alone leaves no one size",
            )
        if shorter < max(crop):
            wanted = f"no more than the shorter side of {shorter}, to need no padding"
            raise _refusal(path, "crop_size", repr(values["crop_size"]), wanted)
        return "shorter_side", shorter, *crop
    if set(size) == {"height", "width"}:
        height, width = size["height"], size["width"]
        if crop in (None, (height, width)):
            return "stretch", max(height, width), height, width
        assert crop is not None
        if crop[0] > height or crop[1] > width or crop[0] * width != crop[1] * height:
            wanted = (
                f"no more than the size {height}×{width} that images are stretched to, and of its"
                " proportions"
            )
            raise _refusal(path, "crop_size", repr(values["crop_size"]), wanted)
        return "stretch_then_crop", max(height, width), *crop
    raise _refusal(
        path, "size", repr(values.get("size")), "a shortest_edge, or a height and a width"
    )


def _convnext_sizes(
    path: Path, values: Mapping[str, Any], size: Mapping[str, int]
) -> tuple[str, int, int, int]:
    """ConvNextImageProcessor crops by `crop_pct` below 384 pixels and stretches from there on."""
    if set(size) != {"shortest_edge"}:
        raise _refusal(
            path,
            "size",
            repr(values.get("size")),
            "a shortest_edge, as ConvNextImageProcessor takes it",
        )
    if values.get("do_center_crop", False) is True:
        raise _refusal(
            path,
            "do_center_crop",
            "True",
            "false, since ConvNextImageProcessor crops by its crop_pct",
        )
    side, share = size["shortest_edge"], values.get("crop_pct")
    if side >= WARPED_FROM:
        return "stretch", side, side, side
    if not _is_number(share) or not 0 < share <= 1:
        raise _refusal(path, "crop_pct", repr(share), "a share above 0 and up to 1")
    return "shorter_side", int(side / share), side, side


def _named_size(path: Path, values: Mapping[str, Any], kind: str) -> dict[str, int]:
    """`size` with names; a bare number, as files before 2023 have, means what the processor's class
    took it for."""
    size = values.get("size")
    if _is_count(size):
        if kind in SHORTER_SIDE_CLASSES:
            return {"shortest_edge": size}
        if kind:
            return {"height": size, "width": size}
        either = (
            f'{{"shortest_edge": {size}}} or {{"height": {size}, "width": {size}}}: write which'
        )
        raise _refusal(path, "size", repr(size), either)
    if isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    named = (
        {name: side for name, side in size.items() if side is not None}
        if isinstance(size, dict)
        else {}
    )
    if not all(_is_count(side) for side in named.values()):
        raise _refusal(path, "size", repr(size), "whole numbers of pixels")
    return named


def _crop(path: Path, values: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the crop."""
    crop = values.get("crop_size")
    if isinstance(crop, list) and len(crop) == 2:
        crop = {"height": crop[0], "width": crop[1]}
    if _is_count(crop):
        return crop, crop
    if isinstance(crop, dict) and _is_count(crop.get("height")) and _is_count(crop.get("width")):
        return crop["height"], crop["width"]
    raise _refusal(
        path, "crop_size", repr(crop), "a whole number of pixels, or a height and a width"
    )


def _normalization(
    path: Path, values: Mapping[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """mean and std of pixels in 0 .. 1, whatever the file multiplies pixels by before it
    normalizes."""
    factor = (
        values.get("rescale_factor", RESCALE_FACTOR)
        if values.get("do_rescale", True) is True
        else 1.0
    )
    if not _is_number(factor) or factor <= 0:
        raise _refusal(path, "rescale_factor", repr(factor), "a number above 0, such as 1/255")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if values.get("do_normalize", True) is True:
        try:
            mean, std = (_three(name, values.get(name)) for name in ("image_mean", "image_std"))
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}") from error
    if abs(factor / RESCALE_FACTOR - 1) < 1e-6:
        return mean, std  # exactly as written
    unit = factor * 255  # (factor * x - mean) / std = (x / 255 - mean / unit) / (std / unit)
    return (mean[0] / unit, mean[1] / unit, mean[2] / unit), (
        std[0] / unit,
        std[1] / unit,
        std[2] / unit,
    )


def _three(name: str, value: object) -> tuple[float, float, float]:
    """Three numbers, or one for all three."""
    if _is_number(value):
        return float(value), float(value), float(value)
    if (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(_is_number(part) for part in value)
    ):
        return float(value[0]), float(value[1]), float(value[2])
    raise InputError(
        f"the {name} is {value!r}; wanted are three numbers, one for each of red, green and blue."
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; fetch it from where the model was published and put it there."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({str(error).rstrip('.')}); fetch it again."
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds a {type(values).__name__}, not a JSON object; fetch it again."
        )
    return values


def _refusal(path: Path, name: str, found: str, wanted: str) -> InputError:
    return InputError(f"{path} has the {name} {found}; wanted is {wanted}.")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    # which NaN is not
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
