"""A folder of every kind of picture that photographers, cameras and accidents leave behind, for whole commands."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.pictures import draw_picture

EXIF_ORIENTATION = 0x0112
UNREADABLE = {
    "empty.jpg": "is empty (0 bytes)",
    "huge.png": "400,000,000 pixels",
    "text.jpg": "is not a picture in a format that can be read",
    "truncated.jpg": "is damaged and cannot be decoded",
}
# Width and height as they have to be shown.
READABLE = {
    "animated.gif": (80, 60),
    "cmyk.jpg": (80, 60),
    "good.jpg": (80, 60),
    "palette.png": (80, 60),
    "pixel.png": (1, 1),
    "rotated.jpg": (60, 80),
    "sixteen-bit.png": (80, 60),
    "transparent.png": (80, 60),
    "wide.png": (3000, 2),
}


def write_odd_pictures(folder: Path) -> Path:
    """Write all of READABLE and UNREADABLE into `folder`, which is made."""
    folder.mkdir(parents=True)
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


def _animated(path: Path) -> None:
    draw_picture(1).save(path, save_all=True, append_images=[draw_picture(2), draw_picture(3)], duration=50)


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    draw_picture(4).save(path, exif=exif)


def _sixteen_bit(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 60 * 80).astype(np.uint16).reshape(60, 80)).save(path)


def _transparent(path: Path) -> None:
    image = draw_picture(5).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def _truncated(path: Path) -> None:
    draw_picture(6).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:700])


def _huge(path: Path) -> None:
    """A PNG that is valid to its last byte: 20000×20000 black pixels of one bit, 50 kB."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 20000 // 8)
    packed = b"".join([*(packer.compress(row * 500) for _ in range(40)), packer.flush()])
    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
    blocks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(blocks))


WRITERS: dict[str, Callable[[Path], object]] = {
    "animated.gif": _animated,
    "cmyk.jpg": lambda path: draw_picture(7).convert("CMYK").save(path),
    "empty.jpg": lambda path: path.touch(),
    "good.jpg": lambda path: draw_picture(8).save(path),
    "huge.png": _huge,
    "palette.png": lambda path: draw_picture(9).convert("P").save(path),
    "pixel.png": lambda path: Image.new("RGB", (1, 1), (200, 10, 30)).save(path),
    "rotated.jpg": _rotated,
    "sixteen-bit.png": _sixteen_bit,
    "text.jpg": lambda path: path.write_text("a note"),
    "transparent.png": _transparent,
    "truncated.jpg": _truncated,
    "wide.png": lambda path: draw_picture(10, height=2 + 10, width=3000).crop((0, 5, 3000, 7)).save(path),
}
