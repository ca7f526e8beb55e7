"""Bytes to upright RGB pixels: limits before decoding, every mode Pillow opens, scaled decoding for JPEG.

What comes in is not trusted. Bytes are counted before they are parsed and pixels before they are decoded; whatever goes
wrong in between is one InputError that names the picture.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from featkit.errors import InputError

# Pillow's own bomb check is a warning at one size and an error at twice that; ours replaces both.
Image.MAX_IMAGE_PIXELS = None

Picture: TypeAlias = str | Path | bytes | Image.Image | np.ndarray

EXIF_ORIENTATION = 0x0112
THUMBNAIL_SIDE = 256  # pixels of the longer side
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose stored width is the upright height


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What a picture may cost before it is refused."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000


@dataclass(frozen=True)
class Decoded:
    """Upright RGB pixels (H, W, 3) uint8, C-contiguous, perhaps scaled down while decoding; the original's size."""

    pixels: np.ndarray
    height: int
    width: int


DEFAULT_LIMITS = ImageLimits()


def decode(
    data: bytes,
    *,
    name: str = "picture",
    limits: ImageLimits = DEFAULT_LIMITS,
    shorter_side: int | None = None,
) -> Decoded:
    """Decode a picture of any format and mode that Pillow opens; the first frame of an animation, over white where transparent.

    shorter_side, in pixels: what the caller will resize to. A JPEG may then be decoded at a half, a quarter or an eighth,
    never to less than that. InputError, naming `name`, for bytes that are no picture, are damaged, or exceed `limits`.
    """
    if len(data) > limits.max_bytes:
        raise InputError(f"{name} has {len(data):,} bytes, more than the limit of {limits.max_bytes:,}.")
    if not data:
        raise InputError(f"{name} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata of a picture that decodes is nobody's concern
            with Image.open(io.BytesIO(data)) as image:
                return _decode_opened(image, name=name, limits=limits, shorter_side=shorter_side)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture in a format that can be read.") from error
    except Exception as error:  # decoders of untrusted bytes raise whatever they like: struct.error, SyntaxError, KeyError ...
        raise InputError(f"{name} is damaged and cannot be decoded ({error or type(error).__name__}).") from error


def load(
    picture: Picture,
    *,
    name: str | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    shorter_side: int | None = None,
) -> Decoded:
    """Decode whatever a program has at hand: a path, bytes, a Pillow image, or an array.

    Arrays are (H, W, 3) or (H, W) uint8, RGB, upright. InputError as for `decode`, and for a path that cannot be read.
    """
    if isinstance(picture, str | Path):
        data = read_file(Path(picture), limits=limits)
        return decode(data, name=name or str(picture), limits=limits, shorter_side=shorter_side)
    if isinstance(picture, bytes):
        return decode(picture, name=name or "picture", limits=limits, shorter_side=shorter_side)
    if isinstance(picture, Image.Image):
        return _decode_opened(picture, name=name or "picture", limits=limits, shorter_side=None)
    return _check_array(picture, name=name or "array", limits=limits)


def read_file(path: Path, *, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """All bytes of a file. InputError when it is missing, no file, unreadable or over `limits.max_bytes`."""
    try:
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise InputError(f"{path} has {size:,} bytes, more than the limit of {limits.max_bytes:,}.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def thumbnail_jpeg(pixels: np.ndarray, *, side: int = THUMBNAIL_SIDE, quality: int = 85) -> bytes:
    """JPEG bytes of (H, W, 3) uint8 pixels, scaled down so that the longer side is at most `side`. Same pixels, same bytes."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _decode_opened(image: Image.Image, *, name: str, limits: ImageLimits, shorter_side: int | None) -> Decoded:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise InputError(
            f"{name} has {width * height:,} pixels ({width}×{height}), more than the limit of {limits.max_pixels:,}; "
            "raise it with --max-pixels."
        )
    if width == 0 or height == 0:
        raise InputError(f"{name} has no pixels ({width}×{height}).")
    if image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS:
        width, height = height, width
    if shorter_side is not None and image.format == "JPEG":
        # draft() keeps both sides at least as long as asked, so asking for a square keeps the shorter one.
        image.draft("RGB", (shorter_side, shorter_side))
    upright = ImageOps.exif_transpose(image)
    return Decoded(np.ascontiguousarray(_to_rgb(upright)), height, width)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of any mode. 16-bit greyscale keeps its high byte; transparency is laid over white."""
    if image.mode.startswith("I;16"):
        high_byte = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(high_byte[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        # Pillow opens some 16-bit files as 32-bit integers; floats in 0..1 are HDR's way of saying 0..255.
        scale = (
            255 / 65535 if values.max(initial=0) > 255 else 255.0 if image.mode == "F" and values.max(initial=0) <= 1 else 1.0
        )
        grey = np.clip(values * scale, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, with_alpha).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _check_array(array: np.ndarray, *, name: str, limits: ImageLimits) -> Decoded:
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InputError(f"{name} is {array.dtype} of shape {array.shape}; pictures as arrays are uint8 (H, W, 3).")
    height, width = array.shape[:2]
    if height * width > limits.max_pixels or height * width == 0:
        raise InputError(f"{name} has {height * width:,} pixels ({width}×{height}); 1 to {limits.max_pixels:,} are taken.")
    return Decoded(np.ascontiguousarray(array), height, width)
