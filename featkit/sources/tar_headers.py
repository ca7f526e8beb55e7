"""Headers of tar archives: one block, the extended headers of pax and GNU, and the maps of sparse
members.

`tarfile` reads them too, but takes GNU's times for a part of the name, drops sparse maps at damage
without a word, and gives no way to go on after a damaged header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

BLOCK = 512
MAGIC, MAGIC_OFFSET = b"ustar", 257
POSIX_MAGIC = b"ustar\0"  # only these headers have a name prefix; GNU keeps times in its place
MAX_MAP_BYTES = 2**24  # of a sparse member's map
PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=\n]+)=")
MAX_DIGITS = 20  # of a decimal number; more are damage

ReadAt = Callable[[int, int], bytes]  # (offset, size): as many bytes as the archive has there


class Piece(NamedTuple):
    """A run of a member's bytes: `size` bytes at `offset` of the archive stand at `position` of the
    member."""

    position: int
    offset: int
    size: int


class Header(NamedTuple):
    """One header block. `size` is of the bytes stored after it."""

    name: str
    kind: bytes
    size: int
    link: str
    block: bytes

    @property
    def has_magic(self) -> bool:
        """True for every format since ustar (1988)."""
        return self.block[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] == MAGIC


class SparseMap(NamedTuple):
    """A member with holes: its size with them, and the pieces that are stored."""

    size: int
    pieces: tuple[Piece, ...]


class Damaged(ValueError):
    """An extended header or a map that cannot be right."""


def parse_header(block: bytes) -> Header | None:
    """Return the header in a block, or None if its checksum or a field is wrong."""
    if len(block) != BLOCK:
        return None
    try:
        checksum, size = _number(block[148:156]), _number(block[124:136])
    except Damaged:
        return None
    summed = block[:148] + b"        " + block[156:]
    if checksum != (total := sum(summed)) and checksum != total - 256 * sum(
        byte > 127 for byte in summed
    ):
        return None  # the second sum is of signed bytes, by old writers
    name = text(block[:100])
    if block[345] and block[MAGIC_OFFSET : MAGIC_OFFSET + 6] == POSIX_MAGIC:
        name = text(block[345:500]) + "/" + name
    return Header(name, block[156:157], size, text(block[157:257]), block)


def parse_pax(data: bytes) -> list[tuple[str, bytes]]:
    """Return the records of a pax header, in order. Raises Damaged unless they fill it."""
    records = []
    position = 0
    while position < len(data):
        match = PAX_RECORD.match(data, position)
        if match is None:
            if data[position:].strip(b"\0"):
                raise Damaged("a record does not begin with its length")
            break
        end = position + int(match[1])
        if end <= match.end() or data[end - 1 : end] != b"\n":
            raise Damaged("a record has another length")
        records.append((match[2].decode("utf-8", "replace"), data[match.end() : end - 1]))
        position = end
    return records


def old_sparse_map(block: bytes, data: int, stored: int, read: ReadAt) -> tuple[SparseMap, int]:
    """Return the map of an old GNU sparse member, and the offset of its data, which extension
    blocks precede.

    data: the offset after the header `block`. Raises Damaged.
    """
    numbers = _struct_numbers(block[386:482])
    size = _number(block[483:495])
    extended = block[482]
    while extended:
        block = read(data, BLOCK)
        if len(block) < BLOCK or len(numbers) > MAX_MAP_BYTES // 24:
            raise Damaged("the map does not end")
        numbers += _struct_numbers(block[:504])
        data += BLOCK
        extended = block[504]
    return _sparse_map(numbers, size, data, stored), data


def pax_sparse_map(
    values: Mapping[str, bytes], listed: list[bytes], data: int, stored: int, read: ReadAt
) -> SparseMap:
    """Return the map of a pax sparse member of version 0.0 (`listed` offsets and sizes), 0.1 or
    1.0. Raises Damaged."""
    size = decimal(values.get("GNU.sparse.realsize", values.get("GNU.sparse.size", b"")))
    if values.get("GNU.sparse.major", b"0") == b"0":
        fields = values["GNU.sparse.map"].split(b",") if "GNU.sparse.map" in values else listed
        return _sparse_map([decimal(value) for value in fields if value], size, data, stored)
    if (values["GNU.sparse.major"], values.get("GNU.sparse.minor")) != (b"1", b"0"):
        raise Damaged("the version of its map is unknown")
    text_of_map = b""
    count: int | None = None
    while count is None or text_of_map.count(b"\n") < 1 + 2 * count:
        block = read(data + len(text_of_map), BLOCK)
        if not block or len(text_of_map) >= min(stored, MAX_MAP_BYTES):
            raise Damaged("the map does not end")
        text_of_map += block
        if count is None and b"\n" in text_of_map:
            count = decimal(text_of_map.split(b"\n", 1)[0])
    numbers = [decimal(value) for value in text_of_map.split(b"\n")[1 : 1 + 2 * count]]
    return _sparse_map(numbers, size, data + len(text_of_map), stored - len(text_of_map))


def text(data: bytes) -> str:
    """Return the text up to the first zero byte; bytes that are not UTF-8 are kept as in file
    names."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def decimal(value: bytes) -> int:
    """Return a number in decimal digits. Raises Damaged."""
    if not value.isdigit() or len(value) > MAX_DIGITS:
        raise Damaged("a number is not decimal")
    return int(value)


def padded(size: int) -> int:
    """Round up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _sparse_map(numbers: list[int], size: int, data: int, stored: int) -> SparseMap:
    """Pieces from offset, size, offset, size ...; they ascend, lie inside the member, and use all
    that is stored."""
    pieces = []
    end, offset = 0, data
    if len(numbers) % 2:
        raise Damaged("an offset has no size")
    for position, count in zip(numbers[::2], numbers[1::2], strict=True):
        if not 0 <= end <= position or count < 0:
            raise Damaged("its pieces overlap")
        end = position + count
        if count:
            pieces.append(Piece(position, offset, count))
        offset += count
    if end > size or offset - data != stored:
        raise Damaged("its pieces have another size than the member")
    return SparseMap(size, tuple(pieces))


def _struct_numbers(data: bytes) -> list[int]:
    """Offset and size of each struct in a sparse header, up to the first empty one."""
    numbers: list[int] = []
    for start in range(0, len(data) - 23, 24):
        if not data[start : start + 24].strip(b"\0 "):
            break
        numbers += [_number(data[start : start + 12]), _number(data[start + 12 : start + 24])]
    return numbers


def _number(field: bytes) -> int:
    """Return a number in octal digits or in base 256. Raises Damaged."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise Damaged("a number is negative")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    if digits.strip(b"01234567"):
        raise Damaged("a number is not octal")
    return int(digits, 8)
