"""A lock file that admits one writer at a time and names its holder.

The lock is the operating system's own, through filelock: flock on Unix, LockFileEx on Windows. The
system releases it when the process dies. On a few network file systems flock succeeds but protects
nothing, so an index also keeps a writer's token in its catalogue (index/writer_token.py).
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from featkit.atomic import OPEN_FLAGS, explain_os_errors
from featkit.errors import EnvironmentProblem

MAX_DESCRIPTION = 65536  # bytes
# LockFileEx also locks the first byte against reading, so the description starts with a blank.
FIRST_READABLE = 1 if sys.platform == "win32" else 0


class AlreadyLocked(EnvironmentProblem):
    """Another process holds a lock; the message names its pid, host and command."""


class WriterLock:
    """The right to write, held from the constructor until `release` or the end of the process.

    AlreadyLocked if another process holds it; EnvironmentProblem if it cannot be taken.
    """

    def __init__(self, path: Path) -> None:
        # imported here because filelock warns at import on systems without file locks
        from filelock import lock_descriptor

        with explain_os_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | OPEN_FLAGS, 0o644)
        try:
            # The lock belongs to this open file, so it also excludes other writers in this process.
            if not lock_descriptor(self._descriptor, blocking=False):
                raise AlreadyLocked(
                    f"{path.parent} is being written by {_read_holder(self._descriptor)}; wait for"
                    " it to finish, or stop it."
                )
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, b" " + json.dumps(who_am_i()).encode())
        except OSError as error:
            os.close(self._descriptor)
            raise EnvironmentProblem(
                f"{path} cannot be locked for writing: {error.strerror}."
            ) from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Give up the right to write. Does nothing the second time."""
        if self._descriptor >= 0:
            # Remove the description but not the file: removing the file would race with the next
            # writer.
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def who_am_i() -> dict[str, str | int]:
    """Return the pid, host and command of this process, for a message in another process."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command[:1000]}


def describe(content: str | bytes) -> str:
    """Name the process that wrote `who_am_i` as JSON; "another process" for any other content."""
    try:
        who = json.loads(content)
        return f"process {who['pid']} on {who['host']} ({who['command']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _read_holder(descriptor: int) -> str:
    """Describe the holder. A process that has just taken the lock may not have written its name
    yet."""
    os.lseek(descriptor, FIRST_READABLE, os.SEEK_SET)
    return describe(os.read(descriptor, MAX_DESCRIPTION))
