"""Decode TIFF files with signed, floating-point or more than 8-bit samples.

Pillow reads only some of them, and several wrongly (12.3: 16-bit planes, 16-bit white-is-zero,
unsigned 32 bits, compressed big-endian floats). It can decompress all of them, though. So the
strips or tiles are given to Pillow as those of an 8-bit gray image, and the samples are assembled
here.

Reference: TIFF 6.0 and its Technical Notes 1 (floating-point predictor) and "BigTIFF".
"""

from __future__ import annotations

import bisect
import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from featkit.errors import InputError
from featkit.images.levels import to_bytes, white_of
from featkit.images.limits import ImageLimits, check_num_pixels
from featkit.images.room import DEEP, wait_for_room
from featkit.wording import counted

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 274, 277, 278, 279
MAX_SAMPLE, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = 281, 284, 317, 322, 323
TILE_OFFSETS, TILE_COUNTS, EXTRA_SAMPLES, SAMPLE_FORMAT, S_MAX_SAMPLE = 324, 325, 338, 339, 341
ICC_PROFILE = 34675
# fmt: off
_WANTED = frozenset((
    WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES,
    ROWS_PER_STRIP, STRIP_COUNTS, MAX_SAMPLE, PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT,
    TILE_OFFSETS, TILE_COUNTS, EXTRA_SAMPLES, SAMPLE_FORMAT, S_MAX_SAMPLE, ICC_PROFILE,
))
# the struct codes of TIFF's field types
_TYPES = {
    1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q", 17: "q",
    18: "Q",
}
# fmt: on

MAX_CHANNELS = 4
MAX_TILE_PIXELS = 2**22  # allowance for the tiles of a small image
MAX_TAGS = 4096  # real files have up to a few hundred
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5
_CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, CMYK: 4}
# none, LZW, Deflate, PackBits, LZMA, Zstandard
_COMPRESSIONS = frozenset((1, 5, 8, 32773, 32946, 34925, 50000))
_PREMULTIPLIED, _UNSPECIFIED = 1, 0

Tags = dict[int, Sequence[float]]  # the value is bytes for tags of type BYTE


class Deep(NamedTuple):
    """A deep image reduced to 8 bits (mode L, RGB, CMYK, LA, RGBA or RGBa), with its metadata."""

    image: Image.Image
    orientation: int
    profile: bytes | None


def read_tags(data: bytes) -> Tags:
    """Return the tags of the first image in a TIFF or BigTIFF, or {} if they cannot be read."""
    try:
        return _read_tags(data)
    except (struct.error, IndexError, OverflowError, ValueError):
        return {}


def check(tags: Tags, *, name: str) -> None:
    """Refuse a TIFF with too many channels or with oversized tiles.

    Raises InputError for more than four channels, since any three of them would not be the image.
    Raises ValueError for tiles much larger than the image, since libtiff would allocate them.
    """
    area = _first(tags, WIDTH, 0) * _first(tags, HEIGHT, 0)
    if _first(tags, TILE_WIDTH, 0) * _first(tags, TILE_HEIGHT, 0) > 4 * area + MAX_TILE_PIXELS:
        raise ValueError("tiles much larger than the image")
    count = int(_first(tags, SAMPLES, 1))
    if count > MAX_CHANNELS:
        raise InputError(
            f"{name} is a TIFF of {count} channels, but featkit reads at most {MAX_CHANNELS}; "
            "save the channels of interest as gray or RGB."
        )


def is_whole(tags: Tags) -> bool:
    """Return whether the tags describe an image and say where its samples are."""
    return {WIDTH, HEIGHT, PHOTOMETRIC} <= tags.keys() and not tags.keys().isdisjoint(
        (STRIP_OFFSETS, TILE_OFFSETS)
    )


def is_deep(data: bytes, tags: Tags) -> bool:
    """Return whether `read_deep` must decode the image: its samples are not unsigned, up to 8 bits.

    It also decodes bytes in a big-endian BigTIFF, which Pillow 12.3 cannot.
    """
    bits, formats = tags.get(BITS, (1,)), tags.get(SAMPLE_FORMAT, (1,))
    return max(bits) > 8 or (
        max(bits) == 8 and (not set(formats) <= {1, 4} or data[:4] == b"MM\0+")
    )


def read_deep(data: bytes, tags: Tags, *, name: str, limits: ImageLimits) -> Deep:
    """Decode an image for which `is_deep` is true. Raises InputError for an unsupported kind."""
    height, width = int(_first(tags, HEIGHT, 0)), int(_first(tags, WIDTH, 0))
    check_num_pixels(height, width, name=name, limits=limits)
    wait_for_room(height, width, bytes_per_pixel=DEEP)
    photometric, channels = int(_first(tags, PHOTOMETRIC, -1)), int(_first(tags, SAMPLES, 1))
    extra = [int(kind) for kind in tags.get(EXTRA_SAMPLES, ())]
    num_colors = _CHANNELS.get(photometric, 0)
    has_alpha = channels == num_colors + 1
    if (
        not num_colors
        or channels not in (num_colors, num_colors + 1)
        or (photometric == CMYK and has_alpha)
    ):
        raise unread(tags, name)
    samples = _samples(data, tags, name=name)  # (H, W, C)
    colors = samples[..., :num_colors]
    white = white_of(colors, name=name, declared=_declared_white(tags, samples.dtype))
    pixels = to_bytes(colors, white=white)
    if photometric == WHITE_IS_ZERO:
        pixels = 255 - pixels
    kind = extra[0] if extra else _UNSPECIFIED
    if has_alpha and (kind != _UNSPECIFIED or not extra):
        alpha = samples[..., num_colors:]
        pixels = np.concatenate(
            [pixels, to_bytes(alpha, white=max(white, white_of(alpha, name=name)))], axis=2
        )
    elif has_alpha and num_colors == 1:
        raise unread(tags, name)  # two channels, and the second is not declared to be alpha
    profile = tags.get(ICC_PROFILE)
    image = _as_image(pixels, is_cmyk=photometric == CMYK, premultiplied=kind == _PREMULTIPLIED)
    return Deep(
        image, int(_first(tags, ORIENTATION, 1)), profile if isinstance(profile, bytes) else None
    )


def _as_image(pixels: np.ndarray, *, is_cmyk: bool, premultiplied: bool) -> Image.Image:
    """Convert pixels (H, W, 1 to 4) uint8 to a Pillow image."""
    height, width, channels = pixels.shape
    if channels == 2 and premultiplied:  # Pillow cannot convert La to RGB
        pixels, channels = pixels[..., [0, 0, 0, 1]], 4
    mode = "CMYK" if is_cmyk else ("L", "LA", "RGB", "RGBA")[channels - 1]
    if mode == "RGBA" and premultiplied:
        mode = "RGBa"
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())


def _declared_white(tags: Tags, dtype: np.dtype) -> float | None:
    """Return the declared highest level, rounded up to a usual depth.

    Some files declare the highest level that occurs instead of the highest possible one.
    """
    bits = int(max(tags[BITS]))
    if bits not in (8, 16, 32, 64):
        return float(2**bits - 1)
    if dtype.kind == "f":
        return None
    told = max(max(tags.get(tag, (0,))) for tag in (MAX_SAMPLE, S_MAX_SAMPLE))
    return next(
        (float(2**bits - 1) for bits in (8, 10, 12, 14, 15, 16, 31, 32) if 0 < told <= 2**bits - 1),
        None,
    )


def unread(tags: Tags, name: str) -> InputError:
    """Return the error for an unsupported kind of TIFF, describing it."""
    kinds = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}
    kind = kinds.get(int(_first(tags, SAMPLE_FORMAT, 1)), "unknown")
    return InputError(
        f"{name} is a TIFF of {counted(int(_first(tags, SAMPLES, 1)), 'channel')} of "
        f"{counted(int(max(tags.get(BITS, (1,)))), 'bit')} ({kind}), photometric interpretation "
        f"{int(_first(tags, PHOTOMETRIC, -1))}, compression {int(_first(tags, COMPRESSION, 1))}, "
        "which featkit does not read; convert it to 8 bits of gray or RGB."
    )


# --- samples


def _samples(data: bytes, tags: Tags, *, name: str) -> np.ndarray:
    """Return the samples (H, W, C) in the file's own dtype."""
    height, width, channels = (int(_first(tags, tag, 1)) for tag in (HEIGHT, WIDTH, SAMPLES))
    dtype, bits = _dtype(data, tags), int(max(tags[BITS]))
    if dtype is None or int(_first(tags, COMPRESSION, 1)) not in _COMPRESSIONS:
        raise unread(tags, name)
    planar = int(_first(tags, PLANAR, 1)) == 2
    together = 1 if planar else channels
    is_tiled = TILE_OFFSETS in tags
    offsets = [int(at) for at in tags[TILE_OFFSETS if is_tiled else STRIP_OFFSETS]]
    counts = [int(count) for count in tags.get(TILE_COUNTS if is_tiled else STRIP_COUNTS, ())]
    block_width = int(_first(tags, TILE_WIDTH, 0)) if is_tiled else width
    block_height = (
        int(_first(tags, TILE_HEIGHT, 0))
        if is_tiled
        else min(int(_first(tags, ROWS_PER_STRIP, height)), height)
    )
    if block_width < 1 or block_height < 1:
        raise ValueError("tiles or strips without a size")
    across = -(-width // block_width)
    num_blocks = across * -(-height // block_height)
    row_bytes = -(-block_width * together * bits // 8)
    if len(counts) != len(offsets):
        counts = _counts_up_to_the_next(offsets, len(data))
    # Describe an 8-bit gray image in the same strips or tiles.
    entries = {
        WIDTH: [across * row_bytes],
        HEIGHT: [height],
        BITS: [8],
        COMPRESSION: [int(_first(tags, COMPRESSION, 1))],
        PHOTOMETRIC: [BLACK_IS_ZERO],
        FILL_ORDER: [int(_first(tags, FILL_ORDER, 1))],
        SAMPLES: [1],
        PLANAR: [1],
    }
    entries |= (
        {TILE_WIDTH: [row_bytes], TILE_HEIGHT: [block_height]}
        if is_tiled
        else {ROWS_PER_STRIP: [block_height]}
    )
    planes = []
    for plane in range(channels if planar else 1):
        some = slice(plane * num_blocks, (plane + 1) * num_blocks)
        entries[TILE_OFFSETS if is_tiled else STRIP_OFFSETS] = offsets[some]
        entries[TILE_COUNTS if is_tiled else STRIP_COUNTS] = counts[some]
        stored = np.asarray(
            TiffImagePlugin.TiffImageFile(io.BytesIO(_with_directory(data, entries)))
        )
        blocks = stored.reshape(height, across, row_bytes)
        planes.append(_unpacked(blocks, tags, dtype, block_width, together, bits)[:, :width])
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def _counts_up_to_the_next(offsets: list[int], end: int) -> list[int]:
    """Return byte counts of strips or tiles that declare none: each ends where the next begins."""
    starts = [*sorted(set(offsets)), end]
    return [starts[bisect.bisect_right(starts, at, hi=len(starts) - 1)] - at for at in offsets]


def _with_directory(data: bytes, entries: dict[int, list[int]]) -> bytes:
    """Return the file with a new first directory appended.

    The directory is little-endian whatever the file's order, which bytes do not depend on.
    """
    is_big = data[2:4] in (b"+\0", b"\0+")
    start = len(data) + len(data) % 2
    entry_size, word = (20, "Q") if is_big else (12, "I")
    values_at = start + (8 if is_big else 2) + entry_size * len(entries) + struct.calcsize(word)
    directory, values = struct.pack("<Q" if is_big else "<H", len(entries)), b""
    for tag in sorted(entries):
        packed = struct.pack(f"<{len(entries[tag])}{word}", *entries[tag])
        directory += struct.pack("<HH" + word, tag, 16 if is_big else 4, len(entries[tag]))
        if len(entries[tag]) == 1:
            directory += packed
        else:
            directory += struct.pack("<" + word, values_at + len(values))
            values += packed
    directory += bytes(struct.calcsize(word))  # 0: there is no second image
    header = (
        struct.pack("<2sHHHQ", b"II", 43, 8, 0, start)
        if is_big
        else struct.pack("<2sHI", b"II", 42, start)
    )
    return b"".join((header, data[len(header) :], bytes(len(data) % 2), directory, values))


def _dtype(data: bytes, tags: Tags) -> np.dtype | None:
    """Return a sample's dtype in the file's byte order; 9 to 15 bits are unpacked to uint16.

    Returns None for an unsupported type.
    """
    bits, formats = set(tags[BITS]), set(tags.get(SAMPLE_FORMAT, (1,)))
    if len(bits) != 1 or len(formats) != 1:
        return None
    num_bits, kind = int(bits.pop()), {1: "u", 4: "u", 2: "i", 3: "f"}.get(int(formats.pop()))
    if kind == "u" and 8 < num_bits < 16:
        return np.dtype(np.uint16)
    if kind is None or num_bits not in ((16, 32, 64) if kind == "f" else (8, 16, 32)):
        return None
    return np.dtype(("<" if data[:2] == b"II" else ">") + kind + str(num_bits // 8))


def _unpacked(
    blocks: np.ndarray, tags: Tags, dtype: np.dtype, width: int, channels: int, bits: int
) -> np.ndarray:
    """Turn bytes (H, blocks across, bytes per block row) into samples, undoing the predictor.

    Returns (H, blocks across × width, channels).
    """
    height, across, row_bytes = blocks.shape
    predictor = int(_first(tags, PREDICTOR, 1))
    if bits not in (8, 16, 32, 64):
        if predictor != 1:
            raise ValueError("a predictor of packed bits")
        packed = np.empty((height, across, width * channels), np.uint16)
        weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
        for row in range(height):  # one row at a time, since unpacked bits take a byte each
            single = np.unpackbits(blocks[row], axis=1)[:, : width * channels * bits]
            packed[row] = single.reshape(across, width * channels, bits) @ weights
        return packed.reshape(height, across * width, channels)
    if predictor == 3 and dtype.kind == "f":
        size = dtype.itemsize
        sums = np.cumsum(
            blocks.reshape(height, across, row_bytes // channels, channels), axis=2, dtype=np.uint8
        )
        bytes_first = sums.reshape(height, across, size, row_bytes // size)
        stored = np.ascontiguousarray(bytes_first.swapaxes(2, 3)).view(f">f{size}")
        return stored.reshape(height, across * width, channels).astype(f"=f{size}")
    if predictor not in (1, 2) or (predictor == 2 and dtype.kind == "f"):
        raise ValueError(f"the predictor {predictor}")
    samples = blocks.view(dtype).reshape(height, across, width, channels)
    native = samples.astype(dtype.newbyteorder("="), copy=False)
    if predictor == 2:
        native = np.cumsum(native, axis=2, dtype=native.dtype)  # overflow wraps, by design
    return native.reshape(height, across * width, channels)


# --- tags


def _read_tags(data: bytes) -> Tags:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return {}
    version = struct.unpack_from(order + "H", data, 2)[0]
    if version == 42:
        start, count_of, word, entry_size = (
            struct.unpack_from(order + "I", data, 4)[0],
            "H",
            "I",
            12,
        )
    elif version == 43:
        start, count_of, word, entry_size = (
            struct.unpack_from(order + "Q", data, 8)[0],
            "Q",
            "Q",
            20,
        )
    else:
        return {}
    num_entries = struct.unpack_from(order + count_of, data, start)[0]
    start += struct.calcsize(count_of)
    tags: Tags = {}
    for entry in range(min(num_entries, MAX_TAGS)):
        at = start + entry * entry_size
        tag, type_ = struct.unpack_from(order + "HH", data, at)
        if tag not in _WANTED or type_ not in _TYPES:
            continue
        count = struct.unpack_from(order + word, data, at + 4)[0]
        value_at = at + 4 + struct.calcsize(word)
        size = count * struct.calcsize(_TYPES[type_])
        if size > struct.calcsize(word):
            value_at = struct.unpack_from(order + word, data, value_at)[0]
        if count and value_at + size <= len(data):
            if _TYPES[type_] == "B":
                tags[tag] = data[value_at : value_at + size]
            else:
                tags[tag] = struct.unpack_from(f"{order}{count}{_TYPES[type_]}", data, value_at)
    return tags


def _first(tags: Tags, tag: int, default: float) -> float:
    return tags[tag][0] if tags.get(tag) else default
