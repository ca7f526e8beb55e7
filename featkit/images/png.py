"""Read what Pillow ignores in PNG: low bytes of 16-bit colors, color chunks, damaged metadata.

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
NEAR_SRGB = 0.05  # relative tolerance of the gamma, as in libpng; 0.01 for chromaticities

# Chunks that decoding needs, and chunks that change how the image looks. A damaged chunk of the
# second group is dropped, as are all other chunks.
_CRITICAL = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_KEPT = frozenset(
    (b"tRNS", b"sBIT", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf", b"acTL", b"fcTL", b"fdAT")
)
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"acTL": 8, b"fcTL": 26}
# for gray and RGB; a palette has at most one byte per color
_TRANSPARENT_LENGTHS = {b"\0": 2, b"\2": 6}
_ANIMATION = frozenset((b"acTL", b"fcTL", b"fdAT"))


class Chunk(NamedTuple):
    """One chunk: its type, its content, and its stored bytes including length and checksum."""

    type: bytes
    body: bytes
    stored: bytes
    is_whole: bool

    @property
    def is_sound(self) -> bool:
        """Return whether the chunk is complete and its checksum is right."""
        return self.is_whole and zlib.crc32(self.type + self.body) == int.from_bytes(
            self.stored[-4:], "big"
        )


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a PNG, up to IEND or to the end of the bytes."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, type_ = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        yield Chunk(type_, data[at + 8 : at + 8 + length], data[at:end], end <= len(data))
        if type_ == b"IEND":
            return
        at = end


def mended(data: bytes, *, with_animation: bool = True) -> bytes:
    """Return the PNG with only the chunks that affect how it looks, and with an end marker.

    with_animation: keep the animation, which may be damaged even if the still image is intact.

    Damage in the remaining chunks, such as IDAT, is left for the decoder to report.
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
    """Return whether a chunk has the length that its type requires."""
    if chunk.type == b"tRNS":
        return len(chunk.body) == _TRANSPARENT_LENGTHS.get(color_type, len(chunk.body))
    return len(chunk.body) == _LENGTHS.get(chunk.type, len(chunk.body))


def color_profile(data: bytes, image: Image.Image) -> bytes | None:
    """Return an ICC profile for the colors of a PNG, or None for sRGB.

    The first of cICP, iCCP, sRGB and gAMA (with cHRM) decides. cHRM alone is ignored, as in
    browsers.
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
    """Return the iCCP profile that Pillow rejects as too large, or None if missing or damaged."""
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
    """Return whether an image, opened but not yet loaded, is a 16-bit PNG."""
    return image.format == "PNG" and bool(_raw_mode(image).endswith(";16B"))


def transparency_16(data: bytes) -> tuple[int, ...] | None:
    """Return the levels of the transparent color from tRNS, or None if there is none."""
    body = next((chunk.body for chunk in chunks(data) if chunk.type == b"tRNS"), b"")
    return struct.unpack(f">{len(body) // 2}H", body[: len(body) // 2 * 2]) if body else None


def levels_16(data: bytes, image: Image.Image) -> np.ndarray:
    """Return all 16 bits of a PNG as (H, W, 1 to 4) uint16; Pillow keeps the high bytes only.

    image: the same PNG, loaded.
    """
    color_type = data[25]
    if color_type == GRAY:
        return np.asarray(image).astype(np.uint16, copy=False)[..., None]
    if color_type == GRAY_ALPHA:
        # Two 16-bit samples look exactly like 8-bit RGBA, filters included.
        header = data[12:24] + b"\x08\x06" + data[26:29]
        alike = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        return np.asarray(_opened(alike)).view(">u2").astype(np.uint16)
    low = _opened(data)
    # Decode again with the low byte of each level in place of the high one.
    low.tile = [tile._replace(args=_raw_mode(low)[:-1] + "L") for tile in low.tile]
    levels: np.ndarray = (np.asarray(image).astype(np.uint16) << 8) | np.asarray(low)
    return levels


def declared_white(data: bytes, levels: np.ndarray) -> int | None:
    """Return the level of white according to sBIT, or None without it.

    By the specification, samples are scaled to 16 bits and sBIT says how many of their high bits
    are significant. Some programs store them unscaled: then no level needs more than those bits,
    and the low bits are neither zero nor a repetition of the high ones.
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
