"""How a picture becomes the square that a model was made for: the resize and crop recipes of the families, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from featkit.errors import InputError

RESIZES = ("shorter_side", "stretch", "cover")
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Resize, then crop the centre. Sizes in pixels; mean and std of pixels in 0 .. 1, for the record: the graph has them."""

    height: int  # native input
    width: int
    resize: Literal["shorter_side", "stretch", "cover"]
    # The shorter side after resizing; nothing to "stretch", which resizes to (height, width), nor to "cover", which keeps the
    # proportions and resizes until the picture just covers (height, width).
    resize_to: int
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("height", "width", "resize_to", "patch"):
            _check(_is_count(getattr(self, name)), name, getattr(self, name), "a whole number of pixels above 0")
        _check(self.resize in RESIZES, "resize", self.resize, " or ".join(RESIZES))
        _check(self.interpolation in tuple(RESAMPLING), "interpolation", self.interpolation, " or ".join(RESAMPLING))
        _check(_are_three_numbers(self.mean), "mean", self.mean, "three numbers")
        _check(_are_three_numbers(self.std) and min(self.std) > 0, "std", self.std, "three numbers above 0")
        if self.resize == "shorter_side" and self.resize_to < max(self.height, self.width):
            raise InputError(
                f"The geometry resizes to {self.resize_to} pixels, less than its crop of {self.height}×{self.width}."
            )

    @property
    def shorter_side(self) -> int:
        """What pictures may be decoded down to without losing what `apply` needs."""
        return self.resize_to if self.resize == "shorter_side" else max(self.height, self.width)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 of any size to (height, width, 3) uint8, antialiased.

        Crop and resize are one step over the box that the crop comes from, so that a strip of 3,000 × 2 pixels never
        becomes a strip of a thousand times the model's input.
        """
        image = Image.fromarray(pixels)
        resized = image.resize(
            (self.width, self.height), RESAMPLING[self.interpolation], box=self._box(*pixels.shape[:2]), reducing_gap=2.0
        )
        return np.asarray(resized)

    def _box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what the crop shows, in the picture's own pixels."""
        if self.resize == "stretch":
            return (0.0, 0.0, float(width), float(height))
        covering = min(height / self.height, width / self.width)
        scale = covering if self.resize == "cover" else min(height, width) / self.resize_to
        # min(): rounding may make the box larger than the picture by a part in 10^16, which Pillow refuses.
        crop_width, crop_height = min(self.width * scale, width), min(self.height * scale, height)
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        return (left, top, min(left + crop_width, width), min(top + crop_height, height))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Geometry:
        """Read `to_dict` back. InputError for fields that are missing, unknown, or hold what no geometry has."""
        names = {field.name for field in dataclasses.fields(cls)}
        missing, unknown = sorted(names - set(mapping)), sorted(set(mapping) - names)
        if missing or unknown:
            raise InputError(f"The geometry lacks {missing or 'nothing'} and has {unknown or 'nothing'} that is unknown here.")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in mapping.items()}
        return cls(**values)


def _check(holds: bool, name: str, found: object, wanted: str) -> None:
    if not holds:
        raise InputError(f"The geometry's {name} is {found!r}; it has to be {wanted}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_three_numbers(value: object) -> bool:
    # from a file all the same, whatever the annotation says
    return isinstance(value, tuple) and len(value) == 3 and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
