"""Image files as bytes: in any format that Pillow writes, and PNGs that it does not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

from featkit.images import EXIF_ORIENTATION


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return the image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int) -> Image.Exif:
    """Return EXIF data with this orientation and nothing else."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


def png_file(height: int, width: int, *, bits: int, color: int, rows: bytes = b"") -> bytes:
    """Return a PNG that Pillow would not write; only its header without `rows`."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    blocks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(blocks)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: tuple[bytes, bytes], base: bytes | None = None) -> bytes:
    """Return a PNG of these chunks and an end, or `base` with the chunks after its header."""
    stored = b"".join(png_chunk(kind, body) for kind, body in chunks)
    if base is None:
        return b"\x89PNG\r\n\x1a\n" + stored + png_chunk(b"IEND", b"")
    return base[:33] + stored + base[33:]
