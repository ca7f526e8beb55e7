"""Pictures in tar shards (WebDataset): indexed once by their headers, then read by offset without unpacking."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featkit.errors import InputError
from featkit.images import ImageLimits, printable
from featkit.sources.base import NOTHING_SKIPPED, Metadata, is_picture
from featkit.sources.keys import key_of

COMPANIONS = {".cls": "class", ".txt": "text"}  # members of the same stem that say something of the picture
MAX_COMPANION_BYTES = 4096


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in the archive."""

    name: str
    offset: int
    size: int


class TarSource:
    """One uncompressed tar file; keys are `shard.tar/member`. Member names are only keys, never paths.

    A name that stands twice is one item, with the bytes of the last, as when tar unpacks it.
    """

    def __init__(self, path: Path, *, limits: ImageLimits) -> None:
        self.name, self.path, self.limits = printable(str(path)), path, limits
        members = read_members(path)
        self._pictures = list({member.name: member for member in members if is_picture(member.name)}.values())
        self._companions: dict[str, list[Member]] = {}
        for member in members:
            if PurePosixPath(member.name).suffix in COMPANIONS:
                self._companions.setdefault(_stem(member.name), []).append(member)
        if not self._pictures:
            raise InputError(f"{path} holds no pictures among its {len(members):,} members.")

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return an empty mapping: members that are not read are not counted yet."""
        return NOTHING_SKIPPED

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, number: int) -> str:
        """`shard.tar/member`."""
        return key_of(f"{self.path.name}/{self._pictures[number].name}")

    def read(self, number: int) -> bytes:
        """The member's bytes."""
        member = self._pictures[number]
        if member.size > self.limits.max_bytes:
            raise InputError(f"{self.key(number)} has {member.size:,} bytes, more than the limit of {self.limits.max_bytes:,}.")
        return self._read(member)

    def metadata(self, number: int) -> Metadata:
        """Its folder in the archive, and its `.cls` and `.txt` companions (`class` as a whole number where it is one)."""
        name = self._pictures[number].name
        found: Metadata = {"folder": printable(name.rpartition("/")[0])} if "/" in name else {}
        for member in self._companions.get(_stem(name), []):
            text = self._read(member)[:MAX_COMPANION_BYTES].decode("utf-8", "replace").strip()
            column = COMPANIONS[PurePosixPath(member.name).suffix]
            found[column] = int(text) if column == "class" and text.isdecimal() else text
        return found

    def file(self, _number: int, /) -> Path:
        """The archive."""
        return self.path

    def _read(self, member: Member) -> bytes:
        try:
            # A file opened for each read: cheap beside decoding, and safe from any thread and after a fork.
            with self.path.open("rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.") from error
        if len(data) < member.size:
            raise InputError(f"{self.path} ends inside its member {printable(member.name)}; it is truncated.")
        return data


def read_members(path: Path) -> list[Member]:
    """All regular files of an uncompressed tar, in its order. InputError for anything else."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [Member(entry.name, entry.offset_data, entry.size) for entry in archive if entry.isreg()]
            rest = path.stat().st_size - archive.offset  # the end mark, or nothing: tarfile passes over a piece of a header
    except tarfile.TarError as error:
        raise InputError(
            f"{path} is not an uncompressed tar file ({error}); a compressed one cannot be read at random: unpack it."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if 0 < rest < tarfile.BLOCKSIZE:
        raise InputError(f"{path} ends inside the header of a member; it is truncated.")
    return members


def _stem(name: str) -> str:
    """WebDataset's sample name: the member's path up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]
