"""Any bytes are an image or refused by name, within bounds of time and memory: valid files of each
format, mutated."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from featkit.images import ImageLimits, decode
from featkit.images.color import transform_of
from tests.fuzzing import CASES, fuzz
from tests.image_files import encoded, png_chunk, png_file, png_with
from tests.images import draw_image
from tests.profiles import P3, gray_profile, press_profile, rgb_profile
from tests.raw_files import dng_file

IMAGE = draw_image(3, height=48, width=64)
PIXELS = np.asarray(IMAGE)
LIMITS = ImageLimits(max_pixels=10**6, max_bytes=2**22)
PROFILE = rgb_profile(P3)


def parse(data: bytes) -> None:
    """Decode, at full size and for a small model; what comes out is what was promised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side in (None, 16):
            found = decode(data, name="x", limits=LIMITS, shorter_side=side)
            assert found.pixels.dtype == np.uint8
            assert found.pixels.ndim == 3
            assert found.pixels.shape[2] == 3
            assert found.height * found.width <= LIMITS.max_pixels


def tiff(levels: np.ndarray, **options: Any) -> bytes:
    """A TIFF by tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, levels, **options)
    return buffer.getvalue()


def exif() -> Image.Exif:
    """A few tags, and some below them."""
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010E] = "a description"
    tags.get_ifd(0x8769)[0xA005] = {1: "R03", 2: b"0100"}
    return tags


def jpegs() -> list[bytes]:
    """Baseline with all that a camera adds, progressive with restarts, inks, gray."""
    return [
        encoded(IMAGE, "JPEG", exif=exif(), icc_profile=PROFILE, comment="hello"),
        encoded(IMAGE, "JPEG", progressive=True, restart_marker_blocks=4),
        encoded(IMAGE.convert("CMYK"), "JPEG", icc_profile=press_profile()),
        encoded(IMAGE.convert("L"), "JPEG", icc_profile=gray_profile(1.8)),
        encoded(IMAGE, "MPO", save_all=True, append_images=[draw_image(1, height=48, width=64)]),
    ]


def pngs() -> list[bytes]:
    """Return PNGs with metadata, 16 bits of each color type, an animation, a palette and gamma."""
    deep = (PIXELS.astype(">u2") * 16).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    gray = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(deep[:, :, :2]))
    frames = [draw_image(seed, height=48, width=64) for seed in (1, 2)]
    return [
        encoded(IMAGE, icc_profile=PROFILE, exif=exif()),
        png_with(
            (b"sBIT", b"\x0c\x0c\x0c"),
            (b"tRNS", bytes(6)),
            base=png_file(48, 64, bits=16, color=2, rows=rows),
        ),
        png_file(48, 64, bits=16, color=4, rows=gray),
        encoded(IMAGE, save_all=True, append_images=frames, default_image=True),
        encoded(IMAGE.quantize(16), transparency=3),
        png_with(
            (b"cICP", b"\x09\x10\0\1"), (b"gAMA", struct.pack(">I", 55556)), base=encoded(IMAGE)
        ),
    ]


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums they should have."""
    repaired, at = [data[:8]], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        repaired.append(png_chunk(kind, body) if len(body) == length else data[at:])
        at += 12 + length
    return b"".join(repaired)


def tiffs() -> list[bytes]:
    """Return TIFFs of all layouts, compressions, predictors, sample types and byte orders."""
    gray, deep = np.asarray(IMAGE.convert("L")), PIXELS.astype(np.uint16)
    return [
        encoded(IMAGE, "TIFF", compression="tiff_lzw", icc_profile=PROFILE),
        encoded(IMAGE, "TIFF", compression="jpeg"),
        tiff(PIXELS, photometric="rgb", compression="zlib", tile=(16, 32)),
        encoded(IMAGE.convert("CMYK"), "TIFF"),
        tiff(
            PIXELS.astype(np.uint16) * 257,
            photometric="rgb",
            compression="zlib",
            predictor=True,
            tile=(32, 32),
            byteorder=">",
        ),
        tiff(
            deep.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate", bigtiff=True
        ),
        tiff((gray / 255).astype(np.float32), photometric="miniswhite", rowsperstrip=5),
        tiff(gray.astype(np.int32), bigtiff=True, byteorder=">", compression="zlib"),
        encoded(
            Image.fromarray((gray / 255).astype(np.float32)),
            "TIFF",
            compression="tiff_adobe_deflate",
            tiffinfo={317: 3},
        ),
    ]


def others() -> list[bytes]:
    """Return files of the other formats that Pillow reads."""
    frames = [draw_image(seed, height=48, width=64) for seed in (1, 2)]
    formats = ("BMP", "TGA", "PCX", "PPM", "ICO", "JPEG2000", "QOI", "DDS", "SGI")
    return [
        encoded(
            IMAGE.quantize(16),
            "GIF",
            save_all=True,
            append_images=[frame.quantize(16) for frame in frames],
        ),
        encoded(IMAGE, "WEBP", exif=exif(), icc_profile=PROFILE),
        encoded(IMAGE, "WEBP", save_all=True, append_images=frames),
        encoded(IMAGE, "AVIF", exif=exif()),
        *(encoded(IMAGE, format) for format in formats),
    ]


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("seeds", [jpegs, pngs, tiffs, others], ids=lambda seeds: seeds.__name__)
def test_any_bytes_are_a_image_or_refused(seeds: Callable[[], list[bytes]], cases: int) -> None:
    fuzz(parse, seeds(), cases=cases, repair=with_checksums if seeds is pngs else lambda data: data)


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_a_raw_photo_or_refused(cases: int) -> None:
    pytest.importorskip("rawpy")
    fuzz(parse, [dng_file(PIXELS)], cases=cases)


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_a_profile_or_none(cases: int) -> None:
    def use(profile: bytes) -> None:
        for mode in ("RGB", "L", "CMYK"):
            transform = transform_of(profile, mode)
            if transform is not None:
                assert transform.apply(Image.new(transform.input_mode, (3, 2))).size == (3, 2)

    fuzz(use, [PROFILE, gray_profile(1.8), press_profile()], cases=cases)


@pytest.mark.parametrize("cases", CASES)
def test_any_profile_in_a_png_leaves_it_readable(cases: int) -> None:
    def use(profile: bytes) -> None:
        parse(png_with((b"iCCP", b"x\0\0" + zlib.compress(profile)), base=encoded(IMAGE)))

    fuzz(use, [PROFILE, gray_profile(1.8), press_profile()], cases=cases)
