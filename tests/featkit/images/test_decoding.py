"""From bytes to upright RGB pixels: every kind of image as it is meant."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from featkit.images import (
    decode,
    load,
    thumbnail_jpeg,
)
from tests.image_files import encoded, png_file, with_orientation
from tests.images import draw_image


def as_pixels(image: Image.Image) -> np.ndarray:
    """Return the image's pixels, by Pillow only."""
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_upright_as_exif_transpose_does(orientation: int, format: str) -> None:
    image, exif = draw_image(orientation), with_orientation(orientation)
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    stored = Image.open(io.BytesIO(encoded(image, format, **options)))
    stored.getexif().update(exif)
    expected = as_pixels(ImageOps.exif_transpose(stored))
    found = decode(encoded(image, format, exif=exif, **options))
    np.testing.assert_array_equal(found.pixels, expected)
    assert (found.height, found.width) == expected.shape[:2]
    assert found.pixels.flags.c_contiguous


def test_decode_takes_damaged_exif_for_upright() -> None:
    data = encoded(draw_image(0), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    with warnings.catch_warnings():
        # Pillow says that it is corrupt, which is what is wanted here
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(
            decode(data).pixels, decode(encoded(draw_image(0), "JPEG")).pixels
        )


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("inks", "color"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_decode_shows_inks_as_they_print(
    inks: tuple[int, int, int, int], color: tuple[int, int, int], format: str
) -> None:
    data = encoded(Image.new("CMYK", (64, 48), inks), format)
    assert (b"Adobe" in data) == (format == "JPEG")  # such a JPEG stores its inks inverted
    for shorter_side in (None, 8):
        assert np.abs(decode(data, shorter_side=shorter_side).pixels.astype(int) - color).max() <= 2


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_decode_keeps_the_high_byte_of_sixteen_bits(format: str) -> None:
    levels = np.linspace(0, 65535, 60 * 80).astype(np.uint16).reshape(60, 80)
    found = decode(encoded(Image.fromarray(levels), format)).pixels
    np.testing.assert_array_equal(
        found, np.repeat((levels // 256).astype(np.uint8)[:, :, None], 3, axis=2)
    )


def test_decode_reads_16_bits_in_both_byte_orders() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (6, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    np.testing.assert_array_equal(
        decode(png_file(6, 5, bits=16, color=2, rows=rows)).pixels, levels // 256
    )
    gray = Image.frombytes("I;16B", (5, 6), levels[:, :, 0].tobytes())
    np.testing.assert_array_equal(
        decode(encoded(gray, "TIFF")).pixels[:, :, 1], levels[:, :, 0] // 256
    )


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 127, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 256.0, 65535.0], [0, 0, 255]),
        ([0.0, 50_000.0, 100_000.0], [0, 127, 255]),
        ([-0.03, float("nan"), 1.0], [0, 0, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([0, 1, 255], [0, 1, 255]),
        ([0, 1, 2], [0, 1, 2]),
        ([-5, 32_896, 65_535], [0, 128, 255]),
        ([0, 1_000_000, 2_000_000], [0, 127, 255]),
    ],
)
def test_decode_finds_the_white_of_float_and_int32_gray(
    levels: list[float], expected: list[int]
) -> None:
    kind = np.float32 if isinstance(levels[0], float) else np.int32
    found = decode(encoded(Image.fromarray(np.array([levels], kind)), "TIFF")).pixels
    assert found[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("mode", "white", "black"),
    [
        ("1", 1, 0),
        ("L", 255, 0),
        ("LA", (255, 255), (0, 255)),
        ("La", (255, 255), (0, 255)),
        ("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
        ("RGBa", (255, 255, 255, 255), (0, 0, 0, 255)),
        ("RGBX", (255, 255, 255, 0), (0, 0, 0, 0)),
        ("YCbCr", (255, 128, 128), (0, 128, 128)),
        ("HSV", (7, 0, 255), (7, 255, 0)),
        ("I;16", 65535, 0),
    ],
)
def test_load_shows_white_and_black_of_every_mode(mode: str, white: Any, black: Any) -> None:
    for color, level in ((white, 255), (black, 0)):
        assert np.unique(load(Image.new(mode, (3, 2), color)).pixels).tolist() == [level]


def test_decode_reads_a_palette() -> None:
    image = draw_image(3).quantize(16)
    np.testing.assert_array_equal(decode(encoded(image)).pixels, as_pixels(image))


def test_decode_lays_transparency_over_white() -> None:
    image = draw_image(5).convert("RGBA")
    alpha = np.linspace(0, 255, 60 * 80).astype(np.uint8).reshape(60, 80)
    image.putalpha(Image.fromarray(alpha))
    share = alpha[:, :, None] / 255
    expected = np.asarray(image)[:, :, :3] * share + 255 * (1 - share)
    found = decode(encoded(image)).pixels
    assert np.abs(found - expected).max() <= 1
    assert found[alpha == 0].min() == 255


@pytest.mark.parametrize(
    ("mode", "format", "see_through"),
    [("P", "GIF", 1), ("P", "PNG", 1), ("L", "PNG", 90), ("RGB", "PNG", (9, 8, 7))],
)
def test_decode_shows_a_transparent_color_as_white(
    mode: str, format: str, see_through: Any
) -> None:
    image = Image.new(mode, (4, 2), 0)
    if mode == "P":
        image.putpalette([10, 20, 30, 0, 200, 0])
    image.putpixel((1, 0), see_through)
    found = decode(encoded(image, format, transparency=see_through)).pixels
    assert found[0, 1].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == ([10, 20, 30] if mode == "P" else [0, 0, 0])


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "MPO", "TIFF"])
def test_decode_shows_the_first_frame(format: str) -> None:
    red, blue = (Image.new("RGB", (40, 30), color) for color in ((250, 0, 0), (0, 0, 250)))
    data = encoded(red, format, save_all=True, append_images=[blue, blue])
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) > 1
        image.seek(1)
        # of Pillow's own, the frame it stands at
        assert np.abs(load(image).pixels.astype(int) - (0, 0, 250)).max() <= 6
    assert np.abs(decode(data).pixels.astype(int) - (250, 0, 0)).max() <= 6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3000), (3000, 2)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_decode_takes_the_smallest_and_the_narrowest(height: int, width: int, format: str) -> None:
    found = decode(
        encoded(Image.new("RGB", (width, height), (200, 10, 30)), format), shorter_side=256
    )
    assert (found.height, found.width) == found.pixels.shape[:2] == (height, width)
    assert np.abs(found.pixels.astype(int) - (200, 10, 30)).max() <= 3


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("shorter_side", "expected"),
    [(1, 75), (75, 75), (76, 150), (150, 150), (151, 300), (300, 300), (301, 600), (900, 600)],
)
def test_decode_scales_a_jpeg_to_no_less_than_asked(
    shorter_side: int, expected: int, orientation: int
) -> None:
    image = draw_image(7, height=600, width=803)
    data = encoded(image, "JPEG", quality=92, exif=with_orientation(orientation))
    full, found = decode(data), decode(data, shorter_side=shorter_side)
    assert min(found.pixels.shape[:2]) == expected
    assert (found.height, found.width) == (full.height, full.width) == full.pixels.shape[:2]
    height, width = found.pixels.shape[:2]
    reduced = np.asarray(
        Image.fromarray(full.pixels).resize((width, height), Image.Resampling.BOX), np.float64
    )
    assert np.abs(found.pixels - reduced).mean() < 1.5


def test_decode_scales_nothing_but_jpeg() -> None:
    image = draw_image(8, height=600, width=800)
    np.testing.assert_array_equal(decode(encoded(image), shorter_side=10).pixels, as_pixels(image))


def test_decode_gives_each_thread_its_own_image() -> None:
    formats = ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]
    files = [
        encoded(draw_image(number, height=200, width=300), formats[number % 6])
        for number in range(24)
    ]
    expected = [decode(data, shorter_side=64).pixels for data in files]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda data: decode(data, shorter_side=64).pixels, files * 3))
    for place, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, expected[place % 24])


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(600, 800, (192, 256)), (800, 600, (256, 192)), (60, 80, (60, 80)), (2, 3000, (1, 256))],
)
def test_a_thumbnail_is_the_image_made_small_and_the_same_bytes(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    pixels = np.asarray(draw_image(6, height=max(height, 20), width=width))[:height]
    data = thumbnail_jpeg(pixels)
    assert data == thumbnail_jpeg(pixels.copy())
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, (image.height, image.width)) == ("JPEG", "RGB", expected)
        small = np.asarray(
            Image.fromarray(pixels).resize(image.size, Image.Resampling.BOX), np.float64
        )
        assert np.abs(np.asarray(image, np.float64) - small).mean() < 5
