"""List a tar archive's members and damaged regions, from header to header.

Archives may be concatenated, as for `tar --ignore-zeros`. `tarfile` ends at a damaged header; this
walk searches for the next valid one, and reports the bytes between.
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from featkit.errors import InputError
from featkit.images import printable
from featkit.sources.base import is_image
from featkit.sources.tar_headers import (
    BLOCK,
    MAGIC,
    MAGIC_OFFSET,
    DamagedHeader,
    Header,
    Piece,
    SparseMap,
    decimal,
    old_sparse_map,
    padded,
    parse_header,
    parse_pax,
    pax_sparse_map,
    text,
)
from featkit.sources.tar_members import (
    Entry,
    Member,
    MemberList,
    SymbolicLink,
    Unreadable,
    dangling,
    normalize,
)

DUMP_DIRECTORY, CONTINUED, VOLUME_LABEL = b"D", b"M", b"V"
SPECIAL = frozenset((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE))
NO_DATA = SPECIAL | {tarfile.SYMTYPE, tarfile.DIRTYPE, VOLUME_LABEL}
PAX_TYPES = frozenset((tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE))
LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
MAX_EXTENDED_BYTES = 2**24  # a damaged size must not fill the memory
MAX_NAME = 8192  # characters; twice the limit of Linux
MIN_SCAN, MAX_SCAN = 2**13, 2**20  # bytes read at a time when searching for a header


class _Last(NamedTuple):
    """The member before: its name, and where its data begins and ends."""

    name: str
    data: int
    end: int


@dataclass
class _Extended:
    """The contents of the extended headers in front of a member."""

    start: int
    values: dict[str, bytes] = field(default_factory=dict)
    # offset, size, offset, size ... of a sparse map of version 0.0
    sparse: list[bytes] = field(default_factory=list)
    damaged: bool = False


def list_members(path: Path) -> MemberList:
    """Walk through a tar archive's headers. InputError if the file cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            walk = _Walk(path, file)
            walk.run()
            walk.resolve_early_links()
            return walk.listing
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


class _Walk:
    """One walk through an archive, from header to header."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self.file = path, file
        self.end = file.seek(0, 2)
        self.listing = MemberList(self.end)
        self.defaults: dict[str, bytes] = {}  # of pax's global headers
        self.extended: _Extended | None = None  # of the next member
        self.last: _Last | None = None
        self.early_links: list[SymbolicLink] = []  # hard links that precede their target
        self.has_magic = False  # whether any header had it

    def run(self) -> None:
        """Walk to the end of the archive."""
        offset = 0
        after_end = False  # whether an end mark stands right before `offset`
        while offset < self.end:
            block = self.read(offset, BLOCK)
            if (header := parse_header(block)) is not None:
                after_end = False
                offset = self._take(header, offset)
            elif block.strip(b"\0"):
                offset = self._pass_damage(offset, after_end=after_end)
                after_end = False
            else:
                start, offset = offset, self._skip_zeros(offset)
                after_end = offset - start >= 2 * BLOCK
                self._pass_zeros(start, offset)
        if self.extended is not None:
            self._add_gap(
                self.extended.start,
                self.end,
                "the archive ends inside an extended header; it is truncated",
            )
        elif offset > self.end:
            self._note_cut()

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes, fewer at the end of the archive."""
        self.file.seek(offset)
        return self.file.read(size)

    def _take(self, header: Header, offset: int) -> int:
        """Enter the member of a header; return the offset of the next header."""
        self.has_magic |= header.has_magic
        data = offset + BLOCK
        if header.kind in PAX_TYPES or header.kind in LONG_NAMES:
            self._read_extended(header, offset)
            self.last = None
            return data + padded(header.size)
        extended, self.extended = self.extended or _Extended(offset), None
        self.listing.num_headers += 1
        values = self.defaults | extended.values
        name = text(values.get("GNU.sparse.name", values.get("path", b""))) or header.name
        link = text(values.get("linkpath", b"")) or header.link
        stored, sparse, error = header.size, None, ""
        try:
            stored = self._stored_size(header, values, data)
            if header.kind == tarfile.GNUTYPE_SPARSE:
                sparse, data = old_sparse_map(header.block, data, stored, self.read)
            elif _is_pax_sparse(values):
                sparse = pax_sparse_map(values, extended.sparse, data, stored, self.read)
            elif "GNUSparseFile." in name:
                raise DamagedHeader("the map of the sparse member is lost")
        except DamagedHeader as damage:
            error = f"{self.path} has a damaged header of its member {printable(name)}: {damage}."
        end = data + padded(stored)
        self.last = _Last(name, data, data + stored)
        if (trouble := _nameless(name, link, extended)) is not None:
            self._add_gap(extended.start, end, trouble)
            return end
        sparse = sparse or SparseMap(stored, (Piece(0, data, stored),) if stored else ())
        member = Member(name, sparse.size, sparse.pieces, offset, zlib.crc32(header.block))
        self._enter(header.kind, member, link, error)
        return end

    def _stored_size(self, header: Header, values: dict[str, bytes], data: int) -> int:
        """Return the number of bytes after a header. Raises DamagedHeader."""
        stored = decimal(values["size"]) if "size" in values else header.size
        if header.kind in NO_DATA:
            return 0
        if header.kind == tarfile.LNKTYPE and not self._has_body(data, stored):
            return 0
        return stored

    def resolve_early_links(self) -> None:
        """Give hard links that precede their target its bytes."""
        entries = self.listing.entries
        for link in self.early_links:
            key, target = normalize(link.name), entries.get(normalize(link.target))
            if isinstance(entries[key], Unreadable) and isinstance(target, Member):
                entries[key] = target._replace(name=link.name)

    def _enter(self, kind: bytes, member: Member, link: str, error: str) -> None:
        """Enter a member under its name, in place of an earlier one with the same name."""
        name, key = member.name, normalize(member.name)
        if not key or name.endswith("/") or kind in (tarfile.DIRTYPE, DUMP_DIRECTORY, VOLUME_LABEL):
            return
        if kind in SPECIAL:
            if is_image(name):
                self.listing.skipped["special file"] += 1
            return
        entry = Unreadable(name, error) if error else self._entry(kind, member, link)
        if key in self.listing.entries and is_image(name):
            self.listing.skipped["repeated name"] += 1
        self.listing.entries[key] = entry

    def _entry(self, kind: bytes, member: Member, link: str) -> Entry:
        """Return what a member of a kind is: its bytes, a link, or unreadable."""
        name = member.name
        if kind == CONTINUED:
            error = (
                f"{self.path} has only the end of {printable(name)}, which begins in an earlier"
                " volume."
            )
            return Unreadable(name, error)
        if kind == tarfile.SYMTYPE:
            return SymbolicLink(name, link)
        if kind == tarfile.LNKTYPE and not member.pieces:
            target = self.listing.entries.get(normalize(link))
            if target is not None:
                return target._replace(name=name)
            hard_link = SymbolicLink(name, link)
            self.early_links.append(hard_link)
            return dangling(self.path, hard_link)
        return member

    def _has_body(self, data: int, size: int) -> bool:
        """Return whether the bytes of a hard link follow. pax allows them, but some old writers
        give a size without them."""
        return size > 0 and not self._is_boundary(data) and self._is_boundary(data + padded(size))

    def _is_boundary(self, offset: int) -> bool:
        block = self.read(offset, BLOCK)
        return offset <= self.end and (not block.strip(b"\0") or parse_header(block) is not None)

    def _read_extended(self, header: Header, offset: int) -> None:
        """Keep the contents of an extended header, for the next member or for all that follow."""
        data = self.read(offset + BLOCK, header.size) if header.size <= MAX_EXTENDED_BYTES else b""
        try:
            if len(data) < header.size or not data:
                raise DamagedHeader("it is cut")
            records = (
                [(LONG_NAMES[header.kind], data)] if header.kind in LONG_NAMES else parse_pax(data)
            )
        except DamagedHeader:
            if header.kind == tarfile.XGLTYPE:
                self._add_gap(
                    offset,
                    offset + BLOCK + padded(header.size),
                    "a global extended header is damaged",
                )
                return
            self.extended = self.extended or _Extended(offset)
            self.extended.damaged = True
            return
        if header.kind == tarfile.XGLTYPE:
            self.defaults |= dict(records)
            return
        self.extended = self.extended or _Extended(offset)
        self.extended.values |= dict(records)
        self.extended.sparse += [
            value for key, value in records if key in ("GNU.sparse.offset", "GNU.sparse.numbytes")
        ]

    def _pass_zeros(self, start: int, offset: int) -> None:
        """Treat two or more blocks of zeros as an end mark, after which another archive may follow,
        and a single one as damage."""
        self.last = None
        if self.extended is not None:
            self._add_gap(
                self.extended.start, start, "an extended header is not followed by its member"
            )
            self.extended = None
        if offset - start >= 2 * BLOCK:
            self.defaults = {}
        elif offset < self.end:
            self._add_gap(start, offset, "a header is overwritten with zeros")

    def _pass_damage(self, offset: int, *, after_end: bool) -> int:
        """Report the bytes at `offset`, which are not a header; return the offset of the next
        header, or the end."""
        start = offset if self.extended is None else self.extended.start
        last, self.last, self.extended = self.last, None, None
        # Bytes lost or added inside a member move everything after it, so the next header may come
        # before `offset`, or may not be aligned to a block. The search therefore begins in the last
        # member, unless that is an archive, which has headers of its own.
        if last is not None and parse_header(self.read(last.data, BLOCK)) is not None:
            last = None
        header = self._find_header(offset if last is None else last.data)
        if header is not None and last is not None and _is_moved(header, offset):
            self._distrust(last.name, last.data, header)
        if header is None or header > offset:
            end = self.end if header is None else header
            is_last = after_end and header is None
            self._add_gap(start, end, self._damage_at(offset, after_last=is_last))
        return self.end if header is None else header

    def _damage_at(self, offset: int, *, after_last: bool) -> str:
        """Return in words what is wrong at an offset. after_last: an end mark precedes it and no
        header follows."""
        if offset + BLOCK > self.end:
            return "the archive ends inside a header; it is truncated"
        if after_last:
            return "the bytes after the end mark are not an archive"
        return "there is no valid header"

    def _distrust(self, name: str, data: int, next_header: int) -> None:
        """Report a member with missing or additional bytes."""
        key = normalize(name)
        if is_image(name) and key in self.listing.entries:
            error = (
                f"{self.path} has lost or gained bytes inside its member {printable(name)}; copy or"
                " make the archive again."
            )
            self.listing.entries[key] = Unreadable(name, error)
        else:
            self._add_gap(data, next_header, f"bytes were lost or added inside {printable(name)}")

    def _find_header(self, start: int) -> int | None:
        """Return the offset of the first valid header at or after `start`, however it is
        aligned."""
        if self.has_magic or not self.listing.num_headers:
            header = self._find_magic(start)
            if header is not None or self.has_magic:
                return header
        return self._find_block(start)

    def _find_magic(self, start: int) -> int | None:
        num_bytes = MIN_SCAN
        while len(data := self.read(start, num_bytes)) >= BLOCK:
            position = data.find(MAGIC, MAGIC_OFFSET)
            while position >= 0:
                begin = position - MAGIC_OFFSET
                if (
                    _may_be_header(data, begin)
                    and parse_header(self.read(start + begin, BLOCK)) is not None
                ):
                    return start + begin
                position = data.find(MAGIC, position + 1)
            start += len(data) - MAGIC_OFFSET - len(MAGIC) + 1
            num_bytes = min(2 * num_bytes, MAX_SCAN)
        return None

    def _find_block(self, start: int) -> int | None:
        """Search an archive of the version 7 format, which has no magic, for a block with a correct
        checksum."""
        while data := self.read(start, MAX_SCAN):
            for begin in range(0, len(data), BLOCK):
                if (
                    _may_be_header(data, begin)
                    and parse_header(data[begin : begin + BLOCK]) is not None
                ):
                    return start + begin
            start += len(data)
        return None

    def _skip_zeros(self, offset: int) -> int:
        """Return the offset of the first block at or after `offset` that is not all zeros, or the
        end."""
        num_bytes = MIN_SCAN
        while data := self.read(offset, num_bytes):
            if rest := data.lstrip(b"\0"):
                return offset + (len(data) - len(rest)) // BLOCK * BLOCK
            offset += len(data)
            num_bytes = min(2 * num_bytes, MAX_SCAN)
        return self.end

    def _note_cut(self) -> None:
        """Report an archive that ends inside its last member. A cut image needs no report, since
        reading it raises."""
        if self.last is None:
            return
        name, data, end = self.last
        if end > self.end:
            if not is_image(name):
                trouble = f"the archive ends inside its member {printable(name)}; it is truncated"
                self._add_gap(data, self.end, trouble)
        elif end < self.end:
            trouble = f"the archive ends in the block after {printable(name)}; it may be truncated"
            self._add_gap(end, self.end, trouble)

    def _add_gap(self, start: int, end: int, what: str) -> None:
        end = min(end, self.end)
        sentence = (
            f"{self.path} is damaged from byte {start:,} to {end:,}: {what}. Copy or create the"
            " archive again."
        )
        self.listing.gaps[start, end] = sentence


def _is_pax_sparse(values: dict[str, bytes]) -> bool:
    return any(key.startswith("GNU.sparse.") for key in values)


def _nameless(name: str, link: str, extended: _Extended) -> str | None:
    """Return in words why a member's name cannot be right; None if it can."""
    longest = max(len(name), len(link))
    if longest > MAX_NAME:
        return f"the name of a member has {longest:,} characters"
    if extended.damaged:
        return "an extended header is damaged, so the name of its member is unknown"
    return None


def _is_moved(header: int, offset: int) -> bool:
    """Return whether a header is not where one at or after `offset` would be in a whole archive."""
    return header < offset or (header - offset) % BLOCK != 0


def _may_be_header(data: bytes, begin: int) -> bool:
    """Return whether the checksum field has digits: a quick test that excludes nearly all other
    blocks."""
    return data[begin + 148 : begin + 156].strip(b" \0").isdigit()
