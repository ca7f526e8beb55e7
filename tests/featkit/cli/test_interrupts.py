"""Ctrl-C ends every command except training within two seconds, even in hanging native calls."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from featkit.cli.interrupts import MESSAGE
from featkit.models import default_model_path
from tests.commands import REPOSITORY

if not hasattr(os, "fork"):
    pytest.skip("the system has no fork", allow_module_level=True)

WITHIN_S = 2.0
SLACK_S = 3.0  # for a busy machine
STARTS_S = 60.0

# A command whose engine hangs in a native call: a mutex locked twice, which no signal interrupts.
# "held": with the GIL.
HUNG = """
import ctypes, sys
library = (ctypes.PyDLL if sys.argv[1] == "held" else ctypes.CDLL)(None)
from featkit.backends.onnxruntime import OnnxRuntimeBackend
def run(self, images, *, outputs=("embedding",), cancel=None):
    print("hung", flush=True)
    mutex = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
OnnxRuntimeBackend.run = run
sys.argv = ["featkit", *sys.argv[2:]]
from featkit.cli.app import entry_point
entry_point()
"""

# A program that needs a hundred seconds to end after Ctrl-C.
SLOW_END = """
import signal, sys, time
from featkit.cli.interrupts import end_on_interrupt
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
end_on_interrupt()
try:
    print("started", flush=True)  # within, since Ctrl-C may come at once
    time.sleep(float(sys.argv[2]))
except KeyboardInterrupt:
    print("heard", flush=True)
    time.sleep(100)
"""


@contextlib.contextmanager
def started(program: str, *arguments: object, wait_for: str) -> Iterator[subprocess.Popen[str]]:
    """The program in a process of its own, once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for_line(process, wait_for)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.strip().startswith(line):
            return
    raise AssertionError(f"the process ended before it printed {line}")


def ended_by(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal, and give the exit status and stderr of a process that ends in time."""
    sent = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=WITHIN_S + SLACK_S)
    assert time.monotonic() - sent < WITHIN_S + SLACK_S
    return process.returncode, error


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (i, 80, 80)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("gil", ["released", "held"])
def test_embed_ends_while_its_workers_hang(photos: Path, tmp_path: Path, gil: str) -> None:
    with started(
        HUNG, gil, "embed", photos, "--out", tmp_path / "e", "--quiet", wait_for="hung"
    ) as process:
        status, error = ended_by(process, signal.SIGINT)
    if gil == "released":
        assert (status, error.count("\n")) == (130, 1)
        assert "Stopped by Ctrl-C with 0 of 3 items" in error
    else:
        assert (status, error) == (-signal.SIGKILL, f"{MESSAGE}\n")


def test_a_command_ends_while_its_main_thread_hangs() -> None:
    with started(HUNG, "released", "bench", "--seconds", "1", wait_for="hung") as process:
        assert ended_by(process, signal.SIGINT) == (130, f"{MESSAGE}\n")


@pytest.mark.parametrize(
    ("gil", "number"),
    [("released", signal.SIGINT), ("held", signal.SIGINT), ("held", signal.SIGTERM)],
)
def test_a_service_ends_while_a_request_hangs(
    photos: Path, gil: str, number: signal.Signals
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError), (photos / "1.png").open("rb") as photo:
            httpx.post(
                f"http://127.0.0.1:{port}/v1/embed", files={"files": photo}, timeout=STARTS_S
            )

    command = ("serve", "--model", default_model_path(), "--port", port, "--drain-s", 0)
    with started(HUNG, gil, *command, wait_for="Serving") as process:
        deadline = time.monotonic() + STARTS_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            time.sleep(0.05)
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        wait_for_line(process, "hung")
        status, error = ended_by(process, number)
        asking.join(STARTS_S)
    assert status in (0, 130, -signal.SIGKILL, -signal.SIGTERM)
    assert "Traceback" not in error or "CancelledError" in error


def test_a_second_ctrl_c_ends_at_once() -> None:
    with started(SLOW_END, "heard", 100, wait_for="started") as process:
        process.send_signal(signal.SIGINT)
        wait_for_line(process, "heard")
        assert ended_by(process, signal.SIGINT) == (130, f"{MESSAGE}\n")


def test_what_does_not_end_by_itself_is_ended() -> None:
    with started(SLOW_END, "heard", 100, wait_for="started") as process:
        assert ended_by(process, signal.SIGINT) == (130, f"{MESSAGE}\n")


def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    with started(SLOW_END, "ignored", 3, wait_for="started") as process:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=STARTS_S)
        assert (process.returncode, error) == (0, "")


@pytest.mark.parametrize("number", [None, signal.SIGKILL])
def test_nothing_is_left_behind(number: signal.Signals | None) -> None:
    """The clock holds stderr open: the pipe ends when it has ended."""
    with started(SLOW_END, "heard", 0.2, wait_for="started") as process:
        if number is not None:
            process.send_signal(number)
        _, error = process.communicate(timeout=10)
        assert (process.returncode, error) == (0 if number is None else -number, "")
