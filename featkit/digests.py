"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex, reading it in pieces. OSError if it cannot be
    read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
