"""What tells that an image's file has changed: its size, its time of change, and a digest of its
bytes.

A stamp is taken before the bytes are read. If the file changes in between, the next look finds
another stamp, never an older image under a newer one.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import xxhash


class Stamp(NamedTuple):
    """One file as it was when its image was read. None: not known, or the file could not be read."""

    size: int | None = None
    mtime_ns: int | None = None
    digest: bytes | None = None

    def same_file(self, other: Stamp) -> bool:
        """Whether size and time are the same, so that the bytes most likely are too."""
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


NO_STAMP = Stamp()


def stamp_of(file: Path) -> Stamp:
    """Return the stamp of a file without its digest; NO_STAMP where there is no file to look at."""
    try:
        status = file.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return NO_STAMP
    return Stamp(status.st_size, status.st_mtime_ns)


def digest_of(data: bytes) -> bytes:
    """Return 16 bytes that differ when the data differ."""
    # tens of GB/s where SHA-256 takes 1, and nobody forges images here
    return xxhash.xxh3_128_digest(data)
