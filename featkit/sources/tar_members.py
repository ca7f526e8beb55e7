"""The members of a tar archive: where their bytes lie, which regions are damaged, and what each
name finally means.

Archives may be concatenated, as for `tar --ignore-zeros`. The walk does not end at a damaged
header, as that of `tarfile` does: it searches for the next valid one, and reports the bytes
between.
"""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

from featkit.errors import InputError
from featkit.images import printable
from featkit.sources.base import is_image
from featkit.sources.tar_headers import (
    BLOCK,
    MAGIC,
    MAGIC_OFFSET,
    Damaged,
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

DUMP_DIRECTORY, CONTINUED, VOLUME_LABEL = b"D", b"M", b"V"
SPECIAL = frozenset((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE))
NO_DATA = SPECIAL | {tarfile.SYMTYPE, tarfile.DIRTYPE, VOLUME_LABEL}
PAX_TYPES = frozenset((tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE))
LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
MAX_EXTENDED_BYTES = 2**24  # a damaged size must not fill the memory
MAX_NAME = 8192  # characters; twice what Linux takes
MAX_LINKS = 40  # that one name may lead through, as in Linux
MIN_SCAN, MAX_SCAN = 2**13, 2**20  # bytes read at once in search of a header


class Member(NamedTuple):
    """A regular file in the archive. What no piece covers is zeros. The CRC-32 is of its header
    block, at `header`."""

    name: str
    size: int
    pieces: tuple[Piece, ...]
    header: int
    header_crc: int


class SymbolicLink(NamedTuple):
    """A name for another one."""

    name: str
    target: str


class Unreadable(NamedTuple):
    """A name whose bytes cannot be had, and why."""

    name: str
    error: str


Entry: TypeAlias = Member | SymbolicLink | Unreadable


@dataclass
class Listing:
    """What an archive holds.

    entries: by normalized name, as tar unpacks them (of equal names the last), in the order of
    their first appearance.
    gaps: the error sentence of each damaged region, by its first byte and the byte after its last.
    skipped: what was passed over, by reason. num_bytes is the archive's size when it was listed.
    """

    num_bytes: int
    entries: dict[str, Entry] = field(default_factory=dict)
    gaps: dict[tuple[int, int], str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    num_headers: int = 0  # members of every kind

    @cached_property
    def _folders(self) -> set[str]:
        return {
            key[:place]
            for key in self.entries
            for place, character in enumerate(key)
            if character == "/"
        }

    def has_folder(self, key: str) -> bool:
        """Whether a normalized name is a folder with anything in it, the root ("") as well."""
        return not key or key in self._folders

    def target_of(self, link: SymbolicLink) -> Entry | None:
        """Return the entry that a link names directly, if that is in the archive."""
        if link.target.startswith("/"):
            return None
        return self.entries.get(
            posixpath.normpath(posixpath.join(posixpath.dirname(normalize(link.name)), link.target))
        )

    def follow(self, link: SymbolicLink) -> str | None:
        """Return the normalized name that a link leads to, through links to folders as well; None
        outside the archive."""
        if link.target.startswith("/"):
            return None
        parts = [*normalize(link.name).split("/")[:-1], *_parts(link.target)]
        done: list[str] = []
        links_left = MAX_LINKS
        while parts:
            part = parts.pop(0)
            if part == "..":
                if not done:
                    return None
                done.pop()
                continue
            entry = self.entries.get("/".join([*done, part]))
            if not isinstance(entry, SymbolicLink):
                done.append(part)
                continue
            links_left -= 1
            if entry.target.startswith("/") or links_left < 0:
                return None
            parts = [*_parts(entry.target), *parts]
        return "/".join(done)


@dataclass
class _Extended:
    """What the extended headers in front of a member say of it."""

    start: int
    values: dict[str, bytes] = field(default_factory=dict)
    # offset, size, offset, size ... of sparse map 0.0
    sparse: list[bytes] = field(default_factory=list)
    damaged: bool = False


def list_members(path: Path) -> Listing:
    """Walk through a tar archive's headers. InputError for a file that cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            walk = _Walk(path, file)
            walk.run()
            walk.follow_links_ahead()
            return walk.listing
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def normalize(name: str) -> str:
    """Return the name under which tar unpacks a member: without `./`, doubled slashes, and slashes
    at its ends."""
    if name[:1] not in ("/", ".") and "//" not in name and "/." not in name and name[-1:] != "/":
        return name
    return "/".join(part for part in name.split("/") if part not in ("", "."))


class _Walk:
    """One walk over an archive, from header to header."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self.file = path, file
        self.end = file.seek(0, 2)
        self.listing = Listing(self.end)
        self.defaults: dict[str, bytes] = {}  # of pax's global headers
        self.extended: _Extended | None = None  # of the member that comes next
        # the member before: its name, where its data begins and ends
        self.last: tuple[str, int, int] | None = None
        self.links_ahead: list[SymbolicLink] = []  # hard links to what was not there yet
        self.has_magic = False  # whether any header had it

    def run(self) -> None:
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
        """Return as many of the bytes as there are."""
        self.file.seek(offset)
        return self.file.read(size)

    def _take(self, header: Header, offset: int) -> int:
        """Enter what a header says; return the offset of the next."""
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
            stored = decimal(values["size"]) if "size" in values else stored
            if header.kind in NO_DATA or (
                header.kind == tarfile.LNKTYPE and not self._has_body(data, stored)
            ):
                stored = 0
            if header.kind == tarfile.GNUTYPE_SPARSE:
                sparse, data = old_sparse_map(header.block, data, stored, self.read)
            elif values and any(key.startswith("GNU.sparse.") for key in values):
                sparse = pax_sparse_map(values, extended.sparse, data, stored, self.read)
            elif "GNUSparseFile." in name:
                raise Damaged("the map of the sparse member is lost")
        except Damaged as damage:
            error = f"{self.path} has a damaged header of its member {printable(name)}: {damage}."
        end = data + padded(stored)
        self.last = (name, data, data + stored)
        if max(len(name), len(link)) > MAX_NAME:
            self._add_gap(
                extended.start,
                end,
                f"the name of a member has {max(len(name), len(link)):,} characters",
            )
            return end
        if extended.damaged:
            self._add_gap(
                extended.start,
                end,
                "an extended header is damaged, so the name of its member is unknown",
            )
            return end
        sparse = sparse or SparseMap(stored, (Piece(0, data, stored),) if stored else ())
        member = Member(name, sparse.size, sparse.pieces, offset, zlib.crc32(header.block))
        self._enter(header.kind, member, link, error)
        return end

    def follow_links_ahead(self) -> None:
        """Give hard links that stand before their member its bytes."""
        entries = self.listing.entries
        for link in self.links_ahead:
            key, target = normalize(link.name), entries.get(normalize(link.target))
            if isinstance(entries[key], Unreadable) and isinstance(target, Member):
                entries[key] = target._replace(name=link.name)

    def _enter(self, kind: bytes, member: Member, link: str, error: str) -> None:
        """Enter a member under its name; an earlier one of that name counts no more."""
        name, key = member.name, normalize(member.name)
        entry: Entry = member
        if not key or name.endswith("/") or kind in (tarfile.DIRTYPE, DUMP_DIRECTORY, VOLUME_LABEL):
            return
        if kind in SPECIAL:
            if is_image(name):
                self.listing.skipped["special file"] += 1
            return
        if error:
            entry = Unreadable(name, error)
        elif kind == CONTINUED:
            entry = Unreadable(
                name,
                f"{self.path} has only the end of {printable(name)}, which begins in an earlier"
                " volume.",
            )
        elif kind == tarfile.SYMTYPE:
            entry = SymbolicLink(name, link)
        elif kind == tarfile.LNKTYPE and not member.pieces:
            target = self.listing.entries.get(normalize(link))
            entry = (
                target._replace(name=name)
                if target is not None
                else dangling(self.path, SymbolicLink(name, link))
            )
            if target is None:
                self.links_ahead.append(SymbolicLink(name, link))
        if key in self.listing.entries and is_image(name):
            self.listing.skipped["repeated name"] += 1
        self.listing.entries[key] = entry

    def _has_body(self, data: int, size: int) -> bool:
        """Whether a hard link's bytes follow: pax allows them, and some old writers give a size
        without them."""
        return size > 0 and not self._is_boundary(data) and self._is_boundary(data + padded(size))

    def _is_boundary(self, offset: int) -> bool:
        block = self.read(offset, BLOCK)
        return offset <= self.end and (not block.strip(b"\0") or parse_header(block) is not None)

    def _read_extended(self, header: Header, offset: int) -> None:
        """Keep what an extended header says, for the next member or for all that follow."""
        data = self.read(offset + BLOCK, header.size) if header.size <= MAX_EXTENDED_BYTES else b""
        try:
            if len(data) < header.size or not data:
                raise Damaged("it is cut")
            records = (
                [(LONG_NAMES[header.kind], data)] if header.kind in LONG_NAMES else parse_pax(data)
            )
        except Damaged:
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
        """Two blocks of zeros or more are an end mark, after which another archive may follow; one
        block is damage."""
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
        """Report what stands at `offset` in place of a header; return the offset of the next
        header, or the end."""
        start = offset if self.extended is None else self.extended.start
        last, self.last, self.extended = self.last, None, None
        # Bytes that were lost or added inside a member move all that follows, so that the next
        # header may stand before `offset`, or at no multiple of a block. An archive inside the
        # archive has headers of its own.
        if last is not None and parse_header(self.read(last[1], BLOCK)) is not None:
            last = None
        found = self._find_header(offset if last is None else last[1])
        if found is not None and last is not None and (found - offset) % BLOCK + (found < offset):
            self._distrust(*last[:2], found)
        if found is None or found > offset:
            what = "there is no valid header"
            if offset + BLOCK > self.end:
                what = "the archive ends inside a header; it is truncated"
            elif after_end and found is None:
                what = "the bytes after the end mark are not an archive"
            self._add_gap(start, self.end if found is None else found, what)
        return self.end if found is None else found

    def _distrust(self, name: str, data: int, found: int) -> None:
        """The bytes of a member are not all there, or there are more of them."""
        key = normalize(name)
        if is_image(name) and key in self.listing.entries:
            error = (
                f"{self.path} has lost or gained bytes inside its member {printable(name)}; copy or"
                " make the archive again."
            )
            self.listing.entries[key] = Unreadable(name, error)
        else:
            self._add_gap(data, found, f"bytes were lost or added inside {printable(name)}")

    def _find_header(self, start: int) -> int | None:
        """Return the offset of the first valid header at or after `start`, however it is aligned."""
        if self.has_magic or not self.listing.num_headers:
            found = self._find_magic(start)
            if found is not None or self.has_magic:
                return found
        return self._find_block(start)

    def _find_magic(self, start: int) -> int | None:
        num_bytes = MIN_SCAN
        while len(data := self.read(start, num_bytes)) >= BLOCK:
            place = data.find(MAGIC, MAGIC_OFFSET)
            while place >= 0:
                begin = place - MAGIC_OFFSET
                if (
                    _may_be_header(data, begin)
                    and parse_header(self.read(start + begin, BLOCK)) is not None
                ):
                    return start + begin
                place = data.find(MAGIC, place + 1)
            start += len(data) - MAGIC_OFFSET - len(MAGIC) + 1
            num_bytes = min(2 * num_bytes, MAX_SCAN)
        return None

    def _find_block(self, start: int) -> int | None:
        """Search in an archive of version 7, which has no magic: blocks with a right checksum."""
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
        """Return the offset of the first block that is not all zeros, counted from `offset`; or the
        end."""
        num_bytes = MIN_SCAN
        while data := self.read(offset, num_bytes):
            if rest := data.lstrip(b"\0"):
                return offset + (len(data) - len(rest)) // BLOCK * BLOCK
            offset += len(data)
            num_bytes = min(2 * num_bytes, MAX_SCAN)
        return self.end

    def _note_cut(self) -> None:
        """The archive ends inside the last member: an image says so when it is read."""
        if self.last is None:
            return
        name, data, end = self.last
        if end > self.end:
            if not is_image(name):
                self._add_gap(
                    data,
                    self.end,
                    f"the archive ends inside its member {printable(name)}; it is truncated",
                )
        elif end < self.end:
            self._add_gap(
                end,
                self.end,
                f"the archive ends in the block after {printable(name)}; it may be truncated",
            )

    def _add_gap(self, start: int, end: int, what: str) -> None:
        end = min(end, self.end)
        sentence = (
            f"{self.path} is damaged from byte {start:,} to {end:,}: {what}. Copy or make the"
            " archive again."
        )
        self.listing.gaps[start, end] = sentence


def dangling(path: Path, link: SymbolicLink, *, to_link: bool = False) -> Unreadable:
    """Return what becomes of a link to something that is not in the archive, or to a link that
    leads nowhere."""
    trouble = "is itself a link that leads to no file" if to_link else "is not in the archive"
    error = (
        f"{printable(link.name)} in {path} is a link to {printable(link.target)}, which {trouble}."
    )
    return Unreadable(link.name, error)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _may_be_header(data: bytes, begin: int) -> bool:
    """Whether the field of the checksum has digits: rules out nearly all that is no header,
    quickly."""
    return data[begin + 148 : begin + 156].strip(b" \0").isdigit()
