"""timm's evaluation transform, read from the `pretrained_cfg` of its config.json, as a Geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_train.published.preprocessing_values import (
    IMAGENET,
    INTERPOLATIONS,
    is_count,
    is_number,
    three_numbers,
)


def timm_settings(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the evaluation settings in a timm config.json, or None.

    TimmWrapperImageProcessor saves the same under the same name.
    """
    nested = values.get("pretrained_cfg")
    if isinstance(nested, dict):
        return nested
    is_flat = "architecture" in values and isinstance(values.get("input_size"), list)
    return values if is_flat else None  # flat: as before timm 0.9


def timm_geometry(settings: Mapping[str, Any], patch: int) -> Geometry:
    """Return timm's evaluation transform (`timm.data.create_transform`) as a Geometry.

    InputError for what a Geometry cannot express.
    """
    # timm uses its defaults for None, 0 and "".
    given = {name: value for name, value in settings.items() if value}
    height, width = _input_size(given.get("input_size", (3, 224, 224)))
    interpolation = given.get("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise InputError(
            f"timm resizes this model's images with {interpolation}, which featkit does not have;"
            f" it has {known}."
        )
    crop_pct = given.get("crop_pct", 0.875)
    if not is_number(crop_pct) or not 0 < crop_pct <= 1:
        raise InputError(f"timm's crop_pct is {crop_pct!r}; it has to be above 0 and at most 1.")
    mode = given.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        raise InputError(
            f"timm's crop_mode is {mode!r}, which pads images; featkit has only center and squash."
        )
    side = max(height, width)
    resize_to = math.floor(side / crop_pct)
    crops = resize_to != side
    if mode == "squash":
        resize = "stretch_then_crop" if crops else "stretch"
    elif height == width:
        resize = "shorter_side"
    else:
        resize = "cover_then_crop" if crops else "cover"
    return Geometry(
        height=height,
        width=width,
        resize=cast(Any, resize),
        resize_to=resize_to,
        interpolation=interpolation,
        patch=patch,
        mean=three_numbers("mean", given.get("mean", IMAGENET["image_mean"])),
        std=three_numbers("std", given.get("std", IMAGENET["image_std"])),
        rounding="none" if resize == "stretch" else "even",
    )


def _input_size(size: object) -> tuple[int, int]:
    if isinstance(size, list | tuple) and len(size) == 3 and all(map(is_count, size)):
        channels, height, width = size
        if channels == 3:
            return height, width
    raise InputError(
        f"timm's input_size is {size!r}; it has to be three channels, a height and a width, such as"
        " [3, 224, 224]."
    )
