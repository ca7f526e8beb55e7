"""A folder with every kind of image that photographers, cameras and accidents produce."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.images import draw_image
from tests.profiles import P3, rgb_profile

EXIF_ORIENTATION = 0x0112
UNREADABLE = {
    "empty.jpg": "is empty (0 bytes)",
    "five-channels.tif": "is a TIFF of 5 channels",
    "huge.png": "400,000,000 pixels",
    "page.jpg": "is an HTML page",
    "pointer.jpg": "is a Git LFS pointer; run `git lfs pull`",
    "text.jpg": "is not an image in a format that can be read",
    "truncated.jpg": "is damaged and cannot be decoded",
}
# Width and height as displayed.
READABLE = {
    "animated.gif": (80, 60),
    "cmyk.jpg": (80, 60),
    "good.jpg": (80, 60),
    "no-end.jpg": (80, 60),
    "palette.png": (80, 60),
    "pixel.png": (1, 1),
    "rotated.jpg": (60, 80),
    "sixteen-bit.png": (80, 60),
    "text-chunk.png": (80, 60),
    "transparent.png": (80, 60),
    "twelve-bit.tif": (80, 60),
    "wide.png": (3000, 2),
    "wide-gamut.jpg": (80, 60),
}


def write_odd_images(folder: Path) -> Path:
    """Write all of READABLE and UNREADABLE into a new folder."""
    folder.mkdir(parents=True)
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


def _animated(path: Path) -> None:
    draw_image(1).save(
        path, save_all=True, append_images=[draw_image(2), draw_image(3)], duration=50
    )


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    draw_image(4).save(path, exif=exif)


def _sixteen_bit(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 60 * 80).astype(np.uint16).reshape(60, 80)).save(path)


def _transparent(path: Path) -> None:
    image = draw_image(5).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def _truncated(path: Path) -> None:
    draw_image(6).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:700])


def _huge(path: Path) -> None:
    """Return a valid PNG of 20000×20000 black pixels of one bit, in 50 kB."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 20000 // 8)
    packed = b"".join([*(packer.compress(row * 500) for _ in range(40)), packer.flush()])
    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
    blocks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(blocks))


def _no_end(path: Path) -> None:
    draw_image(12).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-2])


def _text_chunk(path: Path) -> None:
    draw_image(13).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"\0\0\0\x03tEXta\0b\0\0\0\0" + data[33:])  # with a wrong checksum


def _twelve_bit(path: Path) -> None:
    levels = np.asarray(draw_image(14).convert("L")).astype(np.uint32) * 4095 // 255
    Image.fromarray(levels.astype(np.uint16)).save(path)


def _five_channels(path: Path) -> None:
    tifffile.imwrite(
        path, np.zeros((60, 80, 5), np.uint8), photometric="rgb", extrasamples=["unspecified"] * 2
    )


WRITERS: dict[str, Callable[[Path], object]] = {
    "animated.gif": _animated,
    "cmyk.jpg": lambda path: draw_image(7).convert("CMYK").save(path),
    "empty.jpg": lambda path: path.touch(),
    "five-channels.tif": _five_channels,
    "good.jpg": lambda path: draw_image(8).save(path),
    "huge.png": _huge,
    "no-end.jpg": _no_end,
    "page.jpg": lambda path: path.write_text("<!DOCTYPE html><html>404 Not Found</html>"),
    "palette.png": lambda path: draw_image(9).convert("P").save(path),
    "pointer.jpg": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "pixel.png": lambda path: Image.new("RGB", (1, 1), (200, 10, 30)).save(path),
    "rotated.jpg": _rotated,
    "sixteen-bit.png": _sixteen_bit,
    "text.jpg": lambda path: path.write_text("a note"),
    "text-chunk.png": _text_chunk,
    "transparent.png": _transparent,
    "truncated.jpg": _truncated,
    "twelve-bit.tif": _twelve_bit,
    "wide-gamut.jpg": lambda path: draw_image(15).save(path, icc_profile=rgb_profile(P3)),
    "wide.png": (
        lambda path: draw_image(10, height=2 + 10, width=3000).crop((0, 5, 3000, 7)).save(path)
    ),
}
