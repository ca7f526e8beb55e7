"""Files that take seconds to make and are made once, whichever worker of pytest-xdist is first."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

T = TypeVar("T")

_folder: Path | None = None


def share_below(folder: Path) -> None:
    """Keep shared files below `folder`, which all workers of this run see."""
    global _folder
    _folder = folder / "shared"
    _folder.mkdir(exist_ok=True)


def made_once(name: str, make: Callable[[Path], T], *, suffix: str) -> tuple[Path, T]:
    """Return a file that `make` writes, and the value it returned, making them if nobody has.

    name: says everything that the file depends on. Nobody may change the file.
    """
    assert _folder is not None, "the session's fixture names the folder"
    path = _folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{suffix}"
    value = path.with_suffix(".pickle")  # written last, so that a failed `make` is repeated
    with FileLock(path.with_suffix(".lock")):
        if not value.exists():
            value.write_bytes(pickle.dumps(make(path)))
        made: T = pickle.loads(value.read_bytes())
    return path, made
