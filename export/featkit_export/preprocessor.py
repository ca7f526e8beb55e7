"""What a Hugging Face folder says of its pictures: `preprocessor_config.json` and `config.json`, read as featkit's geometry.

Left out, and refused by name: padding, swapped channels, resizes that leave no one size, filters that Geometry does not have.
The one thing that differs is rounding: those processors resize whole pictures to whole pixels and crop there, Geometry crops
and resizes in one step, so that the two may lie up to half a pixel apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from featkit.errors import InputError
from featkit.geometry import Geometry

PREPROCESSOR, CONFIG = "preprocessor_config.json", "config.json"
INTERPOLATIONS: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's
SHORTER_SIDE_CLASSES = ("Bit", "CLIP")  # a bare number as `size` is their shorter side
SQUARE_CLASSES = ("ViT", "DeiT", "Beit", "DINOv3ViT")  # and both sides of these
RESCALE_FACTOR = 1 / 255
# What a picture may not go through, as its processor's option.
REFUSED = (
    "do_pad",
    "do_flip_channel_order",
    "do_grayscale",
    "do_thumbnail",
    "do_align_long_axis",
    "do_crop_margin",
    "do_image_splitting",
    "rescale_offset",
    "offset",
    "crop_pct",
)


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """What `config.json` says of the network: its family in transformers' word, its patch in pixels, its registers."""

    family: str
    patch: int
    num_registers: int


def read_config(folder: Path) -> PublishedConfig:
    """Read `folder`/config.json. InputError when it is missing, no JSON object, or has no patch."""
    path = folder / CONFIG
    values = _read_object(path)
    patch = values.get("patch_size")
    if isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1]:
        patch = patch[0]
    num_registers = values.get("num_register_tokens")
    num_registers = 0 if num_registers is None else num_registers
    family = values.get("model_type")
    if not _is_count(patch):
        raise InputError(
            f"{path} has the patch_size {patch!r}; one whole number of pixels is wanted, as vision transformers have."
        )
    if not isinstance(num_registers, int) or isinstance(num_registers, bool) or num_registers < 0:
        raise InputError(f"{path} has the num_register_tokens {num_registers!r}; a whole number from 0 on is wanted.")
    return PublishedConfig(family=family if isinstance(family, str) else "vit", patch=patch, num_registers=num_registers)


def read_preprocessor(path: Path, *, patch: int | None = None) -> Geometry:
    """The geometry of a folder with a preprocessor_config.json, or of that file.

    patch, in pixels: by default that of config.json beside it. InputError, naming the file, the field and what it holds, for
    a file that is missing or no JSON object, and for all that a Geometry cannot express.
    """
    path = path / PREPROCESSOR if path.is_dir() else path
    values = {name: value for name, value in _read_object(path).items() if value is not None}
    patch = read_config(path.parent).patch if patch is None else patch
    for name in REFUSED:
        if values.get(name, False) is not False:
            raise _refusal(path, name, values[name], "no such step, which featkit's geometry cannot express")
    if values.get("do_resize", True) is not True:
        raise _refusal(path, "do_resize", values["do_resize"], "true, since a model file's pictures have one size")
    resample = values.get("resample")
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in INTERPOLATIONS:
        known = ", ".join(f"{number} ({name})" for number, name in INTERPOLATIONS.items())
        raise _refusal(path, "resample", resample, f"one of {known}")
    resize, resize_to, height, width = _sizes(path, values)
    for side in (height, width):
        if side % patch:
            raise InputError(
                f"{path} leads to pictures of {height}×{width}, which the patch of {patch} does not divide; correct it."
            )
    mean, std = _normalisation(path, values)
    try:
        return Geometry(
            height=height,
            width=width,
            resize=resize,
            resize_to=resize_to,
            interpolation=INTERPOLATIONS[resample],
            patch=patch,
            mean=mean,
            std=std,
        )
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from error


def _sizes(path: Path, values: Mapping[str, Any]) -> tuple[Literal["shorter_side", "stretch"], int, int, int]:
    """(resize, resize_to, height, width) as Geometry has them."""
    size, crops = _named_size(path, values), values.get("do_center_crop", False)
    crop = _crop(path, values) if crops is True else None
    if set(size) == {"shortest_edge"}:
        shorter = size["shortest_edge"]
        if crop is None:
            raise _refusal(path, "do_center_crop", crops, "true, since a resize of the shorter side alone leaves no one size")
        if shorter < max(crop):
            raise _refusal(
                path, "crop_size", values["crop_size"], f"no more than the shorter side of {shorter}, to need no padding"
            )
        return "shorter_side", shorter, *crop
    if set(size) == {"height", "width"}:
        height, width = size["height"], size["width"]
        if crop not in (None, (height, width)):
            raise _refusal(path, "crop_size", values["crop_size"], f"the size {height}×{width} that pictures are stretched to")
        return "stretch", max(height, width), height, width
    raise _refusal(path, "size", values.get("size"), "a shortest_edge, or a height and a width")


def _named_size(path: Path, values: Mapping[str, Any]) -> dict[str, int]:
    """`size` with names; a bare number, as files before 2023 have, means what the processor's class took it for."""
    size = values.get("size")
    if _is_count(size):
        processor = str(values.get("image_processor_type", values.get("feature_extractor_type", "")))
        if processor.startswith(SHORTER_SIDE_CLASSES):
            return {"shortest_edge": size}
        if processor.startswith(SQUARE_CLASSES):
            return {"height": size, "width": size}
        raise _refusal(path, "size", size, f'{{"shortest_edge": {size}}} or {{"height": {size}, "width": {size}}}: write which')
    named = {name: side for name, side in size.items() if side is not None} if isinstance(size, dict) else {}
    if not all(_is_count(side) for side in named.values()):
        raise _refusal(path, "size", size, "whole numbers of pixels")
    return named


def _crop(path: Path, values: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the crop."""
    crop = values.get("crop_size")
    if _is_count(crop):
        return crop, crop
    if isinstance(crop, dict) and _is_count(crop.get("height")) and _is_count(crop.get("width")):
        return crop["height"], crop["width"]
    raise _refusal(path, "crop_size", crop, "a whole number of pixels, or a height and a width")


def _normalisation(path: Path, values: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """mean and std of pixels in 0 .. 1, whatever the file multiplies pixels by before it normalises."""
    factor = values.get("rescale_factor", RESCALE_FACTOR) if values.get("do_rescale", True) is True else 1.0
    if not _is_number(factor) or factor <= 0:
        raise _refusal(path, "rescale_factor", factor, "a number above 0, such as 1/255")
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if values.get("do_normalize", True) is True:
        mean, std = (_three(path, name, values.get(name)) for name in ("image_mean", "image_std"))
    if abs(factor / RESCALE_FACTOR - 1) < 1e-6:
        return mean, std  # exactly as written
    unit = factor * 255  # (factor * x - mean) / std = (x / 255 - mean / unit) / (std / unit)
    return (mean[0] / unit, mean[1] / unit, mean[2] / unit), (std[0] / unit, std[1] / unit, std[2] / unit)


def _three(path: Path, name: str, value: object) -> tuple[float, float, float]:
    if isinstance(value, list) and len(value) == 3 and all(_is_number(part) for part in value):
        return float(value[0]), float(value[1]), float(value[2])
    raise _refusal(path, name, value, "three numbers, one for each of red, green and blue")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; name the folder that it was published in, or give the numbers yourself."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({str(error).rstrip('.')}).") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, not a JSON object; name the one that was published.")
    return values


def _refusal(path: Path, name: str, found: object, wanted: str) -> InputError:
    return InputError(f"{path} has the {name} {found!r}; wanted is {wanted}. ".rstrip())


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
