"""Tests that pixels are converted to sRGB by any valid profile, and others are ignored."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from featkit.images import color, decode, load
from tests.image_files import encoded, png_with
from tests.images import draw_image
from tests.profiles import ADOBE, P3, PROPHOTO, SRGB, gray_profile, press_profile, rgb_profile

PROFILES = {
    "P3": rgb_profile(P3),
    "Adobe": rgb_profile(ADOBE),
    "ProPhoto": rgb_profile(PROPHOTO, gamma=1.8),
}
LINEAR = rgb_profile(SRGB, gamma=1.0)


def opened(profile: bytes) -> ImageCms.ImageCmsProfile:
    """Return the profile as ImageCms expects it."""
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def in_space(image: Image.Image, profile: bytes) -> Image.Image:
    """An sRGB image by the levels that stand for its colors in another space."""
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), opened(profile), outputMode="RGB"
    )
    assert converted is not None
    converted.info.clear()
    return converted


def shown(image: Image.Image, profile: bytes) -> np.ndarray:
    """Levels of a space as sRGB, by ImageCms: what decoding has to give."""
    converted = ImageCms.profileToProfile(
        image, opened(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    return np.asarray(converted).astype(int)


def to_linear(image: Image.Image) -> np.ndarray:
    """Light from 0 to 1 of an sRGB image, by the formula of IEC 61966-2-1."""
    share = np.asarray(image) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("space", PROFILES)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "MPO", "AVIF"])
def test_a_profile_is_applied_in_every_format(format: str, space: str) -> None:
    there = in_space(draw_image(3), PROFILES[space])
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {"quality": 100}
    data = encoded(there, format, icc_profile=PROFILES[space], **options)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(decode(data).pixels, shown(stored, PROFILES[space]))
    ignored = np.abs(np.asarray(stored).astype(int) - decode(data).pixels).mean()
    assert ignored > 5  # without it the image would be another


@pytest.mark.parametrize("space", PROFILES)
def test_a_scaled_jpeg_is_converted_too(space: str) -> None:
    there = in_space(draw_image(3, height=600, width=800), PROFILES[space])
    data = encoded(there, "JPEG", quality=95, icc_profile=PROFILES[space])
    found = decode(data, shorter_side=150).pixels
    assert found.shape == (150, 200, 3)
    plain = decode(encoded(there, "JPEG", quality=95), shorter_side=150).pixels
    np.testing.assert_array_equal(found, shown(Image.fromarray(plain), PROFILES[space]))


def test_large_images_are_reduced_before_color_conversion() -> None:
    image = draw_image(5, height=900, width=1300)
    data = encoded(in_space(image, PROFILES["P3"]), icc_profile=PROFILES["P3"])
    found = decode(data, shorter_side=100)
    assert (found.height, found.width) == (900, 1300)
    assert found.pixels.shape == (225, 325, 3)  # a quarter: no less than twice what was asked for
    expected = np.asarray(image.reduce(4)).astype(int)
    assert np.abs(found.pixels - expected).mean() < 2
    np.testing.assert_array_equal(
        decode(encoded(image), shorter_side=100).pixels, np.asarray(image)
    )


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB;16", "LA"])
def test_colors_are_converted_in_every_mode(mode: str) -> None:
    profile = PROFILES["ProPhoto"]
    there = in_space(draw_image(3), profile)
    alpha = np.linspace(0, 255, 60 * 80).astype(np.uint8).reshape(60, 80)
    if mode == "RGB;16":
        rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(there).astype(">u2") * 257)
        header = struct.pack(">IIBBBBB", 80, 60, 16, 2, 0, 0, 0)
        data = png_with(
            (b"IHDR", header),
            (b"iCCP", b"x\0\0" + zlib.compress(profile)),
            (b"IDAT", zlib.compress(rows)),
        )
        expected = shown(there, profile)
    elif mode == "P":
        palette = there.quantize(64)
        data, expected = (
            encoded(palette, icc_profile=profile),
            shown(palette.convert("RGB"), profile),
        )
    else:
        with_alpha = there.convert(mode)
        with_alpha.putalpha(Image.fromarray(alpha))
        data = encoded(with_alpha, icc_profile=profile)
        opaque = shown(with_alpha.convert("RGB"), profile)
        expected = np.round(
            opaque * (alpha[:, :, None] / 255) + 255 * (1 - alpha[:, :, None] / 255)
        )
    assert np.abs(decode(data).pixels - expected).max() <= 1


@pytest.mark.parametrize("gamma", [1.0, 1.8, 3.0])
@pytest.mark.parametrize("alpha", [False, True])
def test_gray_is_converted_by_a_profile_for_gray(gamma: float, alpha: bool) -> None:
    gray = draw_image(2).convert("L")
    light = to_linear(gray)
    there = Image.fromarray((light ** (1 / gamma) * 255).round().astype(np.uint8))
    data = encoded(there.convert("LA") if alpha else there, icc_profile=gray_profile(gamma))
    found = decode(data).pixels.astype(int)
    assert np.ptp(found, axis=2).max() <= 1
    near = light > 0.05  # below that, one of 256 levels of a linear gray is many of sRGB
    assert np.abs(found[..., 0] - np.asarray(gray))[near].max() <= 3


def test_gray_with_a_profile_for_rgb_is_converted_by_it() -> None:
    gray = draw_image(2).convert("L")
    found = decode(encoded(gray, icc_profile=LINEAR)).pixels
    np.testing.assert_array_equal(found, shown(gray.convert("RGB"), LINEAR))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_are_shown_by_the_profile_of_their_press(format: str) -> None:
    cyan = encoded(Image.new("CMYK", (64, 48), (255, 0, 0, 0)), format, icc_profile=press_profile())
    white = encoded(Image.new("CMYK", (64, 48), (0, 0, 0, 0)), format, icc_profile=press_profile())
    for side in (None, 8):
        red, green, blue = decode(cyan, shorter_side=side).pixels[2, 2]
        assert red > 200 > green + 60 > blue  # orange, as no formula says
        assert decode(white, shorter_side=side).pixels.min() >= 250


def test_lab_is_shown_in_its_colors() -> None:
    image = draw_image(3)
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(image, to_lab)
    assert lab is not None
    assert np.abs(decode(encoded(lab, "TIFF")).pixels.astype(int) - np.asarray(image)).max() <= 6


def test_a_profile_of_srgb_changes_nothing() -> None:
    image = draw_image(4)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert color.transform_of(profile, "RGB") is None
    np.testing.assert_array_equal(
        decode(encoded(image, icc_profile=profile)).pixels, np.asarray(image)
    )


DAMAGED = {
    "empty": b"",
    "noise": np.random.default_rng(0).bytes(700),
    "cut off": PROFILES["P3"][:300],
    "for inks": press_profile(),
    "for gray": gray_profile(3.0),
    "a device link": rgb_profile(PROPHOTO, device=b"link"),
    "abstract": rgb_profile(PROPHOTO, device=b"abst"),
    "oversize": LINEAR + bytes(color.MAX_PROFILE_BYTES),
}


@pytest.mark.parametrize("case", DAMAGED)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_what_is_no_profile_for_the_image_is_ignored(case: str, format: str) -> None:
    image = draw_image(4)
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    data = encoded(image, format, icc_profile=DAMAGED[case], **options)
    np.testing.assert_array_equal(
        decode(data).pixels, decode(encoded(image, format, **options)).pixels
    )


def test_a_profile_for_rgb_says_nothing_of_inks() -> None:
    inks = draw_image(4).convert("CMYK")
    found = decode(encoded(inks, "TIFF", icc_profile=PROFILES["P3"])).pixels
    np.testing.assert_array_equal(found, np.asarray(inks.convert("RGB")))


def test_pillow_images_are_converted_by_their_profile() -> None:
    there = in_space(draw_image(3), PROFILES["P3"])
    stored = Image.open(io.BytesIO(encoded(there, icc_profile=PROFILES["P3"])))
    for image in (stored, stored.convert("RGB"), stored.copy()):
        np.testing.assert_array_equal(load(image).pixels, shown(there, PROFILES["P3"]))


def test_transforms_are_kept_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = color._make_transform

    def counted(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
        made.append(mode)
        return make(profile, mode)

    monkeypatch.setattr(color, "_make_transform", counted)
    monkeypatch.setattr(color, "_transforms", type(color._transforms)())
    first = rgb_profile(P3, gamma=2.21)
    assert color.transform_of(first, "RGB") is color.transform_of(bytes(bytearray(first)), "RGB")
    assert len(made) == 1
    for n in range(color.CACHED_TRANSFORMS):
        color.transform_of(rgb_profile(P3, gamma=2.3 + n / 100), "RGB")
    assert len(color._transforms) == color.CACHED_TRANSFORMS
    color.transform_of(first, "RGB")
    assert len(made) == color.CACHED_TRANSFORMS + 2


def test_one_transform_serves_many_threads() -> None:
    profile = rgb_profile(ADOBE, gamma=2.19)
    images = [in_space(draw_image(seed, height=200, width=300), profile) for seed in range(8)]
    expected = [shown(image, profile) for image in images]
    with ThreadPoolExecutor(8) as threads:
        found = list(
            threads.map(lambda image: np.asarray(color.to_srgb(image, profile)), images * 12)
        )
    for index, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, expected[index % 8])


@pytest.mark.parametrize("exponent", [1.0, 1 / 1.8, 1 / 2.6])
def test_a_png_is_shown_by_its_gamma(exponent: float) -> None:
    image = draw_image(3)
    levels = (to_linear(image) ** exponent * 255).round().astype(np.uint8)
    data = encoded(Image.fromarray(levels))
    gamma = struct.pack(">I", round(exponent * 100_000))
    assert (
        np.abs(
            decode(png_with((b"gAMA", gamma), base=data)).pixels.astype(int) - np.asarray(image)
        ).max()
        <= 8
    )
    with_srgb = png_with((b"gAMA", gamma), (b"sRGB", b"\0"), base=data)
    # what says sRGB rules over gamma
    np.testing.assert_array_equal(decode(with_srgb).pixels, levels)


@pytest.mark.parametrize("gamma", [45455, 45000, 0, 1, 2**31])
def test_a_gamma_near_srgb_or_out_of_reason_changes_nothing(gamma: int) -> None:
    image = draw_image(3)
    data = png_with((b"gAMA", struct.pack(">I", gamma)), base=encoded(image))
    np.testing.assert_array_equal(decode(data).pixels, np.asarray(image))


def test_a_png_is_shown_by_its_primaries() -> None:
    there = in_space(draw_image(3), PROFILES["Adobe"])
    numbers = [0.3127, 0.3290, *(number for primary in ADOBE for number in primary)]
    primaries = struct.pack(">8I", *(round(number * 100_000) for number in numbers))
    data = png_with((b"cHRM", primaries), (b"gAMA", struct.pack(">I", 45455)), base=encoded(there))
    assert np.abs(decode(data).pixels - shown(there, PROFILES["Adobe"])).max() <= 1
    alone = png_with((b"cHRM", primaries), base=encoded(there))
    np.testing.assert_array_equal(decode(alone).pixels, np.asarray(there))


def test_code_points_rule_over_a_profile() -> None:
    there = in_space(draw_image(3), rgb_profile(P3))
    # Display P3, a power of 2.2
    data = png_with((b"cICP", b"\x0c\x04\0\1"), base=encoded(there, icc_profile=LINEAR))
    assert np.abs(decode(data).pixels - shown(there, rgb_profile(P3))).max() <= 1
    assert (
        color.profile_of_cicp(1, 13)
        is color.profile_of_cicp(2, 2)
        is color.profile_of_cicp(1, 1)
        is None
    )


@pytest.mark.parametrize(("transfer", "white"), [(16, 0.5807), (18, 0.75)])
def test_hdr_is_shown_with_its_diffuse_white_as_white(transfer: int, white: float) -> None:
    levels = np.array([[0, round(white * 255) - 40, round(white * 255), 255]], np.uint8)
    data = png_with(
        (b"cICP", bytes([9, transfer, 0, 1])), base=encoded(Image.fromarray(levels).convert("RGB"))
    )
    found = decode(data).pixels[0, :, 0]
    assert (found[0], found[3]) == (0, 255)
    assert found[2] >= 250 > 210 > found[1] > 100


def test_an_avif_is_shown_by_its_code_points() -> None:
    data = bytearray(
        encoded(in_space(draw_image(3), rgb_profile(P3)), "AVIF", quality=100, subsampling="4:4:4")
    )
    at = data.index(b"colrnclx") + 8
    plain = decode(bytes(data)).pixels
    data[at : at + 4] = struct.pack(">HH", 12, 4)
    np.testing.assert_array_equal(
        decode(bytes(data)).pixels, shown(Image.fromarray(plain), rgb_profile(P3))
    )


def test_a_jpeg_2000_is_shown_by_its_profile() -> None:
    there = in_space(draw_image(3), PROFILES["P3"])
    data = encoded(there, "JPEG2000")
    header, colors = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    length = int.from_bytes(data[colors : colors + 4], "big")
    box = struct.pack(">I", 11 + len(PROFILES["P3"])) + b"colr\x02\0\0" + PROFILES["P3"]
    grown = int.from_bytes(data[header : header + 4], "big") - length + len(box)
    data = (
        data[:header]
        + struct.pack(">I", grown)
        + data[header + 4 : colors]
        + box
        + data[colors + length :]
    )
    np.testing.assert_array_equal(decode(data).pixels, shown(there, PROFILES["P3"]))


def test_a_camera_that_names_adobe_rgb_needs_no_profile() -> None:
    there = in_space(draw_image(3, height=400, width=400), rgb_profile(ADOBE, gamma=563 / 256))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535  # "uncalibrated"
    exif.get_ifd(0x8769)[0xA005] = {1: "R03", 2: b"0100"}
    plain = decode(encoded(there, "JPEG", quality=95)).pixels
    found = decode(encoded(there, "JPEG", quality=95, exif=exif)).pixels
    assert (
        np.abs(found - shown(Image.fromarray(plain), rgb_profile(ADOBE, gamma=563 / 256))).max()
        <= 1
    )
    exif.get_ifd(0x8769)[0xA005] = {1: "R98", 2: b"0100"}
    np.testing.assert_array_equal(
        decode(encoded(there, "JPEG", quality=95, exif=exif)).pixels, plain
    )


@pytest.mark.parametrize("gamma", [0.0, -1.0, 50.0, float("nan")])
def test_no_profile_is_made_of_numbers_that_no_image_has(gamma: float) -> None:
    assert color.profile_of_gamma(gamma) is None
    line = color.Primaries((0.3, 0.3), (0.4, 0.4), (0.5, 0.5), (0.3127, 0.329))
    assert color.profile_of_gamma(2.2, line) is None
