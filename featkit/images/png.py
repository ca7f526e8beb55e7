"""What Pillow leaves out of PNG: the low bytes of 16-bit colors, what chunks say of colors, and
damage beside the pixels.

Reference: Portable Network Graphics (PNG) Specification, third edition, W3C 2025.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from featkit.images.color import (
    BT709,
    MAX_PROFILE_BYTES,
    Primaries,
    profile_of_cicp,
    profile_of_gamma,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, GRAY_ALPHA = 0, 4  # color types
SRGB_GAMMA = 0.45455
NEAR_SRGB = 0.05  # of that gamma, as in libpng; 0.01 in chromaticities

# Chunks that an image needs, or that change how it looks; a damaged one of the latter is left out
# like all the others.
_CRITICAL = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_KEPT = frozenset(
    (b"tRNS", b"sBIT", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf", b"acTL", b"fcTL", b"fdAT")
)
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"acTL": 8, b"fcTL": 26}
# of gray and RGB; palettes have one byte a color, or fewer
_TRANSPARENT_LENGTHS = {b"\0": 2, b"\2": 6}
_ANIMATION = frozenset((b"acTL", b"fcTL", b"fdAT"))


class Chunk(NamedTuple):
    """One chunk: its type, its content, and its bytes in the file with length and checksum."""

    type: bytes
    body: bytes
    stored: bytes
    is_whole: bool

    @property
    def is_sound(self) -> bool:
        """Whether nothing is cut off and the checksum is right."""
        return self.is_whole and zlib.crc32(self.type + self.body) == int.from_bytes(
            self.stored[-4:], "big"
        )


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a PNG, up to IEND or where the bytes end."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, type_ = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        yield Chunk(type_, data[at + 8 : at + 8 + length], data[at:end], end <= len(data))
        if type_ == b"IEND":
            return
        at = end


def mended(data: bytes, *, with_animation: bool = True) -> bytes:
    """Return the PNG with only those of its chunks that say how it looks, and with its end if that
    is missing.

    with_animation: what else it shows after a while, which may be damaged where the image that
    stands still is not.

    Damage in what is left, such as in IDAT, stays for the decoder to find.
    """
    kept, ended = [SIGNATURE], False
    for chunk in chunks(data):
        is_needed = chunk.type in _CRITICAL
        if chunk.type == b"IEND":
            break
        if chunk.type in _ANIMATION and not with_animation:
            continue
        if is_needed or (
            chunk.type in _KEPT and _has_length(chunk, data[25:26]) and chunk.is_sound
        ):
            kept.append(chunk.stored)
            ended = not chunk.is_whole
    if not ended:
        kept.append(b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND")))
    return b"".join(kept)


def _has_length(chunk: Chunk, color_type: bytes) -> bool:
    """Whether a chunk is as long as one of its type has to be."""
    if chunk.type == b"tRNS":
        return len(chunk.body) == _TRANSPARENT_LENGTHS.get(color_type, len(chunk.body))
    return len(chunk.body) == _LENGTHS.get(chunk.type, len(chunk.body))


def color_profile(data: bytes, image: Image.Image) -> bytes | None:
    """Return the ICC profile that says what the colors are; None for sRGB.

    By cICP, iCCP, sRGB, gAMA with cHRM: the first of these that is there rules. cHRM alone says
    nothing, as in browsers.
    """
    before_pixels = data.find(b"IDAT")
    if data.find(b"cICP", 0, before_pixels) >= 0:
        body = next(
            (chunk.body for chunk in chunks(data) if chunk.type == b"cICP" and chunk.is_sound), b""
        )
        if len(body) == 4:
            return profile_of_cicp(body[0], body[1])
    if "icc_profile" in image.info:
        profile = image.info["icc_profile"]
        return profile if isinstance(profile, bytes) else None
    if "srgb" in image.info or "gamma" not in image.info:
        return None
    gamma = image.info["gamma"]
    told = image.info.get("chromaticity")
    primaries = Primaries(told[2:4], told[4:6], told[6:8], told[0:2]) if told else BT709
    differences = [
        abs(a - b)
        for mine, its in zip(BT709, primaries, strict=True)
        for a, b in zip(mine, its, strict=True)
    ]
    if abs(gamma / SRGB_GAMMA - 1) <= NEAR_SRGB and max(differences) <= 0.01:
        return None
    return profile_of_gamma(1 / gamma, primaries) if gamma > 0 else None


def large_profile(data: bytes) -> bytes | None:
    """Return the profile in iCCP of a PNG that Pillow refuses for its size; None if there is none,
    or it is damaged."""
    body = next(
        (chunk.body for chunk in chunks(data) if chunk.type == b"iCCP" and chunk.is_sound), b""
    )
    _, _, packed = body.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return None
    return profile if unpacker.eof and profile else None


# --- 16 bits


def is_deep(image: Image.Image) -> bool:
    """Whether an image that is opened and not yet loaded is a PNG of 16 bits."""
    return image.format == "PNG" and bool(_raw_mode(image).endswith(";16B"))


def transparency_16(data: bytes) -> tuple[int, ...] | None:
    """Return the levels that tRNS says are transparent; None without it."""
    body = next((chunk.body for chunk in chunks(data) if chunk.type == b"tRNS"), b"")
    return struct.unpack(f">{len(body) // 2}H", body[: len(body) // 2 * 2]) if body else None


def levels_16(data: bytes, image: Image.Image) -> np.ndarray:
    """Return (H, W, 1 to 4) uint16 of a PNG of 16 bits, of whose colors Pillow keeps the high bytes
    only.

    image: the same PNG, loaded.
    """
    color_type = data[25]
    if color_type == GRAY:
        return np.asarray(image).astype(np.uint16, copy=False)[..., None]
    if color_type == GRAY_ALPHA:
        # Bytes for bytes what RGBA of 8 bits looks like, filters included.
        header = data[12:24] + b"\x08\x06" + data[26:29]
        alike = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        return np.asarray(_opened(alike)).view(">u2").astype(np.uint16)
    low = _opened(data)
    # As if the other byte of each level came first.
    low.tile = [tile._replace(args=_raw_mode(low)[:-1] + "L") for tile in low.tile]
    levels: np.ndarray = (np.asarray(image).astype(np.uint16) << 8) | np.asarray(low)
    return levels


def declared_white(data: bytes, levels: np.ndarray) -> int | None:
    """Return the level that is white by sBIT; None without it.

    By the specification samples are scaled up to 16 bits and sBIT tells how many of their high bits
    count. Some programs store them as they are instead: then no level exceeds that many bits, and
    those below are not zero or repetitions.
    """
    body = next(
        (chunk.body for chunk in chunks(data) if chunk.type == b"sBIT" and chunk.is_sound), b""
    )
    bits = max(body, default=0)
    if not 1 <= bits <= 16:
        return None
    highest = int(levels.max())
    if bits == 16 or bits < 8 or highest > 2**bits - 1:
        return 65535
    low = levels & (2 ** (16 - bits) - 1)
    is_scaled = not low.any() or bool((low == levels >> bits).all())
    return 65535 if is_scaled else 2**bits - 1


def _opened(data: bytes) -> ImageFile.ImageFile:
    return PngImagePlugin.PngImageFile(io.BytesIO(data))


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None) or [None]
    args = getattr(tiles[0], "args", "")
    return args if isinstance(args, str) else str(args[0]) if args else ""
