"""PNG beyond eight bits, its transparent levels, and the frame of an animation that a viewer shows
first."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featkit.images import decode
from tests.image_files import encoded, png_file, png_with
from tests.images import draw_image

RGB = np.asarray(draw_image(3))
GRAY = np.asarray(draw_image(3).convert("L"))
ALPHA = np.linspace(0, 255, GRAY.size).astype(np.uint8).reshape(GRAY.shape)
COLOR_TYPES = {"gray": 0, "colors": 2, "gray and alpha": 4, "colors and alpha": 6}


def deep_png(levels: np.ndarray, color_type: int) -> bytes:
    """A PNG of 16 bits."""
    rows = b"".join(b"\0" + row.tobytes() for row in levels.astype(">u2"))
    return png_file(*levels.shape[:2], bits=16, color=color_type, rows=rows)


def by_white(pixels: np.ndarray, white: int) -> np.ndarray:
    """Eight bits by levels of which `white` is 255."""
    return pixels.astype(np.int64) * white // 255


def assert_shows(data: bytes, expected: np.ndarray) -> None:
    """Decoding gives these pixels, gray or colored, but for rounding."""
    wanted = np.repeat(expected[:, :, None], 3, axis=2) if expected.ndim == 2 else expected
    assert np.abs(decode(data).pixels.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("kind", COLOR_TYPES)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_levels_of_any_number_of_bits_are_those_of_eight(bits: int, kind: str) -> None:
    pixels = RGB if kind.startswith("colors") else GRAY[:, :, None]
    levels = by_white(pixels, 2**bits - 1)
    expected = (
        np.repeat(pixels, 4 - pixels.shape[2], axis=2)[:, :, :3] if pixels.shape[2] == 1 else pixels
    )
    if kind.endswith("alpha"):
        levels = np.dstack([levels, by_white(ALPHA, 2**bits - 1)])
        share = ALPHA[:, :, None] / 255
        expected = np.round(pixels * share + 255 * (1 - share)) * np.ones(3)
    assert_shows(deep_png(levels, COLOR_TYPES[kind]), expected)


@pytest.mark.parametrize("filter", range(5))
def test_low_bytes_are_read_whatever_filter_the_rows_have(filter: int) -> None:
    levels = by_white(RGB, 4095)
    rows = (
        np.frombuffer(b"".join(row.tobytes() for row in levels.astype(">u2")), np.uint8)
        .reshape(60, -1)
        .astype(int)
    )
    left = np.pad(rows, ((0, 0), (6, 0)))[:, :-6]
    above = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(above, ((0, 0), (6, 0)))[:, :-6]
    guess = left + above - corner
    distances = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)])
    paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
    predicted = [0, left, above, (left + above) // 2, paeth][filter]
    filtered = ((rows - predicted) % 256).astype(np.uint8)
    data = png_file(
        60,
        80,
        bits=16,
        color=2,
        rows=b"".join(bytes([filter]) + row.tobytes() for row in filtered),
    )
    assert_shows(data, RGB)


def test_significant_bits_tell_the_white() -> None:
    twelve = by_white(GRAY, 4095)
    replicated = (twelve << 4) | (twelve >> 8)
    dark = by_white(GRAY // 20, 65535) + 1  # not the bytes that 16 bits could be known by
    for levels, significant, expected in (
        (twelve, 12, GRAY),  # as they are
        (twelve << 4, 12, GRAY),  # as the specification has it
        (replicated, 12, GRAY),
        (dark, 16, GRAY // 20),
    ):
        data = png_with((b"sBIT", bytes([significant])), base=deep_png(levels[:, :, None], 0))
        assert_shows(data, expected)


@pytest.mark.parametrize("kind", ["gray", "colors"])
def test_one_transparent_level_of_sixteen_bits_is_white(kind: str) -> None:
    pixels = RGB if kind == "colors" else GRAY[:, :, None]
    levels, level = pixels.astype(np.int64) * 257, pixels[0, 0].astype(int) * 257
    ground = (pixels == pixels[0, 0]).all(axis=2)
    assert 0 < ground.mean() < 1
    data = deep_png(levels, COLOR_TYPES[kind])
    seen = np.where(ground[:, :, None], 255, pixels) * np.ones(3, int)
    assert_shows(png_with((b"tRNS", struct.pack(f">{len(level)}H", *level)), base=data), seen)
    beside = [value ^ 1 for value in level]  # differs in the low byte alone
    assert_shows(
        png_with((b"tRNS", struct.pack(f">{len(level)}H", *beside)), base=data),
        pixels * np.ones(3, int),
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_one_transparent_level_of_few_bits_is_white(bits: int) -> None:
    levels = (GRAY >> (8 - bits)).astype(np.uint8)
    unpacked = (levels[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(unpacked.reshape(len(levels), -1), axis=1)
    data = png_file(
        60, 80, bits=bits, color=0, rows=b"".join(b"\0" + row.tobytes() for row in rows)
    )
    level = int(levels[0, 0])
    shown = levels.astype(int) * 255 // (2**bits - 1)
    assert_shows(data, shown)
    data = png_with((b"tRNS", struct.pack(">H", level)), base=data)
    assert_shows(data, np.where(levels == level, 255, shown))


def solid(color: tuple[int, int, int]) -> Image.Image:
    """An image of one color."""
    return Image.new("RGB", (40, 30), color)


@pytest.mark.parametrize("is_hidden", [True, False])
def test_an_animation_shows_its_own_first_frame(is_hidden: bool) -> None:
    frames = [solid((0, 0, 250)), solid((0, 250, 0))]
    data = encoded(solid((250, 0, 0)), save_all=True, append_images=frames, default_image=is_hidden)
    expected = (0, 0, 250) if is_hidden else (250, 0, 0)
    assert np.unique(decode(data).pixels.reshape(-1, 3), axis=0).tolist() == [list(expected)]


def gif(
    width: int,
    height: int,
    *frames: tuple[int, int, int, int],
    background: int,
    transparent: int | None,
) -> bytes:
    """Return a GIF of red frames (left, top, width, height) on a canvas of four colors."""
    palette = bytes((255, 255, 255, 255, 0, 0, 0, 0, 255, 0, 255, 0))
    data = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x81, background, 0) + palette
    for left, top, frame_width, frame_height in frames:
        if transparent is not None:
            data += b"!\xf9\x04\x05" + struct.pack("<HB", 10, transparent) + b"\0"
        codes = [
            code
            for n in range(frame_width * frame_height)
            for code in ((4, 1) if n % 2 == 0 else (1,))
        ] + [5]
        # 4 clears the table, so that every code has 3 bits
        bits = sum(code << (3 * n) for n, code in enumerate(codes))
        packed = bits.to_bytes(-(-3 * len(codes) // 8), "little")
        data += b"," + struct.pack("<HHHHB", left, top, frame_width, frame_height, 0) + b"\x02"
        data += (
            b"".join(
                bytes([len(packed[n : n + 255])]) + packed[n : n + 255]
                for n in range(0, len(packed), 255)
            )
            + b"\0"
        )
    return data + b";"


@pytest.mark.parametrize("background", [0, 2])
@pytest.mark.parametrize("transparent", [None, 2])
@pytest.mark.parametrize("more", [(), ((0, 0, 10, 8),)])
def test_a_first_frame_smaller_than_its_canvas_lies_on_white(
    background: int, transparent: int | None, more: Any
) -> None:
    expected = np.full((8, 10, 3), 255)
    expected[2:6, 3:8] = (255, 0, 0)
    data = gif(10, 8, (3, 2, 5, 4), *more, background=background, transparent=transparent)
    np.testing.assert_array_equal(decode(data).pixels, expected)


@pytest.mark.parametrize("background", [b"\xff\0\0\xff", bytes(4)])
def test_a_webp_animation_lies_on_white(background: bytes) -> None:
    frame = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "WEBP", lossless=True)[12:]

    def number(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    placed = chunk(
        b"ANMF", number(2) + number(1) + number(3) + number(3) + number(100) + b"\0" + frame
    )
    canvas = chunk(b"VP8X", b"\x12\0\0\0" + number(9) + number(7)) + chunk(
        b"ANIM", background + b"\0\0"
    )
    body = b"WEBP" + canvas + placed * 2
    expected = np.full((8, 10, 3), 255)
    expected[2:6, 4:8] = (255, 0, 0)
    np.testing.assert_array_equal(
        decode(b"RIFF" + struct.pack("<I", len(body)) + body).pixels, expected
    )


@pytest.mark.parametrize("bits", [12, 16])
def test_portable_gray_maps_are_scaled_by_their_own_white(bits: int) -> None:
    levels = by_white(GRAY // 20, 2**bits - 1)  # dark, and it stays so
    data = b"P5 80 60 %d\n" % (2**bits - 1) + levels.astype(">u2").tobytes()
    assert_shows(data, GRAY // 20)
