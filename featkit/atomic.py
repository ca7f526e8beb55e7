"""Files that are there whole or not at all: written under a temporary name, flushed with fsync,
renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featkit.errors import EnvironmentProblem

WINDOWS = os.name == "nt"
TEMPORARY_MARK = ".partial-"
# For os.open: not inherited by child processes (Unix), and bytes as they are (Windows). Neither
# flag exists everywhere.
OPEN_FLAGS: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
OUT_OF_SPACE = frozenset((errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)))
FORBIDDING = frozenset(
    (
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EFBIG,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.EIO,
    )
)


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or whatever else forbids writing at `path` into one
    EnvironmentProblem."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise EnvironmentProblem(
                f"No space left to write {path}; free some or choose another place."
            ) from error
        if error.errno in FORBIDDING:
            reason = os.strerror(error.errno)  # pyarrow puts words of its own into strerror
            raise EnvironmentProblem(
                f"{path} cannot be written: {reason}; choose another place."
            ) from error
        raise


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, else
    removed.

    EnvironmentProblem on a full disk or a folder that cannot be written.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    with explain_os_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on success its files are fsynced and it is
    renamed to `path`.

    `path` must not exist yet. EnvironmentProblem as for `replace_file`.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    with explain_os_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _fsync(file)
            _fsync(temporary)
            temporary.rename(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, whole or not at all; bytes of a file name that are no text
    are spelled out."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def remove_partials(folder: Path) -> None:
    """Remove what an earlier process, killed while writing, left under a temporary name directly in
    `folder`."""
    for leftover in folder.glob(f"*{TEMPORARY_MARK}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Flush a file, or where the system can do so a folder's list of names, to the disk."""
    is_folder = path.is_dir()
    if is_folder and WINDOWS:  # Windows opens no folder, and keeps the order of renames by itself
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, (os.O_RDWR if WINDOWS else os.O_RDONLY) | OPEN_FLAGS)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems have no fsync for folders. Files must be flushed.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
