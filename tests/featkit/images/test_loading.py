"""Tests of loading images from paths, bytes, open files, Pillow images, arrays and rows."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from featkit.images import (
    EXIF_ORIENTATION,
    ImageLike,
    ImageLimits,
    decode,
    load,
    name_of,
    read_file,
)
from tests.image_files import encoded, with_orientation
from tests.images import draw_image
from tests.processes import run_python
from tests.sentences import refused


def test_load_takes_path_bytes_image_and_array_alike(tmp_path: Path) -> None:
    image = draw_image(4)
    image.save(tmp_path / "x.png")
    drawn = (
        str(tmp_path / "x.png"),
        tmp_path / "x.png",
        encoded(image),
        image,
        np.asarray(image),
    )
    for drawn_image in drawn:
        found = load(drawn_image)
        np.testing.assert_array_equal(found.pixels, np.asarray(image))
        assert (found.height, found.width) == (60, 80)
    turned = load(np.asarray(image)[::-1, ::2]).pixels
    np.testing.assert_array_equal(turned, np.asarray(image)[::-1, ::2])
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(
        load(np.asarray(image)[:, :, 0]).pixels[:, :, 2], np.asarray(image)[:, :, 0]
    )


def test_load_takes_open_files_buffers_and_rows(tmp_path: Path) -> None:
    image = draw_image(4)
    data, path = encoded(image), tmp_path / "x.png"
    path.write_bytes(data)
    written = io.BytesIO()
    image.save(written, "PNG")  # stands at its end
    with path.open("rb") as file, gzip.open(io.BytesIO(gzip.compress(data))) as unpacked:
        drawn: list[ImageLike] = [
            file,
            file,
            written,
            bytearray(data),
            memoryview(data),
            memoryview(data * 2)[: len(data)],
            {"bytes": data, "path": "elsewhere/x.png"},
            {"bytes": data, "path": None},
            {"bytes": None, "path": str(path)},
            {"path": path},
            unpacked,  # type: ignore[list-item]
            np.asarray(image),
        ]
        for drawn_image in drawn:
            np.testing.assert_array_equal(load(drawn_image).pixels, np.asarray(image))
    gray = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(load(gray[:, :, None]).pixels, load(gray).pixels)


def test_the_name_of_a_file_is_told_however_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    draw_image(0).save(path)
    with path.open("rb") as file, Image.open(path) as image:
        for drawn_image in (path, str(path), file, image, {"bytes": b"", "path": str(path)}):
            assert name_of(drawn_image) == str(path)
    (tmp_path / "y.png").write_text("a note")
    with (tmp_path / "y.png").open("rb") as file, refused(tmp_path / "y.png", "is not an image"):
        load(file)
    with refused("x/y.jpg is empty"):
        load({"bytes": b"", "path": "x/y.jpg"})
    for nameless in (
        b"",
        io.BytesIO(),
        Image.new("L", (1, 1)),
        np.zeros(3),
        None,
        7,
        {"bytes": b"", "path": None},
    ):
        assert name_of(nameless) is None


def test_an_open_file_is_read_no_further_than_the_limit() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = bytes(len(buffer))
            return len(buffer)

    with refused("image has more than the limit of 100,000 bytes; raise it with --max-bytes."):
        load(io.BufferedReader(Endless()), limits=ImageLimits(max_bytes=100_000))
    closed = io.BytesIO(b"x")
    closed.close()
    with refused("image cannot be read: I/O operation on closed file."):
        load(closed)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_opened_images_are_turned_derived_ones_are_not(orientation: int) -> None:
    data = encoded(draw_image(4), exif=with_orientation(orientation))
    upright = decode(data).pixels
    stored = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(load(stored).pixels, upright)
    by_hand = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(load(by_hand).pixels, upright)
    made = {
        "rotated": stored.rotate(-90, expand=True),
        "flipped": stored.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cropped": stored.crop((5, 5, 40, 40)),
        "a copy": stored.copy(),
        "converted": stored.convert("L").convert("RGB"),
    }
    for name, image in made.items():
        # Pillow leaves it there
        assert orientation == 1 or image.getexif()[EXIF_ORIENTATION] == orientation
        np.testing.assert_array_equal(
            load(image).pixels, np.asarray(image.convert("RGB")), err_msg=name
        )


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
