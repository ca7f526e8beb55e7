"""One writer at a time: a lock file that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from pathlib import Path

from featkit.atomic import explain_os_errors
from featkit.errors import EnvironmentProblem


class WriterLock:
    """The right to write, held from the constructor until `release`; the system releases it when the process dies.

    EnvironmentProblem when another holds it, with that one's process, host and command.
    """

    def __init__(self, path: Path) -> None:
        with explain_os_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            # flock, not lockf: it belongs to this opening of the file, so it also tells two writers in one process apart.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, _who_am_i(), 0)
        except BlockingIOError as error:
            holder = _describe(os.pread(self._descriptor, 65536, 0))
            os.close(self._descriptor)
            raise EnvironmentProblem(f"{path.parent} is being written by {holder}; wait for it to end, or end it.") from error
        except OSError as error:
            os.close(self._descriptor)
            raise EnvironmentProblem(f"{path} cannot be locked for writing: {error.strerror}.") from error

    def release(self) -> None:
        """Let the next one write. Does nothing the second time."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)  # nobody holds it any more; the file itself stays, since removing it races
            os.close(self._descriptor)
            self._descriptor = -1


def _who_am_i() -> bytes:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": command[:1000]}).encode()


def _describe(content: bytes) -> str:
    """A holder that has only just taken the lock may not have written its name yet."""
    try:
        who = json.loads(content)
        return f"process {who['pid']} on {who['host']} ({who['command']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
