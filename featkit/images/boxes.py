"""Read color metadata from the boxes of AVIF, HEIC and JPEG 2000, which the decoders ignore."""

from __future__ import annotations

import struct

SEARCHED_BYTES = 2**16  # the boxes come before the pixels


def nclx_of(data: bytes) -> tuple[int, int] | None:
    """Return (primaries, transfer) of an AVIF or HEIC as ITU-T H.273 code points, or None."""
    at = data.find(b"colrnclx", 0, SEARCHED_BYTES)
    if at < 0 or at + 12 > len(data):
        return None
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    return primaries, transfer


def jp2_profile(data: bytes) -> bytes | None:
    """Return the ICC profile of a JPEG 2000 file, or None.

    It is in a "colr" box with method 2 (restricted) or 3 (any) (ISO/IEC 15444-1).
    """
    for method in (b"\x02", b"\x03"):
        at = data.find(b"colr" + method, 0, SEARCHED_BYTES)
        if at >= 4:
            size = int.from_bytes(data[at - 4 : at], "big")
            profile = data[at + 7 : at - 4 + size]
            return profile if len(profile) == size - 11 else None
    return None
