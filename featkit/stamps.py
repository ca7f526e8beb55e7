"""Stamps detect that an image's file has changed: size, modification time, and a digest.

A stamp is taken before the bytes are read. If the file changes between the two, the stored stamp is
older than the stored image, so the next check sees a change. The reverse, a new stamp on an old
image, cannot happen.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import xxhash


class Stamp(NamedTuple):
    """The state of a file when its image was read. A field is None if it is unknown."""

    size: int | None = None
    mtime_ns: int | None = None
    digest: bytes | None = None

    def same_file(self, other: Stamp) -> bool:
        """Return whether size and time are equal, so that the bytes most likely are, too."""
        return (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


NO_STAMP = Stamp()


def stamp_of(file: Path) -> Stamp:
    """Return the stamp of a file without a digest, or NO_STAMP if the file cannot be examined."""
    try:
        status = file.stat()
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return NO_STAMP
    return Stamp(status.st_size, status.st_mtime_ns)


def digest_of(data: bytes) -> bytes:
    """Return a digest of 16 bytes."""
    # XXH3 runs at tens of GB/s, SHA-256 at 1, and nobody forges collisions of one's own photos.
    return xxhash.xxh3_128_digest(data)
