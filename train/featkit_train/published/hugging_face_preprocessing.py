"""Preprocessing files of transformers' image processors, read as a Geometry.

A field that a file leaves out has the default of the class that the file names, as in transformers
5. A file that names no class takes it from the family's own recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.published.preprocessing_values import (
    CONFIG,
    IMAGENET,
    INTERPOLATIONS,
    is_count,
    is_number,
    read_object,
    refusal,
    three_numbers,
)

# Pillow's filters by number.
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
RESCALE_FACTOR = 1 / 255
WARPED_FROM = 384  # pixels from which ConvNextImageProcessor stretches instead of cropping

_STANDARD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_SQUARE = {"height": 224, "width": 224}
_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# Defaults of transformers' classes, named without `ImageProcessor` and its suffixes. Only classes
# whose code does no more than their fields say.
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
    "DINOv3ViT": {"size": _SQUARE, "resample": 2, **IMAGENET},
    "Siglip": {"size": _SQUARE, "resample": 3, **_STANDARD},
    "Pvt": {"size": _SQUARE, "resample": 3, **IMAGENET},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "resample": 3, **_STANDARD},
}
# Classes for which a bare number as `size` means the shorter side.
SHORTER_SIDE_CLASSES = ("Bit", "CLIP", "ChineseCLIP", "Siglip", "ConvNext")
# The class that transformers uses for a file that names none, by the config's model_type.
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
IGNORED_STEPS = ("do_reduce_labels",)  # for segmentation maps
REFUSED_OPTIONS = (
    "rescale_offset",
    "offset",
    "keep_aspect_ratio",
    "ensure_multiple_of",
    "size_divisor",
    "patch_size",
)


def hugging_face_geometry(
    path: Path, written: Mapping[str, Any], *, patch: int, default: Geometry | None
) -> Geometry:
    """Return the geometry of a file's values.

    patch, in pixels. default: see preprocessor.read_preprocessor. InputError for what a Geometry
    cannot express.
    """
    class_name = written.get("image_processor_type") or written.get("feature_extractor_type")
    kind = _class_of(path, class_name)
    defaults = CLASSES.get(kind, {}) if class_name or default is None else _as_values(default)
    # null in a file does not mean the default, so only absent fields get one.
    values = {name: value for name, value in defaults.items() if name not in written}
    values |= {name: value for name, value in written.items() if value is not None}
    _refuse_steps(path, values, kind)
    interpolation = _interpolation(path, values.get("resample"))
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
    """Return the processor's class without its suffixes; "" if neither file names it."""
    if not named:
        config = path.parent / CONFIG
        kind = read_object(config).get("model_type") if config.is_file() else None
        return CLASS_OF_MODEL.get(str(kind), "")
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(named))
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise InputError(
            f"{path} names the class {named!r}, whose steps featkit does not know; known are"
            f" {known}. If it prepares images like one of these, write that name there, such as"
            " ViTImageProcessor."
        )
    return kind


def _as_values(geometry: Geometry) -> dict[str, Any]:
    """Return a family's geometry as the fields of a preprocessor_config.json."""
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
    """Raise InputError for a step or option that a Geometry does not have."""
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
            wanted = "false or absent, since featkit has no such step"
            raise refusal(path, name, repr(values[name]), wanted)
    _check_expressed_steps(path, values)


def _check_expressed_steps(path: Path, values: Mapping[str, Any]) -> None:
    for name in EXPRESSED_STEPS:
        if not isinstance(values.get(name, True), bool):
            raise refusal(path, name, repr(values[name]), "true or false")
    if values.get("do_resize", True) is not True:
        wanted = "true, since the images of a model file have one size"
        raise refusal(path, "do_resize", repr(values["do_resize"]), wanted)


def _interpolation(path: Path, resample: object) -> Literal["lanczos", "bilinear", "bicubic"]:
    name = FILTERS.get(resample) if type(resample) is int else None
    if isinstance(resample, str):
        name = resample.lower()
    if name in INTERPOLATIONS:
        return cast(Any, name)  # type: ignore[no-any-return]
    known = [f"{number} ({name})" for number, name in FILTERS.items() if name in INTERPOLATIONS]
    given = f"{resample!r} ({name})" if type(resample) is int and name else repr(resample)
    raise refusal(path, "resample", given, f"one of {', '.join(known)}")


def _sizes(path: Path, values: Mapping[str, Any], kind: str) -> tuple[str, int, int, int]:
    """Return (resize, resize_to, height, width) as in Geometry."""
    size, crops = _named_size(path, values, kind), values.get("do_center_crop", False)
    if kind == "ConvNext":
        return _convnext_sizes(path, values, size)
    crop = _crop(path, values) if crops is True else None
    if set(size) == {"shortest_edge"}:
        shorter = size["shortest_edge"]
        if crop is None:
            raise refusal(
                path,
                "do_center_crop",
                repr(crops),
                "true, since resizing the shorter side alone leaves no one size",
            )
        if shorter < max(crop):
            wanted = f"at most the shorter side of {shorter}, so that no padding is needed"
            raise refusal(path, "crop_size", repr(values["crop_size"]), wanted)
        return "shorter_side", shorter, *crop
    if set(size) == {"height", "width"}:
        height, width = size["height"], size["width"]
        if crop in (None, (height, width)):
            return "stretch", max(height, width), height, width
        assert crop is not None
        if crop[0] > height or crop[1] > width or crop[0] * width != crop[1] * height:
            wanted = (
                f"at most the size {height}×{width} that images are stretched to, and of its"
                " proportions"
            )
            raise refusal(path, "crop_size", repr(values["crop_size"]), wanted)
        return "stretch_then_crop", max(height, width), *crop
    raise refusal(
        path, "size", repr(values.get("size")), "a shortest_edge, or a height and a width"
    )


def _convnext_sizes(
    path: Path, values: Mapping[str, Any], size: Mapping[str, int]
) -> tuple[str, int, int, int]:
    """Return the sizes of ConvNextImageProcessor: a crop below 384 pixels, else a stretch."""
    if set(size) != {"shortest_edge"}:
        raise refusal(
            path,
            "size",
            repr(values.get("size")),
            "a shortest_edge, since ConvNextImageProcessor takes no other",
        )
    if values.get("do_center_crop", False) is True:
        raise refusal(
            path,
            "do_center_crop",
            "True",
            "false, since ConvNextImageProcessor crops by its crop_pct",
        )
    side, share = size["shortest_edge"], values.get("crop_pct")
    if side >= WARPED_FROM:
        return "stretch", side, side, side
    if not is_number(share) or not 0 < share <= 1:
        raise refusal(path, "crop_pct", repr(share), "above 0 and at most 1")
    return "shorter_side", int(side / share), side, side


def _named_size(path: Path, values: Mapping[str, Any], kind: str) -> dict[str, int]:
    """Return `size` as a mapping.

    In files from before 2023 it is a bare number, whose meaning depends on the processor's class.
    """
    size = values.get("size")
    if is_count(size):
        if kind in SHORTER_SIDE_CLASSES:
            return {"shortest_edge": size}
        if kind:
            return {"height": size, "width": size}
        either = (
            f'{{"shortest_edge": {size}}} or {{"height": {size}, "width": {size}}}: write which'
        )
        raise refusal(path, "size", repr(size), either)
    if isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    named = (
        {name: side for name, side in size.items() if side is not None}
        if isinstance(size, dict)
        else {}
    )
    if not all(is_count(side) for side in named.values()):
        raise refusal(path, "size", repr(size), "whole numbers of pixels")
    return named


def _crop(path: Path, values: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (height, width) of the crop."""
    crop = values.get("crop_size")
    if isinstance(crop, list) and len(crop) == 2:
        crop = {"height": crop[0], "width": crop[1]}
    if is_count(crop):
        return crop, crop
    if isinstance(crop, dict) and is_count(crop.get("height")) and is_count(crop.get("width")):
        return crop["height"], crop["width"]
    raise refusal(
        path, "crop_size", repr(crop), "a whole number of pixels, or a height and a width"
    )


def _normalization(
    path: Path, values: Mapping[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and std for pixels in 0 .. 1, for any rescale factor in the file."""
    factor = (
        values.get("rescale_factor", RESCALE_FACTOR)
        if values.get("do_rescale", True) is True
        else 1.0
    )
    if not is_number(factor) or factor <= 0:
        raise refusal(path, "rescale_factor", repr(factor), "a number above 0, such as 1/255")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if values.get("do_normalize", True) is True:
        try:
            mean, std = (
                three_numbers(name, values.get(name)) for name in ("image_mean", "image_std")
            )
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}") from error
    if abs(factor / RESCALE_FACTOR - 1) < 1e-6:
        return mean, std  # without rounding
    unit = factor * 255  # (factor * x - mean) / std = (x / 255 - mean / unit) / (std / unit)
    return (mean[0] / unit, mean[1] / unit, mean[2] / unit), (
        std[0] / unit,
        std[1] / unit,
        std[2] / unit,
    )
