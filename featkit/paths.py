"""Paths for libraries that accept only UTF-8, which names of files need not be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def open_arrow(path: Path, mode: str = "rb") -> pa.OSFile:
    """Open a file for pyarrow, which reads and writes it without Python; close it after use.
    OSError as raised by pyarrow."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(path), mode)  # as a str, the path would have to be UTF-8


def map_arrow(path: Path) -> pa.MemoryMappedFile:
    """Map a file into memory for pyarrow. OSError as raised by pyarrow."""
    import pyarrow as pa

    return pa.memory_map(os.fsencode(path))


@contextmanager
def text_path(path: Path, *, companions: Callable[[], Iterable[str]] = tuple) -> Iterator[str]:
    """Yield a path of the same file or folder that is valid UTF-8: a temporary link if its own path
    is not.

    companions: returns the names of further files in the folder that the library opens itself.
    """
    if is_text(str(path)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="featkit-link-") as links:
        if is_text(path.name):
            (Path(links) / "folder").symlink_to(path.absolute().parent)
            yield str(Path(links) / "folder" / path.name)
            return
        for name in companions():
            (Path(links) / name).symlink_to(path.absolute().with_name(name))
        link = Path(links) / ("link" + (path.suffix if is_text(path.suffix) else ""))
        link.symlink_to(path.absolute())
        yield str(link)


def is_text(name: str) -> bool:
    """Return whether a name is valid UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
