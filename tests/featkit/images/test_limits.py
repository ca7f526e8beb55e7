"""Tests of the limits on images, and of file names in messages."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile

from featkit.images import ImageLimits, decode, load
from tests.image_files import encoded, png_file
from tests.images import draw_image
from tests.odd_images import WRITERS
from tests.sentences import refused


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
