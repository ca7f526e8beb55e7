"""What every source offers, and what they share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, TypeAlias

Metadata: TypeAlias = dict[str, str | int | float]

# What counts as a picture by its name; what it really is, decoding tells.
PICTURE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .avif .ppm .pgm .pbm .pnm .jp2 .j2k .tga .ico .qoi .heic "
    ".heif".split()
)


class Source(Protocol):
    """A numbered list of pictures, in one stable order; read at random, from several threads, after a fork or a pickling."""

    @property
    def name(self) -> str:
        """As the user gave it."""
        ...

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """Unique name of an item: the path below the source's root with `/`, valid UTF-8."""
        ...

    def read(self, number: int) -> bytes:
        """Undecoded bytes. InputError naming the key when they cannot be had."""
        ...

    def metadata(self, number: int) -> Metadata:
        """What the source knows of an item beside its picture."""
        ...

    def file(self, number: int, /) -> Path:
        """The file that its bytes lie in: its own, or the container that holds it."""
        ...


def is_picture(name: str) -> bool:
    """Whether a file of this name counts as a picture: a known suffix, and not hidden (`.x.jpg`, `._x.jpg`)."""
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and "." in base and "." + base.rsplit(".", 1)[-1].lower() in PICTURE_SUFFIXES


def keys_sha256(source: Source) -> str:
    """Digest of all keys in their order: the same pictures by name, whatever is in them."""
    digest = hashlib.sha256()
    for number in range(len(source)):
        digest.update(source.key(number).encode() + b"\0")
    return digest.hexdigest()
