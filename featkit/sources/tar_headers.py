"""Headers of tar archives: one block, the extended headers of pax and GNU, and the maps of sparse
members.

`tarfile` reads them too, but it takes GNU's times for a part of the name, drops damaged sparse maps
silently, and cannot continue after a damaged header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

BLOCK = 512
MAGIC, MAGIC_OFFSET = b"ustar", 257
POSIX_MAGIC = b"ustar\0"  # only these headers have a name prefix; GNU stores times there
MAX_MAP_BYTES = 2**24  # of a sparse member's map
PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=\n]+)=")
MAX_DIGITS = 20  # of a decimal number; more are damage

ReadAt = Callable[[int, int], bytes]  # (offset, size) → up to `size` bytes of the archive


class Piece(NamedTuple):
    """A run of a member's bytes: `size` bytes at `offset` in the archive are at `position` in the
    member."""

    position: int
    offset: int
    size: int


class Header(NamedTuple):
    """One header block. size: the number of bytes stored after it."""

    name: str
    kind: bytes
    size: int
    link: str
    block: bytes

    @property
    def has_magic(self) -> bool:
        """Return whether the format is ustar (1988) or newer."""
        return self.block[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] == MAGIC


class SparseMap(NamedTuple):
    """A member with holes: its size including them, and the pieces that are stored."""

    size: int
    pieces: tuple[Piece, ...]


class DamagedHeader(ValueError):
    """An extended header or a sparse map is inconsistent."""


def parse_header(block: bytes) -> Header | None:
    """Return the header in a block, or None if its checksum or a field is wrong."""
    if len(block) != BLOCK:
        return None
    try:
        checksum, size = _number(block[148:156]), _number(block[124:136])
    except DamagedHeader:
        return None
    summed = block[:148] + b"        " + block[156:]
    if checksum != (total := sum(summed)) and checksum != total - 256 * sum(
        byte > 127 for byte in summed
    ):
        return None  # the second sum, of signed bytes, is what some old writers stored
    name = text(block[:100])
    if block[345] and block[MAGIC_OFFSET : MAGIC_OFFSET + 6] == POSIX_MAGIC:
        name = text(block[345:500]) + "/" + name
    return Header(name, block[156:157], size, text(block[157:257]), block)


def parse_pax(data: bytes) -> list[tuple[str, bytes]]:
    """Return the records of a pax header, in order. DamagedHeader if it holds anything else."""
    records = []
    position = 0
    while position < len(data):
        match = PAX_RECORD.match(data, position)
        if match is None:
            if data[position:].strip(b"\0"):
                raise DamagedHeader("a record does not begin with its length")
            break
        end = position + int(match[1])
        if end <= match.end() or data[end - 1 : end] != b"\n":
            raise DamagedHeader("a record has a wrong length")
        records.append((match[2].decode("utf-8", "replace"), data[match.end() : end - 1]))
        position = end
    return records


def old_sparse_map(block: bytes, data: int, stored: int, read: ReadAt) -> tuple[SparseMap, int]:
    """Return the map of an old GNU sparse member, and the offset of its data after the map's
    extension blocks.

    data: the offset after the header `block`. Raises DamagedHeader.
    """
    numbers = _struct_numbers(block[386:482])
    size = _number(block[483:495])
    extended = block[482]
    while extended:
        block = read(data, BLOCK)
        if len(block) < BLOCK or len(numbers) > MAX_MAP_BYTES // 24:
            raise DamagedHeader("the map does not end")
        numbers += _struct_numbers(block[:504])
        data += BLOCK
        extended = block[504]
    return _sparse_map(numbers, size, data, stored), data


def pax_sparse_map(
    values: Mapping[str, bytes], listed: list[bytes], data: int, stored: int, read: ReadAt
) -> SparseMap:
    """Return the map of a pax sparse member of version 0.0 (`listed` offsets and sizes), 0.1 or
    1.0. Raises DamagedHeader."""
    size = decimal(values.get("GNU.sparse.realsize", values.get("GNU.sparse.size", b"")))
    if values.get("GNU.sparse.major", b"0") == b"0":
        fields = values["GNU.sparse.map"].split(b",") if "GNU.sparse.map" in values else listed
        return _sparse_map([decimal(value) for value in fields if value], size, data, stored)
    if (values["GNU.sparse.major"], values.get("GNU.sparse.minor")) != (b"1", b"0"):
        raise DamagedHeader("the version of its map is unknown")
    numbers, num_bytes = _numbers_before_data(data, stored, read)
    return _sparse_map(numbers, size, data + num_bytes, stored - num_bytes)


def _numbers_before_data(data: int, stored: int, read: ReadAt) -> tuple[list[int], int]:
    """Return the offsets and sizes of a map of version 1.0, and the map's length in bytes.

    The map precedes the data, padded to whole blocks. Its lines are decimals; the first is the
    number of pieces.
    """
    lines = b""
    count: int | None = None
    while count is None or lines.count(b"\n") < 1 + 2 * count:
        block = read(data + len(lines), BLOCK)
        if not block or len(lines) >= min(stored, MAX_MAP_BYTES):
            raise DamagedHeader("the map does not end")
        lines += block
        if count is None and b"\n" in lines:
            count = decimal(lines.split(b"\n", 1)[0])
    return [decimal(value) for value in lines.split(b"\n")[1 : 1 + 2 * count]], len(lines)


def text(data: bytes) -> str:
    """Return the text before the first zero byte. Bytes that are not UTF-8 become surrogates, as in
    file names."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def decimal(value: bytes) -> int:
    """Parse a number in decimal digits. Raises DamagedHeader."""
    if not value.isdigit() or len(value) > MAX_DIGITS:
        raise DamagedHeader("a number is not decimal")
    return int(value)


def padded(size: int) -> int:
    """Return a size rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _sparse_map(numbers: list[int], size: int, data: int, stored: int) -> SparseMap:
    """Return the map given by offset, size, offset, size ... Raises DamagedHeader unless the pieces
    ascend, lie inside the member, and add up to what is stored."""
    pieces = []
    end, offset = 0, data
    if len(numbers) % 2:
        raise DamagedHeader("an offset has no size")
    for position, count in zip(numbers[::2], numbers[1::2], strict=True):
        if not 0 <= end <= position or count < 0:
            raise DamagedHeader("its pieces overlap")
        end = position + count
        if count:
            pieces.append(Piece(position, offset, count))
        offset += count
    if end > size or offset - data != stored:
        raise DamagedHeader("its pieces do not add up to the member's size")
    return SparseMap(size, tuple(pieces))


def _struct_numbers(data: bytes) -> list[int]:
    """Return offset and size of each struct in a sparse header, up to the first empty one."""
    numbers: list[int] = []
    for start in range(0, len(data) - 23, 24):
        if not data[start : start + 24].strip(b"\0 "):
            break
        numbers += [_number(data[start : start + 12]), _number(data[start + 12 : start + 24])]
    return numbers


def _number(field: bytes) -> int:
    """Parse a number in octal digits or in base 256. Raises DamagedHeader."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise DamagedHeader("a number is negative")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    if digits.strip(b"01234567"):
        raise DamagedHeader("a number is not octal")
    return int(digits, 8)
