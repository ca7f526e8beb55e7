"""Images in tar shards (WebDataset): listed once by their headers, then read by offset without
unpacking."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from featkit.errors import InputError
from featkit.filetypes import TAR, TEXT, ZEROS, Kind, what_is
from featkit.images import ImageLimits, printable
from featkit.sources.base import Metadata, read_head
from featkit.sources.failures import NoImages
from featkit.sources.keys import key_of
from featkit.sources.selection import EVERYTHING, Selection, skipped_in_words
from featkit.sources.tar_headers import BLOCK, parse_header
from featkit.sources.tar_members import (
    Member,
    MemberList,
    SymbolicLink,
    Unreadable,
    dangling,
    normalize,
)
from featkit.sources.tar_walk import list_members
from featkit.sources.walk import LINKED_FILE, LINKED_FOLDER
from featkit.wording import counted

# Members with the same stem that describe the image.
COMPANIONS = {".cls": "class", ".txt": "text"}
MAX_COMPANION_BYTES = 4096


class TarSource:
    """One uncompressed tar file; keys are `shard.tar/member`. Member names are never used as paths.

    Items are what tar would unpack: the last of several members with the same name, a hard link
    with the bytes of its target, a sparse member with its holes. Damaged regions, cut members and
    dangling links are items whose `read` raises, so that they are reported; the rest can be read.

    prefix: what keys begin with; the file's name by default. InputError if nothing can be read.
    NoImages if the archive is whole and has no images.
    """

    def __init__(
        self,
        path: Path,
        *,
        limits: ImageLimits,
        selection: Selection = EVERYTHING,
        prefix: str | None = None,
    ) -> None:
        self.name, self.path, self.limits = printable(str(path)), path, limits
        self.prefix = path.name if prefix is None else prefix
        kind = _refuse_other_kinds(path)
        listing = list_members(path)
        self._identity = _identity(path.stat())
        self._skipped = Counter(listing.skipped)
        self._items: list[Member | Unreadable] = list(self._images_of(listing, selection))
        self._companions: dict[str, list[Member]] = {}
        for key, entry in listing.entries.items():
            if (
                key.endswith(tuple(COMPANIONS))
                and isinstance(entry, Member)
                and _is_whole(entry, listing.num_bytes)
            ):
                self._companions.setdefault(_stem(key), []).append(entry)
        if not any(
            isinstance(item, Member) and _is_whole(item, listing.num_bytes) for item in self._items
        ):
            raise self._nothing(listing, kind)
        self._items += [
            Unreadable(f"bytes {start}-{end}", error)
            for (start, end), error in sorted(listing.gaps.items())
        ]

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of members skipped, by reason: hidden and system folders, repeated names,
        links to other items."""
        return self._skipped

    def __len__(self) -> int:
        return len(self._items)

    def key(self, item: int, /) -> str:
        """Return `shard.tar/member`, or `shard.tar/bytes START-END` for a damaged region."""
        return key_of(f"{self.prefix}/{self._items[item].name}")

    def older_key(self, item: int) -> str:
        """Return the key that an earlier version gave the item."""
        return printable(f"{self.prefix}/{self._items[item].name}")

    def read(self, item: int, /) -> bytes:
        """Return the member's bytes. InputError if they cannot be read, and for a damaged
        region."""
        member = self._items[item]
        if isinstance(member, Unreadable):
            raise InputError(member.error)
        if not _is_whole(member, self._identity[0]):
            raise InputError(_cut_sentence(self.path, member))
        if member.size > self.limits.max_bytes:
            raise InputError(
                f"{self.key(item)} has {member.size:,} bytes, more than the limit of"
                f" {self.limits.max_bytes:,}."
            )
        return self._read(member, member.size)

    def metadata(self, item: int, /) -> Metadata:
        """Return the folder in the archive, and the text of `.cls` and `.txt` companions: `class`
        as an integer if it is one."""
        member = self._items[item]
        if isinstance(member, Unreadable):
            return {}
        name = normalize(member.name)
        metadata: Metadata = {"folder": printable(name.rpartition("/")[0])} if "/" in name else {}
        for companion in self._companions.get(_stem(name), []):
            text = self._read(companion, MAX_COMPANION_BYTES).decode("utf-8", "replace").strip()
            column = COMPANIONS[PurePosixPath(companion.name).suffix]
            metadata[column] = int(text) if column == "class" and text.isdecimal() else text
        return metadata

    def file(self, _item: int, /) -> Path:
        """Return the archive."""
        return self.path

    def _images_of(
        self, listing: MemberList, selection: Selection
    ) -> Iterator[Member | Unreadable]:
        """Yield the items. Links to folders and to other items are counted instead."""
        entries = listing.entries
        ends = {  # the target of each symbolic link
            key: listing.follow(entry)
            for key, entry in entries.items()
            if isinstance(entry, SymbolicLink)
        }
        paths = self._pick(listing, selection, ends)
        taken = {key for key in paths if key not in ends}
        for key in paths:
            entry, end = entries[key], ends.get(key)
            if end in taken:
                self._skipped[LINKED_FILE] += 1
            elif not isinstance(entry, SymbolicLink):
                yield entry
            elif end is not None and isinstance(target := entries.get(end), Member | Unreadable):
                taken.add(end)
                yield target._replace(name=entry.name)
            else:
                to_link = isinstance(listing.target_of(entry), SymbolicLink)
                yield dangling(self.path, entry, to_link=to_link)

    def _pick(
        self, listing: MemberList, selection: Selection, ends: Mapping[str, str | None]
    ) -> list[str]:
        """Return the keys of images, and of links to them; count what is skipped. ends: the key
        that each symbolic link leads to."""
        folders = {key for key, end in ends.items() if _is_folder(listing, end)}
        if folders:
            self._skipped[LINKED_FOLDER] += len(folders)
        files = [
            key
            for key in listing.entries
            if key not in folders and not key.endswith(tuple(COMPANIONS))
        ]
        picked = selection.pick(files, below=f"{self.prefix}/")
        self._skipped.update(picked.skipped)
        return picked.paths

    def _nothing(self, listing: MemberList, kind: Kind | None) -> InputError:
        """Return the error for an archive without an image that can be read."""
        cut = [item for item in self._items if isinstance(item, Member)]
        if cut:
            return InputError(_cut_sentence(self.path, cut[0]))
        if not listing.num_headers:
            if kind is not None and kind != TAR:
                return InputError(kind.sentence(str(self.path), otherwise="name a tar archive"))
            return InputError(
                f"{self.path} is not an uncompressed tar file: it has no valid header; copy it"
                " or create it again."
            )
        failed = [item.error for item in self._items if isinstance(item, Unreadable)]
        failed += listing.gaps.values()
        if failed:
            return InputError(f"{self.path} holds no images that can be read. {failed[0]}")
        skipped = skipped_in_words(self._skipped)
        sentence = (
            f"{self.path} holds no images among its {counted(listing.num_headers, 'member')}."
        )
        return NoImages(sentence + (f" {skipped}" if skipped else ""))

    def _read(self, member: Member, num_bytes: int) -> bytes:
        """Return the first bytes of a member, with zeros for its holes."""
        wanted = min(num_bytes, member.size)
        parts: list[bytes] = []
        position = 0
        try:
            # Opening the file for each read is cheap compared with decoding, and safe from any
            # thread and after a fork.
            with self.path.open("rb") as file:
                self._refuse_change(file, member)
                for start, offset, size in member.pieces:
                    if start >= wanted:
                        break
                    parts.append(bytes(start - position))
                    file.seek(offset)
                    parts.append(file.read(min(size, wanted - start)))
                    if len(parts[-1]) < min(size, wanted - start):
                        raise InputError(_cut_sentence(self.path, member))
                    position = start + len(parts[-1])
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.") from error
        return b"".join([*parts, bytes(wanted - position)])

    def _refuse_change(self, file: BinaryIO, member: Member) -> None:
        """InputError if the archive changed since it was listed, including this member's header."""
        if _identity(os.fstat(file.fileno())) != self._identity:
            file.seek(member.header)
            block = file.read(BLOCK)
            if len(block) == BLOCK and zlib.crc32(block) != member.header_crc:
                raise InputError(f"{self.path} has changed since it was opened; open it again.")


def _is_folder(listing: MemberList, end: str | None) -> bool:
    """Return whether a link that leads to `end` is a link to a folder."""
    return end is not None and end not in listing.entries and listing.has_folder(end)


def _refuse_other_kinds(path: Path) -> Kind | None:
    """Return the file type that the first bytes suggest. InputError if the file is empty or
    certainly not a tar."""
    head = read_head(path)
    kind = None if parse_header(head[:BLOCK]) is not None else what_is(head)
    # Zeros and text may be a first header that was overwritten.
    if kind is not None and kind not in (TAR, ZEROS, TEXT):
        raise InputError(kind.sentence(str(path), otherwise="name a tar archive"))
    return kind


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _is_whole(member: Member, num_bytes: int) -> bool:
    """Return whether a member ends within an archive of this size."""
    return not member.pieces or member.pieces[-1].offset + member.pieces[-1].size <= num_bytes


def _cut_sentence(path: Path, member: Member) -> str:
    return f"{path} ends inside its member {printable(member.name)}; it is truncated."


def _stem(name: str) -> str:
    """Return WebDataset's sample name: the member's path up to the first dot in its file name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]
