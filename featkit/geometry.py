"""How an image is resized and cropped for a model: the recipes of the model families, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from featkit.errors import InputError

RESIZES = ("shorter_side", "stretch", "cover", "stretch_then_crop", "cover_then_crop")
ROUNDINGS = ("none", "down", "even")
MAX_SIDE = 16_384  # pixels; a model file that asks for more would exhaust memory
MAX_SHOWN = 200  # characters of a bad value in a message
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A recipe: resize, then crop the center. Sizes are in pixels.

    mean and std are those of pixels in 0 .. 1. They are recorded here only: the exported graph
    normalizes.
    """

    height: int  # of the model's native input
    width: int
    # shorter_side: resize the shorter side to `resize_to`, then crop.
    # stretch: resize to (height, width), ignoring the aspect ratio.
    # cover: resize, keeping the aspect ratio, until the image just covers (height, width); crop.
    # *_then_crop: do the same to a larger rectangle of the same shape whose longer side is
    # `resize_to`, then crop its center.
    resize: Literal["shorter_side", "stretch", "cover", "stretch_then_crop", "cover_then_crop"]
    resize_to: int  # stretch and cover ignore it
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    # none: crop exactly in the middle. down and even: resize to whole pixels first, then round the
    # crop's offset, either down as transformers does, or half to even as torchvision and timm do.
    rounding: Literal["none", "down", "even"] = "none"

    def __post_init__(self) -> None:
        for name in ("height", "width", "resize_to", "patch"):
            wanted = f"a whole number of pixels from 1 to {MAX_SIDE:,}"
            _check(_is_count(getattr(self, name)), name, getattr(self, name), wanted)
        _check(self.resize in RESIZES, "resize", self.resize, " or ".join(RESIZES))
        _check(self.rounding in ROUNDINGS, "rounding", self.rounding, " or ".join(ROUNDINGS))
        _check(
            self.interpolation in tuple(RESAMPLING),
            "interpolation",
            self.interpolation,
            " or ".join(RESAMPLING),
        )
        _check(_are_three_numbers(self.mean), "mean", self.mean, "three numbers")
        _check(
            _are_three_numbers(self.std) and min(self.std) > 0,
            "std",
            self.std,
            "three numbers above 0",
        )
        if self._crops_after_resize and self.resize_to < max(self.height, self.width):
            raise InputError(
                f"The geometry resizes to {self.resize_to} pixels, which is less than its crop of"
                f" {self.height}×{self.width}; set resize_to to at least the longer side."
            )

    @property
    def shorter_side(self) -> int:
        """The smallest shorter side, in pixels, that an image may be decoded at for `apply`."""
        return self.resize_to if self._crops_after_resize else max(self.height, self.width)

    @property
    def _crops_after_resize(self) -> bool:
        return self.resize == "shorter_side" or self.resize.endswith("_then_crop")

    def at_size(self, height: int, width: int) -> Geometry:
        """Return the same recipe for another size.

        A square keeps the ratio of crop to resize; a rectangle is covered.
        """
        longer = max(height, width)
        if self._crops_after_resize and (height == width or self.resize != "shorter_side"):
            resize_to = round(longer * self.resize_to / max(self.height, self.width))
            return dataclasses.replace(self, height=height, width=width, resize_to=resize_to)
        resize = "cover" if self.resize == "shorter_side" else self.resize
        return dataclasses.replace(
            self, height=height, width=width, resize=resize, resize_to=longer
        )

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Resize pixels (H, W, 3) uint8 of any size to (height, width, 3) uint8, antialiased.

        Only the box that the crop shows is resized, so an image of 3,000 × 2 pixels never becomes a
        strip a thousand times as large as the model's input.
        """
        image = Image.fromarray(pixels)
        resized = image.resize(
            (self.width, self.height),
            RESAMPLING[self.interpolation],
            box=self._box(*pixels.shape[:2]),
            reducing_gap=2.0,
        )
        return np.asarray(resized)

    def _box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return (left, top, right, bottom) of the cropped region, in the image's own pixels."""
        if self.resize == "stretch":
            return (0.0, 0.0, float(width), float(height))
        if self.rounding != "none":
            return self._whole_box(height, width)
        kept = self._kept
        if self.resize == "stretch_then_crop":
            crop_width, crop_height = width * kept, height * kept
        else:
            covering = min(height / self.height, width / self.width)
            scales = {"cover": covering, "cover_then_crop": covering * kept}
            scale = scales.get(self.resize, min(height, width) / self.resize_to)
            # Rounding may make the box larger than the image by one part in 10^16, which Pillow
            # refuses; hence min().
            crop_width, crop_height = (
                min(self.width * scale, width),
                min(self.height * scale, height),
            )
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        return (left, top, min(left + crop_width, width), min(top + crop_height, height))

    @property
    def _kept(self) -> float:
        """Ratio of the crop's side to that of the rectangle it is cut from; 1 without one."""
        return (
            max(self.height, self.width) / self.resize_to
            if self.resize.endswith("_then_crop")
            else 1.0
        )

    def _whole_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Like `_box`, as if the image were first resized to whole pixels and then cropped."""
        resized_height, resized_width = self._resized(height, width)
        top, left = (
            (side - crop) / 2
            for side, crop in ((resized_height, self.height), (resized_width, self.width))
        )
        top, left = (int(side) if self.rounding == "down" else round(side) for side in (top, left))
        scale_y, scale_x = height / resized_height, width / resized_width
        right, bottom = (
            min((left + self.width) * scale_x, width),
            min((top + self.height) * scale_y, height),
        )
        return (left * scale_x, top * scale_y, right, bottom)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the whole resized image, at least those of the crop."""
        if self.resize == "shorter_side":
            short = min(height, width)
            return int(self.resize_to * height / short), int(self.resize_to * width / short)
        rectangle = round(self.height / self._kept), round(self.width / self._kept)
        if self.resize == "stretch_then_crop":
            return rectangle
        scale = min(height / rectangle[0], width / rectangle[1])
        return max(round(height / scale), self.height), max(round(width / scale), self.width)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        # Older releases refuse the key `rounding`, so its default is left out.
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        if self.rounding == "none":
            del values["rounding"]
        return values

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Geometry:
        """Read what `to_dict` returns. Raises InputError for missing, unknown or invalid fields."""
        if not isinstance(mapping, Mapping):  # a file may hold anything, whatever the annotation
            raise InputError(
                f"The geometry is {str(mapping)[:MAX_SHOWN]!r}; it has to be an object."
            )
        names = {field.name for field in dataclasses.fields(cls)}
        missing, unknown = sorted(names - {"rounding"} - set(mapping)), sorted(set(mapping) - names)
        if missing or unknown:
            extra = str(unknown or "nothing")[:MAX_SHOWN]
            raise InputError(
                f"The geometry lacks {missing or 'nothing'} and has unknown fields: {extra}."
            )
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in mapping.items()
        }
        return cls(**values)


def _check(holds: bool, name: str, found: object, wanted: str) -> None:
    if not holds:
        shown = repr(found)
        shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
        raise InputError(f"The geometry's {name} is {shown}; it has to be {wanted}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE


def _are_three_numbers(value: object) -> bool:
    # The value comes from a file. The comparison also refuses NaN, and integers too large for a
    # float.
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(v, int | float) and abs(v) < 1e30 for v in value)
    )
