"""HEIC, JPEG XL and camera RAW: read by their packages, from files that those wrote; and named
where a package is missing."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from featkit.images import ImageLimits, decode
from featkit.images.exif import exif_of
from featkit.images.plugins import jpeg_xl_size
from tests.image_files import encoded
from tests.images import draw_image
from tests.processes import run_python
from tests.profiles import P3, rgb_profile
from tests.raw_files import dng_file
from tests.sentences import refused

IMAGE = draw_image(3, height=120, width=160)
PIXELS = np.asarray(IMAGE)
INSTALL = "run `pip install 'featkit[formats]'` to read it."


def heic(image: Image.Image, **options: Any) -> bytes:
    """A HEIC by pillow-heif, near lossless. It is registered with Pillow to write, and Pillow is
    left as it was."""
    pillow_heif = pytest.importorskip("pillow_heif")
    Image.init()  # or what it registers later would be forgotten below
    before = {
        name: getattr(Image, name).copy()
        for name in ("ID", "OPEN", "SAVE", "SAVE_ALL", "EXTENSION", "MIME")
    }
    pillow_heif.register_heif_opener()
    try:
        return encoded(image, "HEIF", quality=100, chroma=444, **options)
    finally:
        for name, value in before.items():
            setattr(Image, name, value)


def jpeg_xl(image: Image.Image, *, container: bool = False, exif: bytes | None = None) -> bytes:
    """A lossless JPEG XL by pillow-jxl-plugin."""
    pillow_jxl = pytest.importorskip("pillow_jxl")
    encode = pillow_jxl.Encoder(
        mode=image.mode, lossless=True, quality=100, use_container=container, num_threads=0
    )
    data: bytes = encode(image.tobytes(), image.width, image.height, jpeg_encode=False, exif=exif)
    return data


def turned(orientation: int) -> Image.Exif:
    """EXIF of one tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_heic_is_read() -> None:
    found = decode(heic(IMAGE), name="x.heic", shorter_side=32)
    assert (found.height, found.width) == (120, 160)
    assert np.abs(found.pixels.astype(int) - PIXELS).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once(orientation: int) -> None:
    stored = Image.open(io.BytesIO(encoded(IMAGE, exif=turned(orientation))))
    data = heic(stored)
    assert (b"irot" in data or b"imir" in data) == (orientation != 1)
    expected = decode(encoded(IMAGE, exif=turned(orientation))).pixels
    found = decode(data).pixels
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 2


def test_a_heic_is_shown_by_its_profile_and_over_white() -> None:
    profile = rgb_profile(P3)
    plain, colored = decode(heic(IMAGE)).pixels, IMAGE.copy()
    colored.info["icc_profile"] = profile
    expected = decode(encoded(Image.fromarray(plain), icc_profile=profile)).pixels
    np.testing.assert_array_equal(decode(heic(colored)).pixels, expected)
    clear = IMAGE.convert("RGBA")
    clear.putalpha(0)
    assert decode(heic(clear)).pixels.min() == 255


def test_a_jpeg_xl_is_read_in_every_mode() -> None:
    for container in (False, True):
        np.testing.assert_array_equal(decode(jpeg_xl(IMAGE, container=container)).pixels, PIXELS)
    np.testing.assert_array_equal(
        decode(jpeg_xl(IMAGE.convert("L"))).pixels[:, :, 0], np.asarray(IMAGE.convert("L"))
    )
    clear = IMAGE.convert("RGBA")
    clear.putalpha(0)
    assert decode(jpeg_xl(clear)).pixels.min() == 255


def test_a_jpeg_xl_is_not_turned_by_its_exif() -> None:
    data = jpeg_xl(IMAGE, container=True, exif=turned(6).tobytes()[6:])
    # its own header tells, and libjxl has followed it
    np.testing.assert_array_equal(decode(data).pixels, PIXELS)


def test_a_jpeg_xl_made_of_a_jpeg_is_that_jpeg() -> None:
    pillow_jxl = pytest.importorskip("pillow_jxl")
    jpeg = encoded(IMAGE, "JPEG", quality=90, exif=turned(6))
    encode = pillow_jxl.Encoder(mode="RGB", lossless=True, quality=100, num_threads=0)
    data = encode(jpeg, IMAGE.width, IMAGE.height, jpeg_encode=True)
    np.testing.assert_array_equal(decode(data).pixels, decode(jpeg).pixels)
    np.testing.assert_array_equal(
        decode(data, shorter_side=30).pixels, decode(jpeg, shorter_side=30).pixels
    )


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (8, 8), (256, 256), (300, 400), (64, 96), (33, 700), (1500, 2000)]
)
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_a_jpeg_xl_is_known_before_decoding(
    height: int, width: int, container: bool
) -> None:
    data = jpeg_xl(Image.new("L", (width, height)), container=container)
    assert jpeg_xl_size(data) == (height, width)


def test_the_size_of_a_jpeg_xl_is_not_what_another_box_says() -> None:
    data = jpeg_xl(IMAGE, container=True)
    at = data.index(b"ftyp") - 4
    end = at + int.from_bytes(data[at : at + 4], "big")
    small = b"jxlc" + jpeg_xl(Image.new("L", (8, 8)))
    other = struct.pack(">I", 8 + len(small)) + b"xml " + small
    assert jpeg_xl_size(data[:end] + other + data[end:]) == (120, 160)
    for size in (b"", b"\0\0\0\x03", b"\0\0\0\x01" + b"jxlc" + bytes(7)):
        assert jpeg_xl_size(data[:end] + size) is None


def taken(orientation: int) -> Image.Exif:
    """EXIF as cameras write it."""
    exif = turned(orientation)
    exif[0x010F], exif[0x0110] = "Canon", "EOS R5"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:30:00"
    return exif


def test_exif_of_a_heic_is_read_with_the_stored_orientation() -> None:
    found = exif_of(heic(IMAGE, exif=taken(6)))
    assert found == {"taken": "2024-05-01T12:30:00", "camera": "Canon EOS R5", "orientation": 6}
    assert exif_of(heic(IMAGE)) == {}


def test_exif_of_a_jpeg_xl_is_read_from_its_box() -> None:
    data = jpeg_xl(IMAGE, container=True, exif=taken(6).tobytes()[6:])
    found = exif_of(data)
    assert found == {"taken": "2024-05-01T12:30:00", "camera": "Canon EOS R5", "orientation": 6}
    assert exif_of(jpeg_xl(IMAGE)) == exif_of(jpeg_xl(IMAGE, container=True)) == {}
    at = data.index(b"Exif") - 4
    end = at + int.from_bytes(data[at : at + 4], "big")
    content = b"Exif" + struct.pack(">I", 2) + b"ab" + data[at + 8 : end]  # as the standard has it
    standard = data[:at] + struct.pack(">I", 4 + len(content)) + content + data[end:]
    assert exif_of(standard) == found
    assert exif_of(data[:at] + struct.pack(">I", 0) + content) == found  # 0: up to the end


def test_exif_of_raw_photos_is_read() -> None:
    dng = dng_file(PIXELS, orientation=8)
    expected = {"camera": "featkit drawn", "orientation": 8}
    assert exif_of(dng) == expected
    for magic in (b"IIRO", b"IIRS", b"IIU\0"):
        assert exif_of(magic + dng[4:]) == expected
    preview = encoded(IMAGE, "JPEG", exif=taken(3))
    head = b"FUJIFILMCCD-RAW".ljust(84, b"0") + struct.pack(">II", 200, len(preview))
    assert exif_of(head.ljust(200, b"0") + preview)["camera"] == "Canon EOS R5"


@pytest.mark.parametrize("kind", ["heic", "jxl", "dng", "raf"])
def test_damaged_exif_of_plugin_kinds_is_left_out(kind: str) -> None:
    data = {
        "heic": lambda: heic(IMAGE, exif=taken(6)),
        "jxl": lambda: jpeg_xl(IMAGE, container=True, exif=taken(6).tobytes()[6:]),
        "dng": lambda: dng_file(PIXELS),
        "raf": lambda: b"FUJIFILMCCD-RAW" + bytes(200),
    }[kind]()
    for cut in range(0, min(len(data), 600), 7):
        exif_of(data[:cut])
    generator = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(data)
        for at in generator.integers(0, min(len(data), 600), 5):
            changed[at] = generator.integers(0, 256)
        assert {*exif_of(bytes(changed))} <= {"taken", "camera", "orientation"}


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_raw_photo_is_developed_and_turned(orientation: int) -> None:
    pytest.importorskip("rawpy")
    expected = decode(encoded(IMAGE, exif=turned(orientation)))
    found = decode(dng_file(PIXELS, orientation=orientation), name="x.dng")
    assert (
        (found.height, found.width) == (expected.height, expected.width) == found.pixels.shape[:2]
    )
    likeness = np.corrcoef(
        found.pixels.ravel().astype(float), expected.pixels.ravel().astype(float)
    )[0, 1]
    assert likeness > 0.98  # the brightness is LibRaw's choice


def test_raw_photos_are_halved_if_that_is_large_enough() -> None:
    pytest.importorskip("rawpy")
    data = dng_file(PIXELS, orientation=6)
    for side, shape in ((60, (80, 60, 3)), (61, (160, 120, 3))):
        found = decode(data, shorter_side=side)
        assert found.pixels.shape == shape
        assert (found.height, found.width) == (160, 120)


@pytest.mark.parametrize("kind", ["heic", "jxl", "dng"])
def test_limits_hold_before_anything_is_decoded(kind: str) -> None:
    data = {"heic": heic, "jxl": jpeg_xl, "dng": lambda image: dng_file(np.asarray(image))}[kind](
        IMAGE
    )
    decode(data, limits=ImageLimits(max_pixels=120 * 160))
    with refused("x has 19,200 pixels (160×120), more than the limit of 19,199"):
        decode(data, name="x", limits=ImageLimits(max_pixels=120 * 160 - 1))


@pytest.mark.parametrize(
    ("data", "kind", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC", "pillow_heif"),
        (b"\0\0\0\x18ftyphevm\0\0\0\0mif1hevm" + bytes(64), "HEIC", "pillow_heif"),
        (b"\xff\x0a" + bytes(64), "JPEG XL", "pillow_jxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL", "pillow_jxl"),
        (dng_file(PIXELS), "a camera RAW photo (DNG)", "rawpy"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom" + bytes(64), "a camera RAW photo (CR3)", "rawpy"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(64), "a camera RAW photo (RAF)", "rawpy"),
    ],
    ids=["heic", "hevm", "jxl", "jxl container", "dng", "cr3", "raf"],
)
def test_without_its_package_a_format_is_named(
    data: bytes, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with refused(f"x.img is {kind}; {INSTALL}"):
        decode(data, name="x.img")
    monkeypatch.undo()
    pytest.importorskip(package)
    if kind != "a camera RAW photo (DNG)":
        with refused(f"x.img is {kind}; it is damaged and cannot be decoded"):
            decode(data, name="x.img")


def test_a_file_that_is_cut_off_is_refused() -> None:
    for whole, kind in ((heic(IMAGE), "HEIC"), (jpeg_xl(IMAGE), "JPEG XL")):
        with refused(f"x is {kind}; it is damaged and cannot be decoded"):
            decode(whole[: len(whole) // 2], name="x")


def test_an_avif_is_read_by_pillow_alone() -> None:
    assert features.check("avif")
    data = encoded(IMAGE, "AVIF", quality=95)
    assert np.abs(decode(data).pixels.astype(int) - PIXELS).mean() < 6
    with refused("x is AVIF; it is damaged and cannot be decoded"):
        decode(data[: len(data) // 2], name="x")
    with refused("x is AVIF; it is damaged and cannot be decoded"):
        decode(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(64), name="x")


def test_plugins_load_on_demand_and_leave_pillow_alone() -> None:
    code = (
        "import io, sys; from PIL import Image; from featkit.images import decode; image ="
        " Image.new('RGB', (8, 8)); buffer = io.BytesIO(); image.save(buffer, 'PNG');"
        " decode(buffer.getvalue()); assert not {'pillow_heif', 'pillow_jxl', 'rawpy'} &"
        " set(sys.modules); import pillow_heif; buffer = io.BytesIO();"
        " pillow_heif.from_pillow(image).save(buffer); decode(buffer.getvalue()); assert 'HEIF' not"
        " in Image.OPEN"
    )
    pytest.importorskip("pillow_heif")
    status, _, error = run_python(code)
    assert (status, error) == (0, "")


def test_the_thumbnail_in_a_raw_photo_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    entries = [
        (254, 1),
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 200),
        (277, 1),
        (278, 8),
        (279, 64),
        (330, 0),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries
    )
    data = (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + bytes(64)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (8, 8)  # what Pillow shows of it
    with refused("x.nef is a camera RAW photo (TIFF)"):
        decode(data, name="x.nef")
