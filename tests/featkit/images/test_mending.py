"""Tests that damaged metadata is ignored and that missing pixels are refused."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featkit.images import decode
from featkit.images.mending import mended
from tests.image_files import encoded, png_chunk, png_with
from tests.images import draw_image
from tests.profiles import PROPHOTO, rgb_profile
from tests.sentences import refused

IMAGE = draw_image(5, height=150, width=200)
PIXELS = np.asarray(IMAGE)
PNG = encoded(IMAGE)
JPEG = encoded(IMAGE, "JPEG", quality=90)


def assert_alike(data: bytes, whole: bytes) -> None:
    """Both show the same."""
    np.testing.assert_array_equal(decode(data).pixels, decode(whole).pixels)


def assert_refused(data: bytes) -> None:
    """Check that the file is refused as damaged."""
    with refused("x is damaged and cannot be decoded"):
        decode(data, name="x")


def wrong_checksum(chunk: bytes) -> bytes:
    """A chunk of which a bit was lost."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


def packed_text(count: int) -> bytes:
    """Return a chunk of text that unpacks to `num_bytes`."""
    return png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"a" * count))


PNG_CHUNKS = {
    "profile without name": png_chunk(b"iCCP", b"sRGB"),
    "empty profile": png_chunk(b"iCCP", b""),
    "profile that is not packed": png_chunk(b"iCCP", b"sRGB\0\0garbage"),
    "profile with a wrong checksum": wrong_checksum(
        png_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"x" * 40))
    ),
    "profile of 2 MB": png_chunk(b"iCCP", b"big\0\0" + zlib.compress(bytes(2**21))),
    "profile of 200 MB": png_chunk(b"iCCP", b"big\0\0" + zlib.compress(bytes(200 * 2**20), 1)),
    "text with a wrong checksum": wrong_checksum(png_chunk(b"tEXt", b"a\0b")),
    "text of 2 MB": packed_text(2**21),
    "text of 80 times 900 kB": packed_text(900 * 1024) * 80,
    "international text that is cut short": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1"),
    "gamma of 0": png_chunk(b"gAMA", bytes(4)),
    "short gamma": png_chunk(b"gAMA", b"\0"),
    "long gamma": png_chunk(b"gAMA", bytes(9)),
    "short primaries": png_chunk(b"cHRM", b"\0"),
    "primaries of 0": png_chunk(b"gAMA", struct.pack(">I", 60000)) + png_chunk(b"cHRM", bytes(32)),
    "short resolution": png_chunk(b"pHYs", b"\0"),
    "short sRGB": png_chunk(b"sRGB", b""),
    "short code points": png_chunk(b"cICP", b"\1"),
    "short significant bits": png_chunk(b"sBIT", b""),
    "short time": png_chunk(b"tIME", b"\0"),
    "short animation": png_chunk(b"acTL", b"\0"),
    "animation of no frames": png_chunk(b"acTL", bytes(8)),
    "animation of which nothing follows": png_chunk(b"acTL", struct.pack(">II", 5, 0)),
    "short control of a frame": (
        png_chunk(b"acTL", struct.pack(">II", 2, 0)) + png_chunk(b"fcTL", bytes(7))
    ),
    "short transparent color": png_chunk(b"tRNS", b"\0"),
    "EXIF of noise": png_chunk(b"eXIf", b"II*\0" + b"\xff" * 30),
    "an unknown chunk with a wrong checksum": wrong_checksum(png_chunk(b"prVt", b"hello")),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Invalid APNG")
@pytest.mark.parametrize("case", PNG_CHUNKS)
def test_a_png_is_read_whatever_its_other_chunks_hold(case: str) -> None:
    np.testing.assert_array_equal(decode(PNG[:33] + PNG_CHUNKS[case] + PNG[33:]).pixels, PIXELS)
    np.testing.assert_array_equal(decode(PNG[:-12] + PNG_CHUNKS[case] + PNG[-12:]).pixels, PIXELS)


def test_a_png_keeps_what_says_how_it_looks() -> None:
    transparent = IMAGE.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(transparent, transparency=3, exif=exif)
    assert_alike(whole[:33] + png_chunk(b"pHYs", b"\0") + whole[33:], whole)
    colored = png_with((b"gAMA", struct.pack(">I", 100_000)), base=PNG)
    assert_alike(colored[:33] + png_chunk(b"pHYs", b"\0") + colored[33:], colored)


def test_png_profiles_too_large_for_pillow_are_applied() -> None:
    profile = rgb_profile(PROPHOTO)
    large = struct.pack(">I", len(profile) + 2**21) + profile[4:] + bytes(2**21)
    small = png_with((b"iCCP", b"x\0\0" + zlib.compress(profile)), base=PNG)
    assert np.abs(decode(small).pixels.astype(int) - PIXELS).max() > 20
    assert_alike(png_with((b"iCCP", b"x\0\0" + zlib.compress(large)), base=PNG), small)


@pytest.mark.parametrize("missing", [1, 4, 8, 11, 12, 14])
def test_a_png_without_its_end_is_read(missing: int) -> None:
    np.testing.assert_array_equal(decode(PNG[:-missing]).pixels, PIXELS)
    in_text = PNG[:-12] + png_chunk(b"tEXt", b"a\0b" * 20)[:-missing]
    np.testing.assert_array_equal(decode(in_text).pixels, PIXELS)
    np.testing.assert_array_equal(decode(PNG + b"more" * 99).pixels, PIXELS)


def test_a_png_without_all_its_pixels_is_refused() -> None:
    for missing in (40, 200, len(PNG) // 2):
        assert_refused(PNG[:-missing])
    at = PNG.index(b"IDAT") + 60
    assert_refused(PNG[:at] + b"\xff\xff\xff" + PNG[at + 3 :])


def segment(marker: int, body: bytes, *, length: int | None = None) -> bytes:
    """A segment of a JPEG, perhaps with a wrong length."""
    return (
        b"\xff"
        + bytes([marker])
        + struct.pack(">H", len(body) + 2 if length is None else length)
        + body
    )


JPEG_SEGMENTS = {
    "EXIF of noise": segment(0xE1, b"Exif\0\0II*\0" + b"\xff" * 40),
    "EXIF whose length is too short": segment(0xE1, b"Exif\0\0" + b"\x11" * 40, length=32),
    "EXIF whose length is too long": segment(0xE1, b"Exif\0\0" + b"\x11" * 40, length=52),
    "EXIF whose length leads out of the file": segment(
        0xE1, b"Exif\0\0" + b"\x11" * 40, length=65000
    ),
    "EXIF whose length is 0": segment(0xE1, b"Exif\0\0" + b"\x11" * 40, length=0),
    "an invalid thumbnail": segment(
        0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\xff\xff\xff\x7f" + b"\xff\xd8\xff\xd9" * 9
    ),
    "Photoshop's of noise": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\xff\xff\x11\x11"),
    "several images of noise": segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 30),
    "a profile of noise": segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"\xff" * 300),
    "a profile without its other part": segment(
        0xE2, b"ICC_PROFILE\0\x01\x03" + rgb_profile(PROPHOTO)
    ),
    "an empty profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a short Adobe segment": segment(0xEE, b"Adobe\0"),
    "a short JFIF segment": segment(0xE0, b"JFIF\0"),
    "a comment of markers": segment(0xFE, b"\xff\xd9\xff\xda" * 30),
    "bytes between segments": b"\0\0garbage\0",
}


@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data", "ignore:Image appears to be a malformed MPO"
)
@pytest.mark.parametrize("case", JPEG_SEGMENTS)
def test_a_jpeg_is_read_whatever_its_other_segments_hold(case: str) -> None:
    for at in (2, 20):  # before and after JFIF
        assert_alike(JPEG[:at] + JPEG_SEGMENTS[case] + JPEG[at:], JPEG)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"progressive": True},
        {"restart_marker_blocks": 8},
        {"restart_marker_rows": 1, "progressive": True},
        {"keep_rgb": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_may_lack_their_end_but_not_pixels(mode: str, options: dict[str, Any]) -> None:
    if options == {"keep_rgb": True} and mode != "RGB":
        options = {}
    noise = np.random.default_rng(0).integers(0, 256, PIXELS.shape, np.uint8)
    image = Image.fromarray(noise).convert(mode)  # noise, so that no byte of it is without effect
    whole = encoded(image, "JPEG", quality=90, **options)
    assert_alike(whole[:-2], whole)
    assert_alike(whole[:-1], whole)
    assert_alike(whole + b"more" * 99, whole)
    for missing in (8, 12, 40, 300, len(whole) // 2):
        assert_refused(whole[:-missing])


def test_a_progressive_jpeg_that_ends_between_scans_is_refused() -> None:
    whole = encoded(IMAGE, "JPEG", quality=90, progressive=True)
    starts = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    assert len(starts) > 4
    for at in starts[1:]:
        tables = whole.rindex(b"\xff\xc4", 0, at)
        assert_refused(whole[:tables])


def test_mended_jpegs_keep_orientation_and_colors() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(IMAGE, "JPEG", quality=90, exif=exif, icc_profile=rgb_profile(PROPHOTO))
    damaged = whole[:2] + segment(0xEE, b"Adobe\0") + segment(0xE2, b"ICC_PROFILE\0") + whole[2:-2]
    assert_alike(damaged, whole)
    assert decode(damaged).pixels.shape == (200, 150, 3)
    # inverted, which only its Adobe segment tells
    inks = encoded(IMAGE.convert("CMYK"), "JPEG", quality=90)
    assert_alike(inks[:-2], inks)


def test_a_webp_is_read_whatever_its_metadata_holds() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a word" * 9
    plain = encoded(IMAGE, "WEBP", lossless=True)
    whole = encoded(IMAGE, "WEBP", lossless=True, exif=exif)
    at = whole.index(b"EXIF")
    for data in (whole[: at + 14], whole[: at + 4] + b"\xff\xff\0\0" + whole[at + 8 :]):
        assert_alike(data, plain)
    for size in (0, len(whole) - 40, len(whole) + 100):  # what the file says of its own length
        assert_alike(whole[:4] + struct.pack("<I", size) + whole[8:], whole)
    assert_refused(plain[: len(plain) // 2])


def test_a_gif_is_read_whatever_follows_its_first_image() -> None:
    frames = [draw_image(n, height=150, width=200).quantize(32) for n in (6, 7)]
    still, moving = (
        encoded(frames[0], "GIF"),
        encoded(frames[0], "GIF", save_all=True, append_images=[frames[1]]),
    )
    for data in (
        still[:-1],
        still[:-2],
        still + b"more",
        still[:-1] + b"!\xfe\xff",
        moving[:-200],
        moving[:-1] + b"?",
    ):
        assert_alike(data, still)
    assert_refused(still[:-60])


def with_tag(data: bytes, tag: int, *, at: int, value: bytes) -> bytes:
    """A little-endian TIFF with other bytes in one of its entries."""
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, start)[0]):
        place = start + 2 + 12 * entry
        if struct.unpack_from("<H", data, place)[0] == tag:
            return data[: place + at] + value + data[place + at + len(value) :]
    raise AssertionError(f"no tag {tag}")


# Pillow says that the metadata is corrupt, which is what is wanted here
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate", "jpeg", "tiff_lzw"])
def test_a_tiff_is_read_whatever_its_other_tags_hold(compression: str | None) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description " * 9
    whole = encoded(
        IMAGE, "TIFF", compression=compression, exif=exif, icc_profile=rgb_profile(PROPHOTO)[:200]
    )
    beyond = struct.pack("<I", 0x7FFFFFF0)
    for damaged in (
        # where EXIF lies
        with_tag(whole, 0x010E, at=0, value=struct.pack("<HHII", 0x8769, 4, 1, 0x7FFFFFF0)),
        with_tag(whole, 0x010E, at=8, value=beyond),
        with_tag(whole, 0x010E, at=4, value=beyond),
        with_tag(whole, 0x010E, at=2, value=b"\x63\0"),
        with_tag(whole, 34675, at=4, value=beyond),
        whole + b"more",
    ):
        assert_alike(damaged, whole)


def test_a_tiff_whose_next_page_leads_nowhere_is_read() -> None:
    whole = encoded(IMAGE, "TIFF")
    start = struct.unpack_from("<I", whole, 4)[0]
    place = start + 2 + 12 * struct.unpack_from("<H", whole, start)[0]
    assert_alike(whole[:place] + b"\xf0\xff\xff\x7f" + whole[place + 4 :], whole)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"II*\0", b"GIF89a", b"a note"],
)
def test_what_has_no_image_is_not_mended(data: bytes) -> None:
    found = mended(data)
    assert found is None or len(found) < 40


def test_what_is_whole_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featkit.images.mending.mended", lambda _data: pytest.fail("it was mended"))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        decode(encoded(IMAGE, format))
