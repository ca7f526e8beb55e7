"""What every source offers, and what they share."""

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

# What counts as an image by its name; what it really is, decoding tells. A format that needs a
# package which is not installed counts too, so that the items of a folder are the same everywhere:
# without the package they are rows that say what to install.
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

# Folders in which systems and programs keep thumbnails, deleted files and copies; matched without
# regard to case.
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
    "lost+found",  # ext: what a repair of the file system found
    ".Trash*",  # macOS and freedesktop
    ".thumbnails",
    ".thumbs",
    "__MACOSX",  # in archives: resource forks, named like the images
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
    "FOUND.[0-9][0-9][0-9]",  # Windows: what a repair of the file system found
)
# lower case
SYSTEM_FILES = ("thumbs.db", "ehthumbs*.db", "desktop.ini", "icon\r", "*:zone.identifier")
_SYSTEM_FOLDERS = [(re.compile(translate(pattern.lower())), pattern) for pattern in SYSTEM_FOLDERS]
_SYSTEM_FILES = re.compile("|".join(map(translate, SYSTEM_FILES)))


class Skip(NamedTuple):
    """Why a path is passed over, and the part of the path that decides it: the file itself or a
    folder above it."""

    reason: str  # "hidden file", "hidden folder", "system file", "system folder (@eaDir)"
    path: str


class Source(Protocol):
    """A numbered list of images, in one stable order; read at random, from several threads, after
    a fork or a pickling."""

    @property
    def name(self) -> str:
        """As the user gave it."""
        ...

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return what was passed over when the source was listed, by reason: {".cr2": 12, "hidden
        file": 2}."""
        ...

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """Unique name of an item: the path below the source's root with `/`, valid UTF-8."""
        ...

    def read(self, number: int) -> bytes:
        """Undecoded bytes. InputError naming the key when they cannot be had."""
        ...

    def metadata(self, number: int) -> Metadata:
        """What the source knows of an item beside its image."""
        ...

    def file(self, number: int, /) -> Path:
        """The file that its bytes lie in: its own, or the container that holds it."""
        ...


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image: a known suffix, and not hidden (`.x.jpg`,
    `._x.jpg`)."""
    return not name.rsplit("/", 1)[-1].startswith(".") and suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case with its dot, "" if it has none.

    Without what other programs append: `x.jpg?size=2` of a download, and blanks and dots, which
    Windows drops.
    """
    base = name.rsplit("/", 1)[-1].split("?", 1)[0].rstrip(" .")
    stem, dot, suffix = base.rpartition(".")
    return dot + suffix.lower() if stem else ""


def skip_by_name(path: str) -> Skip | None:
    """Return why the file at a relative path with `/` is passed over by its name or by a folder
    above it; None if it is not.

    The rule is the same for folders and archives: hidden files and folders, and those that systems
    keep for themselves.
    """
    parts = path.split("/")
    for end, name in enumerate(parts[:-1], 1):
        if (reason := folder_skip_reason(name)) is not None:
            return Skip(reason, "/".join(parts[:end]))
    reason = file_skip_reason(parts[-1])
    return None if reason is None else Skip(reason, path)


@lru_cache(maxsize=4096)  # archives name a folder with each of its members
def folder_skip_reason(name: str) -> str | None:
    """Return why a folder of this name is passed over with all that is in it; None if it is not."""
    lower = name.lower()
    system = next(
        (pattern for expression, pattern in _SYSTEM_FOLDERS if expression.match(lower)), None
    )
    if system is not None:
        return f"system folder ({system})"
    return "hidden folder" if name.startswith(".") and name not in (".", "..") else None


def file_skip_reason(name: str) -> str | None:
    """Return why a file of this name is passed over whatever its suffix; None if it is not."""
    if _SYSTEM_FILES.match(name.lower()):
        return "system file"
    return "hidden file" if name.startswith(".") else None


def merge_skipped(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of several counts of what was passed over."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def keys_sha256(source: Source) -> str:
    """Digest of all keys in their order: the same images by name, whatever is in them."""
    return _digest(map(source.key, range(len(source))))


def has_keys(source: Source, sha256: str) -> bool:
    """Whether this is the digest of the source's keys, or of those by which an earlier version knew
    the same items."""
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
    """Return a file's first bytes, enough for `what_is`. InputError when it cannot be read, or is
    empty."""
    try:
        with path.open("rb") as file:
            head = file.read(NUM_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise InputError(f"{path} is empty (0 bytes); copy or download it again.")
    return head
