"""Decode HEIC, JPEG XL and camera RAW, which Pillow cannot read, by the extra `formats`.

Each package is imported when it is first needed. None is registered with Pillow, so the settings of
the host program stay as they are.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from PIL import ExifTags, Image

from featkit.errors import InputError
from featkit.filetypes import HEIC, JPEG_XL, Kind
from featkit.images.limits import ImageLimits, check_num_pixels
from featkit.images.room import wait_for_room

# The magic numbers of raw files that are otherwise TIFF files, with those of TIFF.
TIFF_MAGIC = {
    b"II*\0": b"II*\0",
    b"MM\0*": b"MM\0*",
    b"IIRO": b"II*\0",
    b"IIRS": b"II*\0",
    b"MMOR": b"MM\0*",
    b"IIU\0": b"II*\0",
}
RAF_MAGIC, RAF_JPEG_AT = b"FUJIFILMCCD-RAW", 84
LIES_ON_ITS_SIDE = (5, 6)  # LibRaw's codes for a camera held sideways
RAW_PREFIX = "a camera RAW photo"


def is_plugin_kind(kind: Kind | None) -> TypeGuard[Kind]:
    """Return whether a kind of file is read by a package of the extra `formats`."""
    return kind is not None and (kind in (HEIC, JPEG_XL) or kind.name.startswith(RAW_PREFIX))


class Upright(NamedTuple):
    """An upright image, and its height and width at full size."""

    image: Image.Image
    height: int
    width: int


def open_by_plugin(
    data: bytes, kind: Kind, *, name: str, limits: ImageLimits, shorter_side: int | None
) -> Upright | bytes:
    """Decode a file for which `is_plugin_kind` is true, or return the bytes of an equal JPEG.

    The size is checked before decoding. Raises InputError, saying what to install, if the package
    is missing.
    """
    if kind == HEIC:
        return _open_heic(data, kind, name=name, limits=limits)
    if kind == JPEG_XL:
        return _open_jpeg_xl(data, kind, name=name, limits=limits)
    return _develop(data, kind, name=name, limits=limits, shorter_side=shorter_side)


def _open_heic(data: bytes, kind: Kind, *, name: str, limits: ImageLimits) -> Upright:
    """Decode the primary image. libheif turns it; the EXIF orientation only repeats that turn."""
    plugin = _import("pillow_heif", kind, name)
    image: Image.Image = plugin.HeifImageFile(io.BytesIO(data))
    check_num_pixels(image.height, image.width, name=name, limits=limits)
    wait_for_room(image.height, image.width)
    image.load()
    return Upright(image, image.height, image.width)


def _open_jpeg_xl(data: bytes, kind: Kind, *, name: str, limits: ImageLimits) -> Upright | bytes:
    """Decode the image, turned by libjxl, or return the original JPEG of a transcoded file."""
    plugin = _import("pillow_jxl", kind, name)
    size = jpeg_xl_size(data)
    if size is None:
        raise ValueError("no size in its header")
    check_num_pixels(*size, name=name, limits=limits)  # the plugin cannot stop half-way
    wait_for_room(*size)
    is_jpeg, info, pixels, profile, _boxes = plugin.Decoder(num_threads=0)(data)
    if is_jpeg:
        return bytes(pixels)
    image = Image.frombytes(info.mode, (info.width, info.height), pixels)
    if profile:
        image.info["icc_profile"] = bytes(profile)
    return Upright(image, image.height, image.width)


def _develop(
    data: bytes, kind: Kind, *, name: str, limits: ImageLimits, shorter_side: int | None
) -> Upright:
    """Develop a raw file with LibRaw to sRGB, by the camera's white balance.

    It is developed at half its size if that is large enough for `shorter_side`.
    """
    rawpy = _import("rawpy", kind, name)
    with rawpy.imread(io.BytesIO(data)) as raw:
        height, width = raw.sizes.height, raw.sizes.width
        check_num_pixels(height, width, name=name, limits=limits)
        wait_for_room(height, width)
        halved = shorter_side is not None and min(height, width) // 2 >= shorter_side
        pixels = raw.postprocess(
            use_camera_wb=True, half_size=halved, gamma=(2.4, 12.92), output_bps=8
        )
        if raw.sizes.flip in LIES_ON_ITS_SIDE:
            height, width = width, height
    return Upright(Image.fromarray(np.ascontiguousarray(pixels)), height, width)


def _import(package: str, kind: Kind, name: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(kind.sentence(name, otherwise="convert it to JPEG")) from error


def exif_by_plugin(data: bytes, kind: Kind) -> Image.Exif:
    """Return the EXIF of a file for which `is_plugin_kind` is true, with the orientation as stored.

    Empty without EXIF, and for kinds of it that are not read here (CR3, compressed in JPEG XL). May
    raise anything for damaged files, and InputError without the package for HEIC.
    """
    exif = Image.Exif()
    if kind == HEIC:
        info = _import("pillow_heif", kind, "The file").HeifImageFile(io.BytesIO(data)).info
        exif.load(info.get("exif") or b"")
        if (orientation := info.get("original_orientation")) is not None:
            exif[ExifTags.Base.Orientation] = orientation
    elif kind == JPEG_XL:
        body = next((data[start:end] for name, start, end in _boxes(data) if name == b"Exif"), b"")
        # pillow-jxl-plugin 1.3 leaves out the offset that the standard puts before it.
        if body[:4] not in TIFF_MAGIC:
            body = body[4 + int.from_bytes(body[:4], "big") :]
        exif.load(body)
    elif (magic := TIFF_MAGIC.get(data[:4])) is not None:
        exif.load(data if data.startswith(magic) else magic + data[4:])
    elif data.startswith(RAF_MAGIC):
        start, size = struct.unpack_from(">II", data, RAF_JPEG_AT)
        with Image.open(io.BytesIO(data[start : start + size])) as preview:
            exif = preview.getexif()
    return exif


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the content of each box of a JPEG XL container."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1:
            size, body = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        yield kind, body, at + size if size else len(data)  # 0 means up to the end
        if size < body - at:
            break
        at += size


def _codestream(data: bytes) -> bytes:
    """Return the start of a JPEG XL container's codestream: its `jxlc` box, or the first `jxlp`."""
    for kind, body, _ in _boxes(data):
        if kind in (b"jxlc", b"jxlp"):
            return data[body + (4 if kind == b"jxlp" else 0) :][:64]
    return b""


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a JPEG XL header (ISO/IEC 18181-1, SizeHeader), or None."""
    stream = data if data.startswith(b"\xff\x0a") else _codestream(data)
    if not stream.startswith(b"\xff\x0a"):
        return None
    bits = int.from_bytes(stream[2:18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(by_eight: bool) -> int:
        return 8 * (1 + take(5)) if by_eight else 1 + take((9, 13, 18, 30)[take(2)])

    by_eight = bool(take(1))
    height = side(by_eight)
    ratio = take(3)
    ratios = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
    if ratio:
        across, down = ratios[ratio]
        return height, height * across // down
    return height, side(by_eight)
