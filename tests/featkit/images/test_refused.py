"""Images that are damaged, hostile, too large or none at all: one sentence that names them,
before they cost anything."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featkit.images import ImageLimits, decode, load
from tests.image_files import encoded, png_file
from tests.images import draw_image
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
