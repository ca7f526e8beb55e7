"""Run featkit's commands in this process, or in a new one that can be stopped at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from featkit.cli.app import main

REPOSITORY = Path(__file__).parents[1]
# `python -m featkit`, with all the time it needs to end by itself after Ctrl-C. On a busy machine,
# the 1.5 s that users wait may pass before it has written what it finished.
PATIENT = """
import runpy
from featkit.cli import interrupts
interrupts.PATIENCE_S = 200.0
runpy.run_module("featkit", run_name="__main__", alter_sys=True)
"""
TIMEOUT_S = 240.0  # under pytest's own, and enough on a busy machine


class Said(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    error: str


def run_featkit(*arguments: object) -> Said:
    """Run a command line in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), error.getvalue())


def start_featkit(
    *arguments: object, before: Callable[[], object] = lambda: None
) -> subprocess.Popen[str]:
    """Start featkit in a new process, which calls `before` first and prints without a buffer."""

    def prepare() -> None:
        # a shell ignores it for background jobs
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        before()

    return subprocess.Popen(
        [sys.executable, "-u", "-c", PATIENT, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def end(process: subprocess.Popen[str]) -> Said:
    """Wait for a process to end, and kill it on a timeout."""
    try:
        out, error = process.communicate(timeout=TIMEOUT_S)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Said(process.returncode, out, error)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `true()` holds or the process has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while not true() and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the process did not get there within {TIMEOUT_S:.0f} s")
        time.sleep(0.001)


def is_one_sentence(said: Said) -> bool:
    """Return whether a failed command printed exactly one line."""
    return (
        said.out == ""
        and said.error.startswith("featkit: ")
        and said.error.count("\n") == 1
        and said.error.endswith(".\n")
    )


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by name; without the lock, which names its
    holder."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "writer.lock")
    )
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
