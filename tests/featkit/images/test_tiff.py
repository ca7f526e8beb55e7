"""TIFF files of every depth and layout, as tifffile writes them, show what eight bits show, or are
refused by name."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from featkit.images import ImageLimits, decode
from tests.image_files import encoded
from tests.images import draw_image
from tests.profiles import P3, rgb_profile
from tests.sentences import refused

RGB = np.asarray(draw_image(3, height=75, width=101))
GRAY = np.asarray(draw_image(3, height=75, width=101).convert("L"))
ALPHA = np.linspace(0, 255, GRAY.size).astype(np.uint8).reshape(GRAY.shape)


def tiff(levels: np.ndarray, **options: Any) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, levels, **options)
    return buffer.getvalue()


def by_white(pixels: np.ndarray, white: float, dtype: Any) -> np.ndarray:
    """Eight bits by levels of which `white` is 255."""
    levels = pixels.astype(np.float64) * white / 255
    return (levels if np.dtype(dtype).kind == "f" else np.floor(levels)).astype(dtype)


def over_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) with ALPHA over white."""
    share = ALPHA[:, :, None] / 255
    return np.round(pixels.reshape(*ALPHA.shape, -1) * share + 255 * (1 - share)) * np.ones(3)


def assert_shows(data: bytes, expected: np.ndarray, *, within: int = 1) -> None:
    """Decoding gives these pixels, gray or colored."""
    found = decode(data).pixels.astype(int)
    wanted = np.repeat(expected[:, :, None], 3, axis=2) if expected.ndim == 2 else expected
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= within


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (32, 48)},
    "packed": {"compression": "zlib"},
    "packed, big-endian": {"compression": "zlib", "byteorder": ">"},
    "packed tiles": {"compression": "zlib", "tile": (32, 48), "byteorder": ">"},
    "predicted": {"compression": "zlib", "predictor": True, "rowsperstrip": 9},
    "predicted tiles": {
        "compression": "zlib",
        "predictor": True,
        "tile": (32, 48),
        "byteorder": ">",
    },
    "big": {"bigtiff": True},
    "big, big-endian": {"bigtiff": True, "byteorder": ">", "compression": "zlib"},
}
KINDS: dict[str, tuple[Any, float]] = {
    "10 bits": (np.uint16, 1023),
    "12 bits": (np.uint16, 4095),
    "14 bits": (np.uint16, 16383),
    "16 bits": (np.uint16, 65535),
    "signed 16": (np.int16, 32767),
    "unsigned 32": (np.uint32, 2**32 - 1),
    "signed 32": (np.int32, 2**31 - 1),
    "12 in signed 32": (np.int32, 4095),
    "half": (np.float16, 1),
    "single": (np.float32, 1),
    "12 in single": (np.float32, 4095),
    "double": (np.float64, 1),
}


# tifffile writes the predictor of floats with another package only: for that see below.
EACH = [
    (k, way)
    for k in KINDS
    for way in LAYOUTS
    if np.dtype(KINDS[k][0]).kind != "f" or "predictor" not in LAYOUTS[way]
]


@pytest.mark.parametrize(("kind", "layout"), EACH)
def test_gray_and_colors_of_every_depth_and_layout(kind: str, layout: str) -> None:
    (dtype, white), options = KINDS[kind], LAYOUTS[layout]
    assert_shows(tiff(by_white(GRAY, white, dtype), **options), GRAY)
    assert_shows(tiff(by_white(RGB, white, dtype), photometric="rgb", **options), RGB)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535), (np.uint16, 4095)]
)
def test_colors_in_planes(dtype: Any, white: float, layout: str) -> None:
    planes = np.ascontiguousarray(by_white(RGB, white, dtype).transpose(2, 0, 1))
    assert_shows(tiff(planes, photometric="rgb", planarconfig="separate", **LAYOUTS[layout]), RGB)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["12 bits", "16 bits", "unsigned 32"])
def test_white_is_zero(kind: str, layout: str) -> None:
    dtype, white = KINDS[kind]
    levels = by_white(255 - GRAY, white, dtype)
    assert_shows(tiff(levels, photometric="miniswhite", **LAYOUTS[layout]), GRAY, within=2)


@pytest.mark.parametrize("layout", ["plain", "big-endian", "packed", "predicted tiles"])
@pytest.mark.parametrize("white", [4095, 65535])
def test_transparency_is_laid_over_white(white: float, layout: str) -> None:
    options = LAYOUTS[layout]
    gray = by_white(np.dstack([GRAY, ALPHA]), white, np.uint16)
    colored = by_white(np.dstack([RGB, ALPHA]), white, np.uint16)
    assert_shows(
        tiff(gray, photometric="minisblack", extrasamples=["unassalpha"], **options),
        over_white(GRAY),
    )
    assert_shows(
        tiff(colored, photometric="rgb", extrasamples=["unassalpha"], **options), over_white(RGB)
    )
    for levels, photometric, pixels in ((gray, "minisblack", GRAY), (colored, "rgb", RGB)):
        multiplied = levels.copy()
        multiplied[..., :-1] = levels[..., :-1] * (ALPHA[:, :, None] / 255)
        data = tiff(multiplied, photometric=photometric, extrasamples=["assocalpha"], **options)
        assert_shows(data, over_white(pixels), within=4)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_what_libtiff_compresses_is_read(compression: str, predictor: int) -> None:
    image = Image.fromarray(by_white(GRAY, 4095, np.uint16))
    data = encoded(
        image,
        "TIFF",
        compression=compression,
        tiffinfo={317: predictor} if compression != "packbits" else {},
    )
    assert_shows(data, GRAY)


def test_floats_that_libtiff_predicted_are_read() -> None:
    data = encoded(
        Image.fromarray(by_white(GRAY, 1, np.float32)),
        "TIFF",
        compression="tiff_adobe_deflate",
        tiffinfo={317: 3},
    )
    assert_shows(data, GRAY)
    with Image.open(io.BytesIO(data)) as image:
        assert image.tag_v2[317] == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("order", ["<", ">"])
def test_levels_packed_without_gaps_are_read(bits: int, order: str) -> None:
    # a dark image: the number of bits is declared, so it stays dark
    levels = by_white(GRAY // 3, 2**bits - 1, np.uint16)
    unpacked = (levels[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(unpacked.astype(np.uint8).reshape(len(levels), -1), axis=1)
    height, width = levels.shape
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, rows.size),
    ]
    directory = struct.pack(order + "H", len(tags)) + b"".join(
        struct.pack(order + "HHII", tag, 4, 1, v) for tag, v in tags
    )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    data = mark + struct.pack(order + "I", 8 + rows.size) + rows.tobytes() + directory + bytes(4)
    assert_shows(data, GRAY // 3)


def test_the_highest_level_that_a_file_declares_rules() -> None:
    dark = by_white(GRAY // 20, 65535, np.uint16) + np.uint16(1)
    assert dark.max() < 4095
    assert_shows(tiff(dark, extratags=[(281, "H", 1, 65535, True)]), GRAY // 20)
    assert_shows(tiff(by_white(GRAY, 4095, np.uint16), extratags=[(281, "H", 1, 4095, True)]), GRAY)
    statistics = int(by_white(GRAY, 4095, np.uint16).max())  # some write the highest level there is
    assert_shows(
        tiff(by_white(GRAY, 4095, np.uint16), extratags=[(281, "H", 1, statistics, True)]), GRAY
    )


def test_orientation_and_profile_of_a_deep_tiff_are_kept() -> None:
    profile = rgb_profile(P3)
    deep = tiff(
        RGB.astype(np.uint16) * 257,
        photometric="rgb",
        iccprofile=profile,
        extratags=[(274, "H", 1, 6, True)],
    )
    plain = encoded(Image.fromarray(RGB), icc_profile=profile)
    np.testing.assert_array_equal(decode(deep).pixels, np.rot90(decode(plain).pixels, -1))
    assert (decode(deep).height, decode(deep).width) == (101, 75)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [5, 6])
@pytest.mark.parametrize("extra", ["unspecified", "unassalpha"])
def test_more_channels_than_four_are_refused(dtype: Any, channels: int, extra: str) -> None:
    levels = np.dstack([RGB] + [GRAY] * (channels - 3)).astype(dtype)
    data = tiff(levels, photometric="rgb", extrasamples=[extra] + ["unspecified"] * (channels - 4))
    with refused(f"x.tif is a TIFF of {channels} channels, but featkit reads at most 4"):
        decode(data, name="x.tif")


REFUSED: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "two grays": (
        np.dstack([GRAY, GRAY]).astype(np.uint16),
        {"photometric": "minisblack", "extrasamples": ["unspecified"]},
        "x.tif is a TIFF of 2 channels of 16 bits (unsigned)",
    ),
    "three grays of bytes": (
        RGB,
        {
            "photometric": "minisblack",
            "planarconfig": "contig",
            "extrasamples": ["unspecified"] * 2,
        },
        "x.tif is a TIFF of 3 channels of 8 bits (unsigned)",
    ),
    "complex": (GRAY.astype(np.complex64), {}, "x.tif is a TIFF of 1 channel of 64 bits (complex)"),
    "signed around zero": (
        (GRAY.astype(np.int64) * 257 - 32768).astype(np.int16),
        {},
        "the level of black is unknown",
    ),
    "signed bytes": (
        (GRAY.astype(int) - 128).astype(np.int8),
        {},
        "the level of black is unknown",
    ),
    "64 bits": (GRAY.astype(np.uint64), {}, "x.tif is a TIFF of 1 channel of 64 bits (unsigned)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_one_meaning_is_refused_by_name(case: str) -> None:
    levels, options, words = REFUSED[case]
    with refused("x.tif ", words):
        decode(tiff(levels, **options), name="x.tif")


def test_a_deep_tiff_is_held_to_the_limits() -> None:
    data = tiff(GRAY.astype(np.uint16))
    decode(data, limits=ImageLimits(max_pixels=GRAY.size))
    with refused("x.tif has 7,575 pixels (101×75), more than the limit of 7,574"):
        decode(data, name="x.tif", limits=ImageLimits(max_pixels=GRAY.size - 1))


@pytest.mark.parametrize("layout", ["plain", "packed", "tiles", "predicted"])
def test_a_deep_tiff_that_is_cut_off_is_refused(layout: str) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (75, 101), np.uint16)
    data = tiff(noise, **LAYOUTS[layout])
    with refused("x.tif is damaged and cannot be decoded"):
        decode(data[: len(data) * 2 // 3], name="x.tif")


def test_the_first_page_is_shown() -> None:
    pages = [by_white(GRAY, 4095, np.uint16), by_white(255 - GRAY, 4095, np.uint16)]
    assert_shows(tiff(np.stack(pages), photometric="minisblack"), GRAY)


@pytest.mark.parametrize("rows_per_strip", [1, 8])
def test_strips_without_their_lengths_end_where_the_next_begins(rows_per_strip: int) -> None:
    data = tiff(by_white(GRAY, 4095, np.uint16), rowsperstrip=rows_per_strip)
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * entry
        if struct.unpack_from("<H", data, at)[0] == 279:
            data = data[:at] + struct.pack("<H", 65000) + data[at + 2 :]  # a tag that nobody knows
    assert_shows(data, GRAY)
