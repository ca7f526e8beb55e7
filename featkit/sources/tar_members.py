"""The members of a tar archive, and what each name finally stands for: the last member with that
name, or the target of a link."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias

from featkit.images import printable
from featkit.sources.tar_headers import Piece

MAX_LINKS = 40  # that one name may lead through, as in Linux


class Member(NamedTuple):
    """A regular file in the archive. Bytes that no piece covers are zeros.

    header, header_crc: offset and CRC-32 of its header block.
    """

    name: str
    size: int
    pieces: tuple[Piece, ...]
    header: int
    header_crc: int


class SymbolicLink(NamedTuple):
    """A name that stands for another one."""

    name: str
    target: str


class Unreadable(NamedTuple):
    """A name whose bytes cannot be read, and the reason."""

    name: str
    error: str


Entry: TypeAlias = Member | SymbolicLink | Unreadable


@dataclass
class MemberList:
    """The contents of an archive.

    entries: by normalized name, as tar unpacks them (the last of several with the same name), in
    the order of their first appearance. gaps: the error sentence of each damaged region, by (start,
    end) in bytes. skipped: counts of skipped members, by reason. num_bytes: the archive's size when
    it was listed.
    """

    num_bytes: int
    entries: dict[str, Entry] = field(default_factory=dict)
    gaps: dict[tuple[int, int], str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    num_headers: int = 0  # members of every kind

    @cached_property
    def _folders(self) -> set[str]:
        return {
            key[:end]
            for key in self.entries
            for end, character in enumerate(key)
            if character == "/"
        }

    def has_folder(self, key: str) -> bool:
        """Return whether a normalized name is a folder with members in it; the root ("") is one."""
        return not key or key in self._folders

    def target_of(self, link: SymbolicLink) -> Entry | None:
        """Return the entry that a link names directly, if it is in the archive."""
        if link.target.startswith("/"):
            return None
        return self.entries.get(
            posixpath.normpath(posixpath.join(posixpath.dirname(normalize(link.name)), link.target))
        )

    def follow(self, link: SymbolicLink) -> str | None:
        """Return the normalized name that a link leads to, also through links to folders; None if
        it leaves the archive."""
        if link.target.startswith("/"):
            return None
        waiting = [*normalize(link.name).split("/")[:-1], *path_parts(link.target)]
        followed: list[str] = []
        links_left = MAX_LINKS
        while waiting:
            part = waiting.pop(0)
            if part == "..":
                if not followed:
                    return None
                followed.pop()
                continue
            entry = self.entries.get("/".join([*followed, part]))
            if not isinstance(entry, SymbolicLink):
                followed.append(part)
                continue
            links_left -= 1
            if entry.target.startswith("/") or links_left < 0:
                return None
            waiting = [*path_parts(entry.target), *waiting]
        return "/".join(followed)


def normalize(name: str) -> str:
    """Return the name under which tar unpacks a member: without `./`, doubled slashes, and slashes
    at either end."""
    # Almost every name is normal already; an archive may have millions.
    if name[:1] not in ("/", ".") and "//" not in name and "/." not in name and name[-1:] != "/":
        return name
    return "/".join(path_parts(name))


def path_parts(path: str) -> list[str]:
    """Return the names in a path, without empty ones and `.`."""
    return [part for part in path.split("/") if part not in ("", ".")]


def dangling(path: Path, link: SymbolicLink, *, to_link: bool = False) -> Unreadable:
    """Return the entry for a link whose target is not in the archive, or is a link that leads
    nowhere."""
    trouble = "is itself a link that leads to no file" if to_link else "is not in the archive"
    error = (
        f"{printable(link.name)} in {path} is a link to {printable(link.target)}, which {trouble}."
    )
    return Unreadable(link.name, error)
