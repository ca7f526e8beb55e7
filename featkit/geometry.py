"""How a picture becomes the square that a model was made for: the resize and crop recipes of the families, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from featkit.errors import InputError

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
    resize: Literal["shorter_side", "stretch"]
    resize_to: int  # the shorter side after resizing; nothing to "stretch", which resizes to (height, width)
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.resize not in ("shorter_side", "stretch") or self.interpolation not in RESAMPLING:
            raise InputError(f"The geometry has resize {self.resize!r} and interpolation {self.interpolation!r}, unknown here.")
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
        scale = min(height, width) / self.resize_to
        crop_width, crop_height = self.width * scale, self.height * scale
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        return (left, top, left + crop_width, top + crop_height)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Geometry:
        """Read `to_dict` back. InputError for fields that are missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(mapping) != names:
            raise InputError(f"A geometry has the fields {sorted(names)}, not {sorted(mapping)}.")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in mapping.items()}
        return cls(**values)
