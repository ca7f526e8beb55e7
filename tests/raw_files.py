"""A camera's raw file: a DNG with uncompressed sensor data, written here since no installed package
writes one."""

from __future__ import annotations

import struct

import numpy as np

BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10
_FORMATS = {BYTE: "B", SHORT: "H", LONG: "I"}


def dng_file(pixels: np.ndarray, *, orientation: int = 1) -> bytes:
    """Return a DNG of a 16-bit sensor with RGGB color filters that recorded the (H, W, 3) uint8
    pixels of an sRGB image."""
    height, width = pixels.shape[:2]
    share = pixels / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    sensor = np.empty((height, width), "<u2")
    for top, left, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        sensor[top::2, left::2] = (light[top::2, left::2, channel] * 65535).round()
    xyz_to_srgb = [3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570]
    tags: list[tuple[int, int, list[int] | bytes | list[float]]] = [
        (254, LONG, [0]),
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [16]),
        (259, SHORT, [1]),
        (262, SHORT, [32803]),
        (271, ASCII, b"featkit\0"),
        (272, ASCII, b"drawn\0"),
        (273, LONG, [0]),  # black level of the sensor
        (274, SHORT, [orientation]),
        (277, SHORT, [1]),
        (278, LONG, [height]),
        (279, LONG, [2 * height * width]),
        (284, SHORT, [1]),
        (33421, SHORT, [2, 2]),
        (33422, BYTE, b"\0\1\1\2"),
        (50706, BYTE, b"\1\4\0\0"),
        (50707, BYTE, b"\1\1\0\0"),
        (50708, ASCII, b"featkit drawn\0"),
        (50714, SHORT, [0]),
        (50717, LONG, [65535]),
        (50721, SRATIONAL, xyz_to_srgb),
        (50728, RATIONAL, [1.0, 1.0, 1.0]),
        (50778, SHORT, [21]),  # D65
    ]
    values_at = 8 + 2 + 12 * len(tags) + 4
    values = b""
    packed = {tag: _packed(type_, value) for tag, type_, value in tags}
    sensor_at = values_at + sum(
        len(value) + len(value) % 2 for value in packed.values() if len(value) > 4
    )
    packed[273] = struct.pack("<I", sensor_at)
    directory = struct.pack("<H", len(tags))
    for tag, type_, value in tags:
        entry = packed[tag]
        directory += struct.pack("<HHI", tag, type_, len(value))
        if len(entry) <= 4:
            directory += entry.ljust(4, b"\0")
        else:
            directory += struct.pack("<I", values_at + len(values))
            values += entry + bytes(len(entry) % 2)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + values + sensor.tobytes()


def _packed(type_: int, value: list[int] | bytes | list[float]) -> bytes:
    if isinstance(value, bytes):
        return value
    if type_ in (RATIONAL, SRATIONAL):
        return b"".join(struct.pack("<ii", round(number * 10_000), 10_000) for number in value)
    return struct.pack(f"<{len(value)}{_FORMATS[type_]}", *value)
