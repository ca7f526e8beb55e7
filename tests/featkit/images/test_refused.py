"""Images that are damaged, hostile, too large or none at all: one sentence that names them,
before they cost anything."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from featkit.images import ImageLimits, decode, load, read_file
from tests.image_files import encoded, png_file
from tests.images import draw_image
from tests.odd_images import WRITERS
from tests.processes import run_python
from tests.sentences import refused

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"]
)
def test_a_truncated_image_is_refused_by_name(format: str) -> None:
    data = encoded(draw_image(2, height=200, width=300), format)
    decode(data)
    with refused("cats/half.img"):
        decode(data[: len(data) // 2], name="cats/half.img")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "x.jpg is empty (0 bytes)."),
        (b"a note", "x.jpg is not an image in a format that can be read."),
        (b"\x01\x02\xfe", "x.jpg is not an image in a format that can be read."),
        (EPS, "x.jpg is a PostScript document; convert it to PNG or JPEG."),
        (png_file(5, 4, bits=8, color=2), "x.jpg is damaged and cannot be decoded"),
    ],
    ids=["empty", "text", "unknown", "EPS", "header"],
)
def test_what_is_no_image_is_refused_by_name(data: bytes, words: str, tmp_path: Path) -> None:
    with refused(words):
        decode(data, name="x.jpg")
    (tmp_path / "x.jpg").write_bytes(data)
    with refused(f"{tmp_path}/{words}"):
        load(tmp_path / "x.jpg")


KINDS = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1\n",
        "x.jpg is a Git LFS pointer; run `git lfs pull` to fetch the file it points to.",
    ),
    "page": (
        b"<!DOCTYPE html><html>404 Not Found</html>",
        "x.jpg is an HTML page; the download was probably",
    ),
    "refusal": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "x.jpg is an error message in XML; ",
    ),
    "drawing": (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "x.jpg is an SVG drawing; convert it to PNG or JPEG.",
    ),
    "document": (b"%PDF-1.7\n", "x.jpg is a PDF document; save its pages as PNG or JPEG."),
    "video": (
        b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + bytes(64),
        "x.jpg is a video; extract its frames as images",
    ),
    "parquet": (
        b"PAR1" + bytes(40),
        "x.jpg is not an image in a format that can be read; it is a Parquet file.",
    ),
    "model": (
        b"\x08\x07\x12\x07pytorch\x1a\x032.0:\x00",
        "x.jpg is not an image in a format that can be read; it is an ONNX",
    ),
    "zip": (b"PK\x03\x04" + bytes(40), "x.jpg is a zip archive; extract it first."),
    "zeros": (bytes(5000), "x.jpg is filled with zero bytes; copy or download it again."),
    "head of a jpeg": (b"\xff\xd8\xff\xe0", "x.jpg is damaged and cannot be decoded"),
    "head of a tiff": (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "x.jpg is damaged and cannot be decoded"),
}


@pytest.mark.parametrize("case", KINDS)
def test_another_kind_of_file_is_named_with_what_to_do(case: str) -> None:
    data, words = KINDS[case]
    with refused(words):
        decode(data, name="x.jpg")


def test_eps_is_refused_although_pillow_knows_it() -> None:
    with Image.open(io.BytesIO(EPS)) as image:
        assert image.format == "EPS"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    format=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_damaged_bytes_are_pixels_or_one_input_error(
    format: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(encoded(draw_image(1), format))
    for place, value in changes:
        data[int(place * len(data))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = decode(bytes(data), name="x", limits=ImageLimits(max_pixels=10**6))
        except Exception as error:
            with refused("x "):
                raise error
        else:
            assert found.pixels.shape == (found.height, found.width, 3)
            assert found.pixels.dtype == np.uint8


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decodes from here on hears of it, in the message."""

    def loaded(_image: ImageFile.ImageFile) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded)


def test_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS["huge.png"](tmp_path / "huge.png")
    forbid_decoding(monkeypatch)
    limit = "more than the limit of 100,000,000; raise it with --max-pixels."
    with refused(tmp_path / "huge.png", "400,000,000 pixels", limit):
        load(tmp_path / "huge.png")
    # Pillow warns of such a size, and refuses only twice as many
    for action in ("error", "ignore"):
        with warnings.catch_warnings(), refused("wide.png has 120,000,000 pixels", limit):
            warnings.simplefilter(action)
            decode(png_file(10_000, 12_000, bits=1, color=0), name="wide.png")


def test_the_limit_of_pixels_is_the_last_number_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    data, image = (
        encoded(draw_image(0, height=20, width=30)),
        draw_image(0, height=20, width=30),
    )
    for drawn_image in (data, image, np.asarray(image)):
        assert load(drawn_image, limits=ImageLimits(max_pixels=600)).pixels.shape == (20, 30, 3)
    forbid_decoding(monkeypatch)
    for drawn_image in (data, image, np.asarray(image)):
        with refused("p has 600 pixels (30×20), more than the limit of 599"):
            load(drawn_image, name="p", limits=ImageLimits(max_pixels=599))


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_an_icon_larger_than_it_says_is_measured_by_its_image() -> None:
    inner = encoded(draw_image(0, height=50, width=60).convert("RGBA"))
    icon = (
        struct.pack("<HHH", 0, 1, 1)
        + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
        + inner
    )
    found = decode(icon)
    assert (found.height, found.width) == found.pixels.shape[:2] == (50, 60)
    with refused("3,000 pixels (60×50)"):
        decode(icon, limits=ImageLimits(max_pixels=2999))


def test_too_many_bytes_are_refused_before_reading(tmp_path: Path) -> None:
    with (tmp_path / "x.jpg").open("wb") as file:
        file.truncate(2**40)  # no memory holds it, so reading it would fail otherwise
    with refused(
        tmp_path / "x.jpg",
        "1,099,511,627,776 bytes, more than the limit of 67,108,864; raise it with --max-bytes.",
    ):
        load(tmp_path / "x.jpg")
    data = encoded(draw_image(0))
    decode(data, limits=ImageLimits(max_bytes=len(data)))
    with refused(f"p has {len(data):,} bytes, more than the limit of {len(data) - 1:,}"):
        decode(data, name="p", limits=ImageLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels"])
def test_limits_below_1_are_refused_by_their_option(name: str) -> None:
    ImageLimits(**{name: 1})
    for limit in (0, -1):
        with refused(f"--{name.replace('_', '-')} is {limit}; it has to be 1 or more."):
            ImageLimits(**{name: limit})


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg"):
        with refused(f"{path} is a folder or a device, not a file."):
            read_file(path)
    with refused(tmp_path / "missing.jpg", "does not exist."):
        read_file(tmp_path / "missing.jpg")
    with refused(tmp_path / "loop.jpg", "cannot be read: "):
        read_file(tmp_path / "loop.jpg")


def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path: Path) -> None:
    draw_image(0).save(tmp_path / "x.png")
    (tmp_path / "x.png").chmod(0)
    code = "import sys; from featkit.images import load; load(sys.argv[1])"
    status, _, error = run_python(code, tmp_path / "x.png", ordinary_user=True)
    assert status == 1
    assert (
        error.splitlines()[-1]
        == f"featkit.errors.InputError: {tmp_path}/x.png cannot be read: Permission denied."
    )


def test_names_that_are_no_text_are_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    with refused(f"{tmp_path}/caf\\xe9.jpg does not exist."):
        load(path)
    path.write_bytes(encoded(draw_image(0)))
    np.testing.assert_array_equal(load(path).pixels, np.asarray(draw_image(0)))
    for name in ("a\0b.jpg", "\ud800.jpg"):
        with refused("cannot be read: "):
            load(name)
        with refused(" is empty"):
            decode(b"", name=name)


class Tensor:
    """The attributes of a torch tensor that featkit looks at."""

    __module__ = "torch"
    shape = (3, 8, 8)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "mine is None; give a path, bytes, a Pillow image or an array."),
        (["a.jpg"], "mine is a list; give a path, bytes, a Pillow image or an array."),
        (
            Tensor(),
            (
                "mine is a Tensor of shape (3, 8, 8); give a NumPy array, uint8 (H, W, 3), such as"
                " x.permute(1, 2, 0)"
            ),
        ),
        (
            {"image": 1, "label": 2},
            (
                "mine is a mapping with image, label instead of `bytes` or `path`; pass the image"
                " inside it"
            ),
        ),
        (
            {"bytes": None, "path": None},
            "mine is a row without an image: both `bytes` and `path` are empty.",
        ),
        ({"bytes": {"path": 1}}, "mine is a row without an image"),
        ({"bytes": 3, "path": None}, "mine is an int; give"),
        (io.StringIO("a note"), "mine is open as text; open it with mode 'rb'."),
        ("https://example.org/x.jpg", "mine is a web address; download the file first."),
        ("S3://bucket/x.jpg", "is a web address"),
        ("data:image/png;base64,AAAA", "is a web address"),
        (
            np.zeros((3, 8, 8), np.uint8),
            "uint8 of shape (3, 8, 8); an array must be uint8 (H, W, 3); transpose it",
        ),
        (
            np.zeros((8, 8, 3), np.uint16),
            "uint16 of shape (8, 8, 3); an array must be uint8 (H, W, 3).",
        ),
        (
            np.zeros((8, 8, 3), np.float64),
            "float64 of shape (8, 8, 3); an array must be uint8 (H, W, 3); if its levels",
        ),
        (np.zeros((8, 8), bool), "bool of shape (8, 8); an array must be uint8 (H, W, 3)."),
        (np.array(None), "object of shape ()"),
        (
            np.zeros((4, 4, 3), np.float32),
            "float32 of shape (4, 4, 3); an array must be uint8 (H, W, 3)",
        ),
        (np.zeros((4, 4, 4), np.uint8), "uint8 of shape (4, 4, 4)"),
        (np.zeros(4, np.uint8), "uint8 of shape (4,)"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels (4×0)."),
        ("", "mine is an empty string; give the path of a file."),
        (17, "is an int; give a path, bytes, a Pillow image or an array."),
    ],
)
def test_load_refuses_what_is_no_image(image: Any, words: str) -> None:
    with refused("mine", words):
        load(image, name="mine")
