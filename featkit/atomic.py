"""Files and folders that appear complete or not at all.

They are written under a temporary name, flushed with fsync, and renamed.
"""

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
    """Turn a full disk, a missing permission and other obstacles into an EnvironmentProblem."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise EnvironmentProblem(
                f"No space left to write {path}; free some space, or choose another path."
            ) from error
        if error.errno in FORBIDDING:
            reason = os.strerror(error.errno)  # pyarrow puts its own words into error.strerror
            raise EnvironmentProblem(
                f"{path} cannot be written: {reason}; choose another path."
            ) from error
        raise


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` on success.

    On failure it is removed. EnvironmentProblem if the disk is full or permission is missing.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    with explain_os_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, and rename it to `path` on success.

    `path` must not exist yet. Raises what `replace_file` raises.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    with explain_os_errors(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in sorted(temporary.rglob("*")):
                flush(file)
            flush(temporary)
            temporary.rename(path)
            flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` in UTF-8, or leave it as it is.

    Bytes of file names that are not valid UTF-8 are written as backslash escapes.
    """
    with replace_file(path) as temporary:
        # newline: the bytes are the same on Windows
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def remove_partials(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`."""
    for leftover in folder.glob(f"*{TEMPORARY_MARK}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder if the system can do that, to the disk."""
    is_folder = path.is_dir()
    if is_folder and WINDOWS:  # Windows cannot open folders; it keeps the order of renames itself
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, (os.O_RDWR if WINDOWS else os.O_RDONLY) | OPEN_FLAGS)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot flush folders. Files must be flushed.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
