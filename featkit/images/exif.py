"""Read from EXIF when a photograph was taken, with which camera, and how it was held.

EXIF 2.32 (CIPA DC-008). Values that are damaged or impossible are left out.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

from featkit.filetypes import what_is
from featkit.images.plugins import exif_by_plugin, is_plugin_kind

NAMES = ("taken", "camera", "orientation", "latitude", "longitude")
MAKE, MODEL, ORIENTATION = 0x010F, 0x0110, 0x0112
# Each with its offset from UTC: of the original, its digitization, and the last change.
TIMES = ((0x9003, 0x9011), (0x9004, 0x9012), (0x0132, 0x9010))
OFFSET = re.compile(r"[+-](0\d|1[0-4]):[0-5]\d")
LATITUDE, LONGITUDE = (2, 1, "NS", 90), (4, 3, "EW", 180)  # tag, reference's tag, signs, limit
MAX_CHARACTERS = 100  # of the camera's name


def exif_of(data: bytes, *, position: bool = False) -> dict[str, str | int | float]:
    """Return those of `taken`, `camera` and `orientation` that an image file declares.

    taken: ISO 8601, with the offset from UTC if it is known: 2024-05-01T12:30:00+02:00.
    orientation: 1 to 8, as stored, although images are turned upright when they are decoded.
    position: also `latitude` and `longitude`, in degrees.
    """
    try:
        with _opened_exif(data) as exif:
            tags: dict[int, Any] = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
            gps: dict[int, Any] = exif.get_ifd(ExifTags.IFD.GPSInfo) if position else {}
    except Exception:  # Pillow and libheif raise many kinds of errors for damaged metadata
        return {}
    orientation = tags.get(ORIENTATION)
    found: dict[str, str | int | float | None] = {
        "taken": _taken(tags),
        "camera": _camera(tags),
        "orientation": orientation if type(orientation) is int and 1 <= orientation <= 8 else None,
        "latitude": _degrees(gps, *LATITUDE),
        "longitude": _degrees(gps, *LONGITUDE),
    }
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _opened_exif(data: bytes) -> Iterator[Image.Exif]:
    """Yield the EXIF of a file, which may be read from the open file."""
    kind = what_is(data)
    if is_plugin_kind(kind):
        yield exif_by_plugin(data, kind)
        return
    with Image.open(io.BytesIO(data)) as image:
        yield _exif_of(image)


def _exif_of(image: Image.Image) -> Image.Exif:
    """Return EXIF that Pillow has read with the header: its own getexif decodes a whole PNG."""
    if image.format != "PNG":
        return image.getexif()
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif


def _taken(tags: Mapping[int, Any]) -> str | None:
    for tag, offset_tag in TIMES:
        text, offset = _text(tags.get(tag)), _text(tags.get(offset_tag))
        try:
            time = datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S")
        except ValueError:  # also 0000:00:00 00:00:00, as cameras with an unset clock write
            continue
        return time.isoformat() + (offset if OFFSET.fullmatch(offset) else "")
    return None


def _camera(tags: Mapping[int, Any]) -> str | None:
    """Return maker and model, without repeating the maker: "Canon EOS R5", "NIKON D850"."""
    make, model = _text(tags.get(MAKE)), _text(tags.get(MODEL))
    first = make.split()[0].lower() if make else ""
    name = model if first and model.lower().startswith(first) else f"{make} {model}"
    return " ".join(name.split())[:MAX_CHARACTERS] or None


def _degrees(
    gps: Mapping[int, Any], tag: int, sign_tag: int, signs: str, limit: int
) -> float | None:
    try:
        degrees, minutes, seconds = (float(part) for part in gps[tag])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    value = degrees + minutes / 60 + seconds / 3600
    sign = _text(gps.get(sign_tag))[:1].upper()
    if sign not in signs or not sign or not math.isfinite(value) or not 0 <= value <= limit:
        return None
    return round(-value if sign == signs[1] else value, 6)


def _text(value: Any) -> str:
    """Return a tag's text up to its first NUL, without control characters; "" for other types."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    text = value.partition("\0")[0]
    return "".join(letter for letter in text if letter.isprintable()).strip()
