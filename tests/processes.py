"""Run Python in a new process: to kill it, or to run it as an ordinary user."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 240.0  # under pytest's own, and enough on a busy machine
REPOSITORY = Path(__file__).parents[1]
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


def start_python(
    code: str, *arguments: object, ordinary_user: bool = False, stdin: int | None = None
) -> subprocess.Popen[str]:
    """Start `code` with sys.argv[1:] = arguments. ordinary_user: file permissions apply, even if
    the tests run as root."""
    drop = ordinary_user and os.geteuid() == 0
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_drop_root_rights if drop else None,
    )


def run_python(code: str, *arguments: object, ordinary_user: bool = False) -> tuple[int, str, str]:
    """Run `code` to its end; return exit status, stdout and stderr."""
    process = start_python(code, *arguments, ordinary_user=ordinary_user)
    out, error = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, error


def _drop_root_rights() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
