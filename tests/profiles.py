"""ICC profiles of a monitor, of gray, and of a press, made from a few numbers."""

from __future__ import annotations

import struct

import numpy as np

P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]
ADOBE = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]
PROPHOTO = [(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)]
SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]
D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(
    primaries: list[tuple[float, float]], *, gamma: float = 2.2, device: bytes = b"mntr"
) -> bytes:
    """Return a profile of three primaries with a D65 white point and one gamma for all of them."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    white = xyz(0.3127, 0.3290)
    matrix = np.stack([xyz(*primary) for primary in primaries], 1)
    matrix = matrix * np.linalg.solve(matrix, white)
    cone = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    matrix = np.linalg.inv(cone) @ np.diag((cone @ np.array(D50)) / (cone @ white)) @ cone @ matrix
    colors = [
        (tag, _xyz(column))
        for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)
    ]
    curves = [(tag, _power(gamma)) for tag in (b"rTRC", b"gTRC", b"bTRC")]
    return _profile(b"RGB ", [(b"wtpt", _xyz(np.array(D50))), *colors, *curves], device=device)


def gray_profile(gamma: float) -> bytes:
    """Return a profile of one gray channel."""
    return _profile(b"GRAY", [(b"wtpt", _xyz(np.array(D50))), (b"kTRC", _power(gamma))])


def press_profile() -> bytes:
    """Return a profile of four inks with a table of two steps each. Its cyan is orange, so an image
    shows whether the profile was used."""
    lab = {  # (C, M, Y, K) of 0 or 1 to L* a* b*
        (0, 0, 0): (100, 0, 0),
        (1, 0, 0): (65, 45, 60),
        (0, 1, 0): (50, 75, 0),
        (0, 0, 1): (90, -5, 90),
        (1, 1, 0): (25, 20, -45),
        (1, 0, 1): (50, -65, 30),
        (0, 1, 1): (50, 65, 45),
        (1, 1, 1): (20, 0, 0),
    }
    table = bytearray()
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    lightness, a, b = (5, 0, 0) if k else lab[c, m, y]
                    table += bytes([round(lightness * 2.55), a + 128, b + 128])
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", round(v * 65536)) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    return _profile(
        b"CMYK",
        [(b"wtpt", _xyz(np.array(D50))), (b"A2B0", lut)],
        device=b"prtr",
        connection=b"Lab ",
    )


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)


def _power(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(
    space: bytes,
    tags: list[tuple[bytes, bytes]],
    *,
    device: bytes = b"mntr",
    connection: bytes = b"XYZ ",
) -> bytes:
    description = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = [(b"desc", description), (b"cprt", b"text\0\0\0\0none\0\0\0\0"), *tags]
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, value in tags:
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = (
        struct.pack(">I", 128 + len(table) + len(data))
        + b"\0\0\0\0\x02\x40\0\0"
        + device
        + space
        + connection
    )
    head += (
        b"\x07\xe0\0\1\0\1\0\0\0\0\0\0acsp"
        + bytes(28)
        + struct.pack(">iii", 63190, 65536, 54061)
        + bytes(48)
    )
    return head + table + data
