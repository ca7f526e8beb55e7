"""Small image files and tars, and everything a source holds, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from featkit.sources import Source
from tests.images import draw_image


def image_bytes(seed: int = 0) -> bytes:
    """Return a small PNG."""
    buffer = io.BytesIO()
    draw_image(seed, height=16, width=20).save(buffer, "PNG")
    return buffer.getvalue()


def write_files(root: Path, *names: str) -> Path:
    """Write files below `root` that contain their own names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    return root


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, mode: str = "w") -> Path:
    """Write an uncompressed tar of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def keys(source: Source) -> list[str]:
    """Return all keys in order. They must be unique and valid UTF-8."""
    found = [source.key(number) for number in range(len(source))]
    assert len(set(found)) == len(found)
    assert all(key.encode("utf-8") for key in found)
    return found


def contents(source: Source) -> list[bytes]:
    """Return the bytes of all items in order."""
    return [source.read(number) for number in range(len(source))]
