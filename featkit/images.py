"""Bytes to upright RGB pixels: limits before decoding, every mode Pillow opens, scaled decoding for JPEG.

What comes in is not trusted. Bytes are counted before they are parsed and pixels before they are decoded; whatever goes
wrong in between is one InputError that names the picture. All of it may run in several threads at once: warning filters,
which belong to the whole process, are therefore left alone; the command line, whose process is its own, sets them.
"""

from __future__ import annotations

import io
import re
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from featkit.errors import InputError

Picture: TypeAlias = str | Path | bytes | Image.Image | np.ndarray

EXIF_ORIENTATION = 0x0112
THUMBNAIL_SIDE = 256  # pixels of the longer side
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose stored width is the upright height

# Formats that Pillow only names, or hands to another program: EPS goes to Ghostscript, which runs what the file says.
REFUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
SCALED_FORMATS = ("JPEG", "MPO")  # MPO is the JPEG of cameras that store a preview beside it
HEIC_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")

_pillow_limit_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What a picture may cost before it is refused."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        for option, limit in (("--max-bytes", self.max_bytes), ("--max-pixels", self.max_pixels)):
            if limit < 1:
                raise InputError(f"{option} is {limit}; it has to be 1 or more.")


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
    name = printable(name)
    check_num_bytes(len(data), name=name, limits=limits)
    if not data:
        raise InputError(f"{name} is empty (0 bytes).")
    try:
        with _open(data, limits=limits) as image:
            return _decode_opened(image, name=name, limits=limits, shorter_side=shorter_side)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        if data[4:12] in HEIC_BRANDS:
            raise InputError(f"{name} is HEIC, which Pillow does not read by itself; convert it to JPEG.") from error
        raise InputError(f"{name} is not a picture in a format that can be read.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the latter where warnings are errors
        raise InputError(f"{name} has {_pixels_in(error)}{_over_limit(limits)}") from error
    except Exception as error:  # decoders of untrusted bytes raise whatever they like: struct.error, SyntaxError, KeyError ...
        raise InputError(f"{name} is damaged and cannot be decoded ({_reason(error)}).") from error


def load(
    picture: Picture,
    *,
    name: str | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    shorter_side: int | None = None,
) -> Decoded:
    """Decode whatever a program has at hand: a path, bytes, a Pillow image (its current frame), or an array.

    Arrays are (H, W, 3) or (H, W) uint8, RGB, upright. InputError as for `decode`, and for a path that cannot be read.
    """
    if isinstance(picture, str | Path):
        name = name or str(picture)
        data = read_file(Path(picture), name=name, limits=limits)
        return decode(data, name=name, limits=limits, shorter_side=shorter_side)
    if isinstance(picture, bytes):
        return decode(picture, name=name or "picture", limits=limits, shorter_side=shorter_side)
    if isinstance(picture, Image.Image):
        return _load_image(picture, name=name or "picture", limits=limits)
    if isinstance(picture, np.ndarray):
        return _check_array(picture, name=name or "array", limits=limits)
    raise InputError(f"{name or 'picture'} is a {type(picture).__name__}; give a path, bytes, a Pillow image or an array.")


def read_file(path: Path, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """All bytes of a regular file. InputError, naming `name` or the path: missing, unreadable, over `limits.max_bytes`."""
    name = printable(name or str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever, a device never end
            raise InputError(f"{name} is a folder or a device, not a file.")
        check_num_bytes(status.st_size, name=name, limits=limits)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist.") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"{name} cannot be read: {_reason(error)}.") from error


def thumbnail_jpeg(pixels: np.ndarray, *, side: int = THUMBNAIL_SIDE, quality: int = 85) -> bytes:
    """JPEG bytes of (H, W, 3) uint8 pixels, scaled down so that the longer side is at most `side`. Same pixels, same bytes."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def printable(name: str) -> str:
    """The name as valid UTF-8 text: bytes of a file name that are not text are spelled out, as in `caf\\xe9.jpg`."""
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a UTF-16 pair, which stands for no byte of a file's name
        encoded = name.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")


def check_num_bytes(num_bytes: int, *, name: str, limits: ImageLimits) -> None:
    """InputError when a picture has more bytes than `limits` allow."""
    if num_bytes > limits.max_bytes:
        raise InputError(
            f"{name} has {num_bytes:,} bytes, more than the limit of {limits.max_bytes:,}; raise it with --max-bytes."
        )


def _open(data: bytes, *, limits: ImageLimits) -> Image.Image:
    """Read the header, as any format but REFUSED_FORMATS."""
    Image.init()
    with _pillow_limit_lock:
        # Pillow's own limit guards pictures inside pictures (icons). It is one number for the whole process, so it is raised
        # to what was asked for here and never lowered or switched off.
        if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = limits.max_pixels
    return Image.open(io.BytesIO(data), formats=[format for format in Image.ID if format not in REFUSED_FORMATS])


def _load_image(image: Image.Image, *, name: str, limits: ImageLimits) -> Decoded:
    """A Pillow image of the caller's, which may not be decoded yet."""
    try:
        return _decode_opened(image, name=name, limits=limits, shorter_side=None)
    except InputError:
        raise
    except Exception as error:  # as in decode
        raise InputError(f"{name} is damaged and cannot be decoded ({_reason(error)}).") from error


def _decode_opened(image: Image.Image, *, name: str, limits: ImageLimits, shorter_side: int | None) -> Decoded:
    width, height = image.size
    _check_num_pixels(height, width, name=name, limits=limits)
    if shorter_side is not None and image.format in SCALED_FORMATS:
        # draft() keeps both sides at least as long as asked, so asking for a square keeps the shorter one.
        image.draft("RGB", (shorter_side, shorter_side))
    opened_size = image.size
    image.load()
    if image.size != opened_size:  # an icon whose header says less than the picture in it has
        width, height = image.size
        _check_num_pixels(height, width, name=name, limits=limits)
    orientation = _orientation(image)  # after load(): a TIFF is turned by Pillow then, and forgets its tag
    if orientation in SIDEWAYS:
        width, height = height, width
    return Decoded(np.ascontiguousarray(_turn_upright(_to_rgb(image), orientation)), height, width)


def _check_num_pixels(height: int, width: int, *, name: str, limits: ImageLimits) -> None:
    if height == 0 or width == 0:
        raise InputError(f"{name} has no pixels ({width}×{height}).")
    if height * width > limits.max_pixels:
        raise InputError(f"{name} has {height * width:,} pixels ({width}×{height}){_over_limit(limits)}")


def _over_limit(limits: ImageLimits) -> str:
    return f", more than the limit of {limits.max_pixels:,}; raise it with --max-pixels."


def _pixels_in(error: Exception) -> str:
    """The count that Pillow gives, which refuses such a picture before its sides are known here."""
    count = re.search(r"\d+", str(error))
    return f"{int(count[0]):,} pixels" if count else "too many pixels"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 (upright) where none is told."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata of a picture that decodes says nothing, and is no reason to refuse it
        return 1
    return orientation if isinstance(orientation, int) else 1


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """View of (H, W, 3) as stored to (H, W, 3) or (W, H, 3) as meant (EXIF 2.32, tag 0x0112)."""
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)  # 5 is this mirror alone; the others follow it by one of the flips below
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of any mode. 16-bit greyscale keeps its high byte; transparency is laid over white."""
    if image.mode.startswith("I;16"):
        return _repeat_grey((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return _repeat_grey(_levels_to_bytes(np.asarray(image)))
    if image.mode == "La":  # premultiplied grey has one way out
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, with_alpha).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _levels_to_bytes(levels: np.ndarray) -> np.ndarray:
    """Greyscale (H, W) int32 or float32 to uint8. Such files do not tell their white.

    White is the least of 1 (floats only), 255 and 65,535 that no level exceeds, else the highest level; below zero and not
    a number are black.
    """
    finite = np.where(np.isfinite(levels), levels, 0).astype(np.float32)
    highest = float(finite.max())
    usual = (1.0, 255.0, 65535.0) if levels.dtype.kind == "f" else (255.0, 65535.0)
    white = next((level for level in usual if highest <= level), highest)
    scale = np.nextafter(np.float32(255 / white), np.float32(256))  # rounded up, or white itself could come out as 254
    grey: np.ndarray = np.clip(finite * scale, 0, 255).astype(np.uint8)
    return grey


def _repeat_grey(grey: np.ndarray) -> np.ndarray:
    """(H, W) to (H, W, 3)."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def _check_array(array: np.ndarray, *, name: str, limits: ImageLimits) -> Decoded:
    if array.ndim == 2:
        array = _repeat_grey(array)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InputError(f"{name} is {array.dtype} of shape {array.shape}; pictures as arrays are uint8 (H, W, 3).")
    height, width = array.shape[:2]
    _check_num_pixels(height, width, name=name, limits=limits)
    return Decoded(np.ascontiguousarray(array), height, width)


def _reason(error: Exception) -> str:
    """What an exception has to say, without a full stop of its own."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.rstrip(".") or type(error).__name__
