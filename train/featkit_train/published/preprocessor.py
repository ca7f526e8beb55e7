"""Read how a published folder prepares its images as featkit's Geometry.

It reads, in this order: `processor_config.json` if it has an `image_processor`,
`preprocessor_config.json` (both of transformers), and the `pretrained_cfg` in timm's `config.json`.
Steps that a Geometry cannot express are refused by name: padding, swapped channels, resizes without
one resulting size, other filters, and classes whose code does more than their fields say.

Used for torch weights and ONNX files alike. It does not import torch, since ONNX files are adopted
without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.published.hugging_face_preprocessing import hugging_face_geometry
from featkit_train.published.preprocessing_values import CONFIG, is_count, read_object
from featkit_train.published.timm_preprocessing import timm_geometry, timm_settings

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Facts on a network from its config.json.

    family: transformers' model_type. patch: in pixels. num_registers: None if not in the config.
    """

    family: str
    patch: int
    num_registers: int | None


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images are prepared, and the file that defines it."""

    geometry: Geometry
    file: Path

    @property
    def in_words(self) -> str:
        """One line, such as `shorter side to 256, center crop 224×224, bicubic, ...`."""
        return in_words(self.geometry)


def in_words(geometry: Geometry) -> str:
    """Describe a geometry in one line."""
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
    """Read `folder`/config.json. InputError if it is missing, not a JSON object, or has no patch.

    A model of images and text, such as SigLIP, describes its vision tower under `vision_config`.
    """
    path = folder / CONFIG
    values = read_object(path)
    vision = values.get("vision_config")
    inner = {**values, **vision} if isinstance(vision, dict) else values
    patch = inner.get("patch_size")
    if isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1]:
        patch = patch[0]
    num_registers = inner.get("num_register_tokens")
    family = values.get("model_type")
    if not is_count(patch):
        raise InputError(
            f"{path} has the patch_size {patch!r}. It has to be one whole number of pixels, as in"
            " vision transformers."
        )
    if num_registers is not None and (type(num_registers) is not int or num_registers < 0):
        raise InputError(
            f"{path} has the num_register_tokens {num_registers!r}. It has to be a whole number, 0"
            " or more."
        )
    return PublishedConfig(
        family=family if isinstance(family, str) else "vit",
        patch=patch,
        num_registers=num_registers,
    )


def find_preprocessor(folder: Path) -> Path | None:
    """Return the file in a folder that says how images are prepared, or None."""
    if (folder / PROCESSOR).is_file() and isinstance(
        read_object(folder / PROCESSOR).get("image_processor"), dict
    ):
        return folder / PROCESSOR
    if (folder / PREPROCESSOR).is_file():
        return folder / PREPROCESSOR
    if (folder / CONFIG).is_file() and timm_settings(read_object(folder / CONFIG)) is not None:
        return folder / CONFIG
    return None


def read_preprocessor(
    path: Path, *, patch: int | None = None, default: Geometry | None = None
) -> Geometry:
    """Return the geometry of a folder, or of one of the files that `find_preprocessor` looks for.

    patch, in pixels: by default from the config.json in the same folder. default: the family's own
    geometry, for fields left out by a file that names no class. The size need not be a multiple of
    the patch; `check_patch` refuses that.

    InputError, naming the file, the field and its value, for a missing file, for one that is not a
    JSON object, and for everything that a Geometry cannot express.
    """
    if path.is_dir():
        path = find_preprocessor(path) or path / PREPROCESSOR
    values = read_object(path)
    patch = read_config(path.parent).patch if patch is None else patch
    if path.name == PROCESSOR:
        values = values["image_processor"]
    settings = timm_settings(values)
    try:
        if settings is not None:
            return timm_geometry(settings, patch)
        return hugging_face_geometry(path, values, patch=patch, default=default)
    except InputError as error:
        text = str(error)
        raise (
            error if str(path) in text else InputError(f"{path} cannot be used: {text}")
        ) from error


def check_patch(geometry: Geometry, *, source: object) -> None:
    """Raise InputError, with the nearest sizes, if the patch does not divide the size.

    source: the origin of the geometry, for the message.
    """
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
            f"{source} makes images of {geometry.height}×{geometry.width}, which is not a multiple"
            f" of the patch size {patch}. Set another size with --size {near}."
        )
