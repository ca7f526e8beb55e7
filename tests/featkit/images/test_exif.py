"""EXIF: time, camera, orientation and position, and damage that is survived."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IFDRational

from featkit.images import exif
from featkit.images.exif import exif_of

EXIF_IFD, GPS_IFD = 0x8769, 0x8825


def photo(
    tags: dict[int, Any],
    inner: dict[int, Any] | None = None,
    gps: dict[int, Any] | None = None,
    *,
    kind: str = "JPEG",
) -> bytes:
    """Return an image file with these tags."""
    made = Image.Exif()
    made.update(tags)
    made.get_ifd(EXIF_IFD).update(inner or {})
    made.get_ifd(GPS_IFD).update(gps or {})
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind, exif=made)
    return buffer.getvalue()


def rational(value: float) -> IFDRational:
    return IFDRational(round(value * 10_000), 10_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_time_camera_and_orientation_are_read(kind: str) -> None:
    data = photo(
        {0x010F: "Canon", 0x0110: "EOS R5", 0x0112: 6},
        {0x9003: "2024:05:01 12:30:00", 0x9011: "+02:00"},
        kind=kind,
    )
    assert exif_of(data) == {
        "taken": "2024-05-01T12:30:00+02:00",
        "camera": "Canon EOS R5",
        "orientation": 6,
    }


@pytest.mark.parametrize(
    ("tags", "inner", "expected"),
    [
        ({}, {}, {}),
        ({0x0110: "NIKON D850", 0x010F: "NIKON CORPORATION"}, {}, {"camera": "NIKON D850"}),
        ({0x0110: " Pixel 8\0junk"}, {}, {"camera": "Pixel 8"}),
        ({0x010F: "a\x07b \n c"}, {}, {"camera": "ab c"}),
        ({0x010F: "x" * 300}, {}, {"camera": "x" * 100}),
        ({0x0112: 9}, {}, {}),
        ({0x0132: "2020:01:02 03:04:05"}, {}, {"taken": "2020-01-02T03:04:05"}),
        ({}, {0x9003: "0000:00:00 00:00:00"}, {}),
        ({}, {0x9003: "2024:13:01 00:00:00"}, {}),
        ({}, {0x9003: "    :  :     :  :  "}, {}),
        (
            {},
            {0x9003: "0000:00:00 00:00:00", 0x9004: "2019:06:07 08:09:10"},
            {"taken": "2019-06-07T08:09:10"},
        ),
        ({}, {0x9003: "2024:05:01 12:30:00", 0x9011: "+99"}, {"taken": "2024-05-01T12:30:00"}),
    ],
)
def test_only_possible_values_are_kept(
    tags: dict[int, Any], inner: dict[int, Any], expected: dict[str, Any]
) -> None:
    assert exif_of(photo(tags, inner)) == expected


def test_the_position_is_read_only_if_asked() -> None:
    place = {
        1: "S",
        2: (rational(33), rational(51), rational(24.5)),
        3: "E",
        4: (rational(151), rational(12.5), rational(0)),
    }
    data = photo({}, gps=place)
    assert exif_of(data) == {}
    assert exif_of(data, position=True) == {"latitude": -33.856806, "longitude": 151.208333}
    assert exif_of(photo({}, gps={**place, 1: "X"}), position=True) == {"longitude": 151.208333}
    far = {**place, 2: (rational(91), rational(0), rational(0))}
    assert exif_of(photo({}, gps=far), position=True) == {"longitude": 151.208333}


def test_an_orientation_of_another_type_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Image.Exif()
    found[0x0112] = rational(6)
    monkeypatch.setattr(exif, "_exif_of", lambda _image: found)
    assert exif_of(photo({})) == {}


def test_a_png_is_not_decoded_for_its_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo({0x0110: "Pixel 8"}, kind="PNG")
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")

    def refuse(_self: object) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(PngImageFile, "load", refuse)
    assert exif_of(data) == {"camera": "Pixel 8"}
    assert exif_of(plain.getvalue()) == {}


def test_an_image_without_exif_declares_nothing() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "BMP")
    assert exif_of(buffer.getvalue()) == {}
    assert exif_of(b"not an image") == {}


@given(st.data())
def test_damaged_exif_is_survived(data: st.DataObject) -> None:
    sound = photo(
        {0x010F: "Canon", 0x0112: 6},
        {0x9003: "2024:05:01 12:30:00"},
        {1: "S", 2: (rational(33), rational(51), rational(24.5))},
    )
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    found = exif_of(bytes(damaged), position=True)
    assert set(found) <= {"taken", "camera", "orientation", "latitude", "longitude"}
