"""The interface of every source, and the rules for names that all of them share."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

from featkit.errors import InputError
from featkit.filetypes import NUM_BYTES

Metadata: TypeAlias = dict[str, str | int | float]
NOTHING_SKIPPED: Mapping[str, int] = MappingProxyType({})

# Suffixes of images; decoding shows what a file really is. A format counts even if the
# package that reads it is not installed, so that a folder has the same items on every machine:
# without the package they are rows that name the package to install.
RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf"
    " .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
IMAGE_SUFFIXES = RAW_SUFFIXES | frozenset(
    ".jpg .jpeg .jpe .jfif .pjpeg .pjp .jpg_large .jpeg_large .jps .mpo .insp .png .apng .webp .gif"
    " .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .pfm .jp2 .j2k .j2c .jpc .jpf .jpx .tga .ico .qoi"
    " .psd .pcx .sgi .dds .heic .heics .heif .heifs .hif .avif .avifs .jxl".split()
)

TAR_SUFFIXES = frozenset((".tar",))
PARQUET_SUFFIXES = frozenset((".parquet", ".parq", ".pq"))
CONTAINER_SUFFIXES = TAR_SUFFIXES | PARQUET_SUFFIXES

# Folders in which systems and programs keep thumbnails, deleted files and copies; matched
# case-insensitively.
SYSTEM_FOLDERS = (
    "@eaDir",  # Synology: thumbnails
    "#recycle",
    "#snapshot",
    "@Recycle",  # QNAP
    "@Recently-Snapshot",
    "@__thumb",
    "@sharesnap",
    "@sharebin",
    "@snapshot",
    "@snapshots",
    "@tmp",
    "~snapshot",  # NetApp
    "$RECYCLE.BIN",  # Windows
    "$RECYCLE",
    "RECYCLER",
    "RECYCLED",
    "System Volume Information",
    "lost+found",  # ext: files recovered by a repair of the file system
    ".Trash*",  # macOS and freedesktop.org
    ".thumbnails",
    ".thumbs",
    "__MACOSX",  # in archives: resource forks with the names of the images
    "*.photoslibrary",  # macOS: libraries with several copies of each image
    "*.photolibrary",
    "*.migratedphotolibrary",
    "*.aplibrary",
    "*.lrdata",  # Lightroom: previews
    "*.lrlibrary",
    "*.lrcat-data",
    "*.cocatalog",  # Capture One
    "*.fcpbundle",  # Final Cut
    "*.imovielibrary",
    "FOUND.[0-9][0-9][0-9]",  # Windows: files recovered by a repair of the file system
)
# lower case
SYSTEM_FILES = ("thumbs.db", "ehthumbs*.db", "desktop.ini", "icon\r", "*:zone.identifier")
_SYSTEM_FOLDERS = [(re.compile(translate(pattern.lower())), pattern) for pattern in SYSTEM_FOLDERS]
_SYSTEM_FILES = re.compile("|".join(map(translate, SYSTEM_FILES)))


class Skip(NamedTuple):
    """Why a path is skipped. path: the file itself, or the folder above it that is skipped."""

    reason: str  # "hidden file", "hidden folder", "system file", "system folder (@eaDir)"
    path: str


class Source(Protocol):
    """A list of images in a stable order. Any item can be read at any time, from several threads,
    and after a fork or pickling."""

    @property
    def name(self) -> str:
        """The source as the user typed it."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of files that were skipped, by reason: {".cr2": 12, "hidden file": 2}."""
        ...

    def __len__(self) -> int: ...

    def key(self, item: int, /) -> str:
        """Return an item's unique name: its path below the source's root, with `/`, as valid
        UTF-8."""
        ...

    def read(self, item: int, /) -> bytes:
        """Return an item's undecoded bytes. InputError naming the key if they cannot be read."""
        ...

    def metadata(self, item: int, /) -> Metadata:
        """Return what the source knows about an item besides its image."""
        ...

    def file(self, item: int, /) -> Path:
        """Return the file that holds an item's bytes: its own, or its container."""
        ...


def is_image(name: str) -> bool:
    """Return whether a file of this name counts as an image: it has a known suffix and is not
    hidden (`.x.jpg`, `._x.jpg`)."""
    return not name.rsplit("/", 1)[-1].startswith(".") and suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, in lower case and with its dot; "" if it has none.

    Ignores what other programs append: the query of a downloaded `x.jpg?size=2`, and trailing
    spaces and dots, which Windows drops.
    """
    base = name.rsplit("/", 1)[-1].split("?", 1)[0].rstrip(" .")
    stem, dot, suffix = base.rpartition(".")
    return dot + suffix.lower() if stem else ""


def skip_by_name(path: str) -> Skip | None:
    """Return why the file at a relative path with `/` is skipped; None if it is not.

    The rule is the same for folders and archives: files and folders that are hidden, and those
    that systems keep for themselves, are skipped.
    """
    parts = path.split("/")
    for end, name in enumerate(parts[:-1], 1):
        if (reason := folder_skip_reason(name)) is not None:
            return Skip(reason, "/".join(parts[:end]))
    reason = file_skip_reason(parts[-1])
    return None if reason is None else Skip(reason, path)


@lru_cache(maxsize=4096)  # archives name a folder with each of its members
def folder_skip_reason(name: str) -> str | None:
    """Return why a folder of this name is skipped with everything in it; None if it is not."""
    lower = name.lower()
    system = next(
        (pattern for expression, pattern in _SYSTEM_FOLDERS if expression.match(lower)), None
    )
    if system is not None:
        return f"system folder ({system})"
    return "hidden folder" if name.startswith(".") and name not in (".", "..") else None


def file_skip_reason(name: str) -> str | None:
    """Return why a file of this name is skipped, whatever its suffix; None if it is not."""
    if _SYSTEM_FILES.match(name.lower()):
        return "system file"
    return "hidden file" if name.startswith(".") else None


def merge_skipped(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of the counts of several sources."""
    total: Counter[str] = Counter()
    for counts in parts:
        total.update(counts)
    return dict(total)


def keys_sha256(source: Source) -> str:
    """Return a digest of all keys in order: equal for the same names, whatever the images hold."""
    return _digest(map(source.key, range(len(source))))


def has_keys(source: Source, sha256: str) -> bool:
    """Return whether this is the digest of the source's keys, or of the keys that an earlier
    version gave the same items."""
    if keys_sha256(source) == sha256:
        return True
    older_key = getattr(source, "older_key", None)
    return older_key is not None and _digest(map(older_key, range(len(source)))) == sha256


def _digest(keys: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for key in keys:
        digest.update(key.encode() + b"\0")
    return digest.hexdigest()


def read_head(path: Path) -> bytes:
    """Return a file's first bytes, enough for `what_is`. InputError if it cannot be read or is
    empty."""
    try:
        with path.open("rb") as file:
            head = file.read(NUM_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy or download it again.")
    return head
