"""Remove damaged metadata from a file whose pixels are intact, for a second try at decoding.

Every image viewer shows such files. Nothing is invented: an image with missing pixels is still
refused.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, JpegImagePlugin

from featkit.images import png, tiff

EOI = b"\xff\xd9"
# Different bytes to append to a truncated JPEG. If they change any pixel, that pixel was missing.
_CONTINUATIONS = (b"", b"\x55\xaa\x33" * 1500, b"\xaa\x35\xc3" * 1500, b"\xf0\x8e\x71\xe4" * 1100)


def all_mended(data: bytes) -> Iterator[bytes]:
    """Yield the result of `mended`, then, for an animated PNG, its still image."""
    changed = mended(data)
    if changed is not None:
        yield changed
    if data.startswith(png.SIGNATURE) and b"acTL" in data:
        yield png.mended(data, with_animation=False)


def mended(data: bytes) -> bytes | None:
    """Return the file without its damaged metadata, or None if nothing can be removed."""
    if data.startswith(png.SIGNATURE):
        changed = png.mended(data)
    elif data.startswith(b"\xff\xd8"):
        changed = _mended_jpeg(data) or data
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        changed = _mended_webp(data)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        changed = _mended_tiff(data)
    elif data[:4] == b"GIF8":
        changed = _mended_gif(data)
    else:
        return None
    return None if changed == data else changed


# --- JPEG: each scan is preceded by segments and consists of entropy-coded bytes

_SOI, _EOI, _SOS, _DRI, _DNL = 0xD8, 0xD9, 0xDA, 0xDD, 0xDC
_TABLES = frozenset((0xC4, 0xCC, 0xDB, _DRI, _DNL))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP0, _APP1, _APP2, _APP14, _COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE


def _mended_jpeg(data: bytes) -> bytes | None:
    """Return the JPEG with only sound JFIF, Adobe, EXIF and ICC segments, and with its end marker.

    Returns None if pixels are missing.
    """
    kept, scans, frame, interval, at = [b"\xff\xd8"], [], b"", 0, 2
    ended = False
    while (found := _next_marker(data, at)) is not None:
        marker, body_at, end = found
        if marker == _EOI:
            ended = True
            break
        body = data[body_at:end]
        if marker == _SOS:
            scan_end, num_restarts = _end_of_scan(data, end)
            kept.append(data[body_at - 4 : scan_end])
            scans.append(_Scan(body, interval, num_restarts))
            at = scan_end
            continue
        if marker in _FRAMES:
            frame = body
        if marker == _DRI:
            interval = int.from_bytes(body[:2], "big")
        if marker in _TABLES or marker in _FRAMES or _is_sound_segment(marker, body):
            kept.append(data[body_at - 4 : end])
        at = end
    if not frame or not scans:
        return None
    whole = b"".join(kept)
    if ended:
        return whole + EOI
    is_whole = (
        _all_scans_are_there(frame, scans)
        and _all_restarts_are_there(frame, scans)
        and _all_pixels_are_there(whole)
    )
    return whole + EOI if is_whole else None


class _Scan(NamedTuple):
    """A scan's header, its restart interval (0 if none), and the number of restarts in it."""

    header: bytes
    interval: int
    num_restarts: int


def _next_marker(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Return (marker, start of the body, end) of the first segment at or after `at`.

    Bytes between segments are skipped, and so is a segment whose length does not lead to another
    marker.
    """
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return None
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF, _SOI) or 0xD0 <= marker <= 0xD7:
            at += 1
            continue
        if marker == _EOI:
            return marker, at + 2, at + 2
        if marker < 0xC0 or at + 4 > len(data):
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        leads_on = at + 4 <= end <= len(data) and (marker == _SOS or data[end : end + 1] == b"\xff")
        if leads_on:
            return marker, at + 4, end
        at += 2


def _end_of_scan(data: bytes, at: int) -> tuple[int, int]:
    """Return the end of the entropy-coded bytes and the number of restarts in them.

    They end at the first marker that is not a restart.
    """
    num_restarts = 0
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return (len(data) if at < 0 else at), num_restarts
        if data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            num_restarts += data[at + 1] != 0
            at += 2
        elif data[at + 1] == 0xFF:
            at += 1
        else:
            return at, num_restarts


def _is_sound_segment(marker: int, body: bytes) -> bool:
    if marker == _APP1:
        return body.startswith(b"Exif\0\0") and _is_sound_exif(body)
    if marker == _APP2:
        return body.startswith(b"ICC_PROFILE\0") and len(body) > 14 and 1 <= body[12] <= body[13]
    return (marker == _APP0 and len(body) >= 14 and body.startswith(b"JFIF\0")) or (
        marker == _APP14 and len(body) >= 12 and body.startswith(b"Adobe")
    )


def _is_sound_exif(data: bytes) -> bool:
    try:
        exif = Image.Exif()
        exif.load(data)
        dict(exif)
    except Exception:  # Pillow raises various exceptions for damaged EXIF data
        return False
    return True


def _all_scans_are_there(frame: bytes, scans: list[_Scan]) -> bool:
    """Return whether the scans hold every bit of every coefficient of every component."""
    missing = dict.fromkeys(frame[6 : 6 + 3 * frame[5] : 3], (1 << 64) - 1)
    for scan, _, _ in scans:
        count = scan[0]
        if len(scan) < 4 + 2 * count:
            return False
        first, last, bits = scan[1 + 2 * count], scan[2 + 2 * count], scan[3 + 2 * count]
        if bits & 15 == 0:  # later scans have no lower bits to add
            for component in scan[1 : 1 + 2 * count : 2]:
                if component in missing:
                    missing[component] &= ~(((1 << (min(last, 63) + 1)) - 1) & ~((1 << first) - 1))
    return bool(missing) and not any(missing.values())


def _all_restarts_are_there(frame: bytes, scans: list[_Scan]) -> bool:
    """Return whether the last scan has all restarts that the image needs.

    Decoders fill the gap left by a missing restart with made-up pixels.
    """
    header, interval, num_restarts = scans[-1]
    if not interval:
        return True
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = {
        frame[at]: (frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(6, 6 + 3 * frame[5], 3)
    }
    most_across, most_down = (
        max(across for across, _ in factors.values()),
        max(down for _, down in factors.values()),
    )
    if header[0] == 1 and header[1] in factors:  # not interleaved: blocks of one component
        across, down = factors[header[1]]
        columns, rows = (
            -(-width * across // (8 * most_across)),
            -(-height * down // (8 * most_down)),
        )
    else:
        columns, rows = -(-width // (8 * most_across)), -(-height // (8 * most_down))
    return num_restarts >= -(-columns * rows // interval) - 1


def _all_pixels_are_there(data: bytes) -> bool:
    """Return whether a JPEG cut off within a scan shows the same pixels whatever bytes follow."""
    found: list[np.ndarray] = []
    for more in _CONTINUATIONS:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data + more + EOI)) as image:
            found.append(np.asarray(image))
        if not np.array_equal(found[0], found[-1]):
            return False
    return True


# --- WebP, TIFF and GIF


def _mended_webp(data: bytes) -> bytes:
    """Return the WebP with only its image chunks and sound ICC and EXIF, and a correct length."""
    kept = []
    at = 12
    while at + 8 <= len(data):
        type_, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length
        body = data[at + 8 : end]
        is_whole = end <= len(data)
        if type_ in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF") or (
            is_whole and (type_ == b"ICCP" or (type_ == b"EXIF" and _is_sound_exif(body)))
        ):
            kept.append((type_, body))
        at = end + length % 2
    types = {type_ for type_, _ in kept}
    # flags to keep: alpha and animation, and those of the chunks that remain
    flags = (
        0b00010010
        | (0b00100000 if b"ICCP" in types else 0)
        | (0b00001000 if b"EXIF" in types else 0)
    )
    kept = [
        (type_, bytes([body[0] & flags]) + body[1:] if type_ == b"VP8X" and body else body)
        for type_, body in kept
    ]
    chunks = b"".join(
        type_ + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for type_, body in kept
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


# The TIFF tags that say where the pixels are and what they mean.
_IMAGE_TAGS = frozenset(
    int(tag)
    for tag in (
        "254 256 257 258 259 262 266 273 274 277 278 279 284 292 293 317 320 322 323 324 325 338"
        " 339 347 529 530 531 532"
    ).split()
)


def _mended_tiff(data: bytes) -> bytes:
    """Return the TIFF with its first image only, and only the tags that decoding needs."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    word, count_of, entry_size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    try:
        start = struct.unpack_from(order + word, data, 8 if is_big else 4)[0]
        count = min(struct.unpack_from(order + count_of, data, start)[0], tiff.MAX_TAGS)
    except struct.error:
        return data
    entries_at = start + struct.calcsize(count_of)
    entries = [
        data[at : at + entry_size]
        for at in range(entries_at, entries_at + count * entry_size, entry_size)
    ]
    needed = [
        entry
        for entry in entries
        if len(entry) == entry_size and _tag_of(entry, order) in _IMAGE_TAGS
    ]
    if not needed or not tiff.read_tags(data):
        return data
    directory = (
        struct.pack(order + count_of, len(needed)) + b"".join(needed) + bytes(struct.calcsize(word))
    )
    pad = bytes(len(data) % 2)
    head = (
        data[:8] + struct.pack(order + "Q", len(data + pad))
        if is_big
        else data[:4] + struct.pack(order + "I", len(data + pad))
    )
    return head + data[len(head) :] + pad + directory


def _tag_of(entry: bytes, order: str) -> int:
    tag: int = struct.unpack_from(order + "H", entry)[0]
    return tag


def _mended_gif(data: bytes) -> bytes:
    """Return the GIF with its first image only, and the extension that controls it."""
    for at, kind, end in _gif_blocks(data):
        if kind == b",":
            head = data[: _gif_start(data)]
            control = next(
                (data[a:e] for a, k, e in _gif_blocks(data) if k == b"!\xf9" and a < at), b""
            )
            return head + control + data[at:end] + b";"
    return data


def _gif_start(data: bytes) -> int:
    """Return where the blocks begin, after the header and the global color table."""
    flags = data[10] if len(data) > 10 else 0
    return 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)


def _gif_blocks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield (start, kind, end) of extensions and images, up to the first that is cut off."""
    at = _gif_start(data)
    while at + 2 <= len(data):
        if data[at : at + 1] == b"!":
            kind, body = data[at : at + 2], at + 2
        elif data[at : at + 1] == b"," and at + 10 < len(data):
            flags = data[at + 9]
            kind, body = b",", at + 11 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
        else:
            return
        while body < len(data) and data[body]:
            body += 1 + data[body]
        if body >= len(data):
            return
        yield at, kind, body + 1
        at = body + 1
