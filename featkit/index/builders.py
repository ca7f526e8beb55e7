"""The lock of those who build codes or reclaim rows: one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featkit.atomic import explain_os_errors
from featkit.index.approximate.generation import FOLDER
from featkit.lock import WriterLock

LOCK_FILE = "builder.lock"
FAILURE_FILE = "failed.json"  # of a build in the background


@contextmanager
def excluding_builders(index: Path) -> Iterator[None]:
    """Hold the lock until the block ends. AlreadyLocked if another process holds it."""
    folder = index / FOLDER
    with explain_os_errors(folder):
        folder.mkdir(exist_ok=True)
    lock = WriterLock(folder / LOCK_FILE)
    try:
        yield
    finally:
        lock.release()
