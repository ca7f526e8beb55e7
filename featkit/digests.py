"""Digests of files, and of the bytes of images."""

from __future__ import annotations

import hashlib
from pathlib import Path

CONTENT_BYTES = 16


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex, reading it in pieces. OSError if it cannot be
    read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(data: bytes) -> bytes:
    """Return the digest that identifies an image's bytes: BLAKE2b of 16 bytes."""
    return hashlib.blake2b(data, digest_size=CONTENT_BYTES).digest()
