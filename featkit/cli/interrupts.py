"""End a command within two seconds after Ctrl-C, whatever native code its threads run.

Python handles Ctrl-C in the main thread, between two of its own instructions. It cannot do so while
that thread is in a native call, while the interpreter waits at exit for a thread in a native call,
or while a native call holds the GIL. So a command gets PATIENCE_S to end by itself, in a committed
state and with its own message; then it is killed. Everything that featkit writes is complete or
absent after a kill at any moment, so only the message is lost.

A watchdog process measures the time. Python's C signal handler writes the signal's number into a
pipe (`signal.set_wakeup_fd`), which needs no GIL. The watchdog reads it, waits, and tells a thread
of the command that the time is up. If not even that thread can run, the watchdog kills the command.
A thread alone could not do this without the GIL, and Python itself would have to handle a timer's
signal.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from featkit.errors import Interrupted

MESSAGE = "featkit: stopped by Ctrl-C; what was committed is kept."
PATIENCE_S = 1.5  # for the command to end by itself, unless it has asked for more
LAST_S = 0.25  # then, for its thread to end it
STEP_S = 0.02
LAST_SIGNAL = 64  # larger numbers in the pipe are seconds beyond it
MOST_DRAIN_S = 255 - LAST_SIGNAL
POLL_S = 2.0  # between checks whether the command still runs, on systems without pidfd
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides the cursor


def end_on_interrupt() -> None:
    """Make Ctrl-C end this process within two seconds, and a second Ctrl-C at once.

    Call this only in featkit's own process. SIGTERM is treated the same if a command handles it, as
    a server does. Does nothing if signals are ignored (a background job of a shell), outside the
    main thread, or on systems without fork.
    """
    is_single_threaded = (
        threading.current_thread() is threading.main_thread() and threading.active_count() == 1
    )
    if (
        not hasattr(os, "fork")
        or not is_single_threaded
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return
    signals, signal_written = os.pipe()
    times, time_is_up = os.pipe()
    command = os.getpid()
    try:
        watchdog = os.fork()
    except OSError:  # no more processes allowed: Ctrl-C works as in any Python program
        for descriptor in (signals, signal_written, times, time_is_up):
            os.close(descriptor)
        return
    if watchdog == 0:
        _watch(command, signals, time_is_up, unused=(signal_written, times))
    os.close(signals)
    os.close(time_is_up)
    global _pipe
    _pipe = signal_written
    os.set_blocking(signal_written, False)
    signal.set_wakeup_fd(signal_written, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _Interrupt())
    threading.Thread(
        target=_end_on_request, args=(times,), name="featkit-interrupt", daemon=True
    ).start()


_pipe: int | None = None  # to the watchdog


def allow_after_sigterm(seconds: int) -> None:
    """Give this process more seconds after SIGTERM, up to MOST_DRAIN_S, for a server's running
    requests. After Ctrl-C it has no more than before."""
    if _pipe is not None:
        os.write(_pipe, bytes((LAST_SIGNAL + min(seconds, MOST_DRAIN_S),)))


class _Interrupt:
    """A handler that raises KeyboardInterrupt at the first Ctrl-C and ends the process at the
    second."""

    def __init__(self) -> None:
        self.is_second = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_second:
            _end_now(signal.SIGINT)
        self.is_second = True
        signal.default_int_handler(number, frame)


def _end_on_request(times: int) -> None:
    request = os.read(times, 1)
    if request:  # empty if the watchdog is gone
        _end_now(request[0])


def _end_now(number: int) -> NoReturn:
    """End this process without waiting for any thread; the exit code is 130 after Ctrl-C."""
    with suppress(OSError):
        os.write(2, _last_words(number))
    os._exit(Interrupted.exit_code if number == signal.SIGINT else 128 + number)


def _last_words(number: int) -> bytes:
    message = (
        MESSAGE
        if number == signal.SIGINT
        else MESSAGE.replace("Ctrl-C", signal.Signals(number).name)
    )
    return f"{SHOW_CURSOR if os.isatty(2) else ''}{message}\n".encode()


# The watchdog -------------------------------------------------------------------------------------


def _watch(command: int, signals: int, time_is_up: int, *, unused: tuple[int, ...]) -> NoReturn:
    """Watch the parent process `command` until it ends, and end it PATIENCE_S after its first
    signal."""
    try:
        # These signals reach the whole process group, but the watchdog must outlive the command.
        for shared in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(shared, signal.SIG_IGN)
        for descriptor in (0, 1, *unused):
            with suppress(OSError):
                os.close(descriptor)
        process = _Process(command)
        number, drain_s = _first_signal(process, signals)
        if number and not process.ends_within(PATIENCE_S + drain_s):
            with suppress(OSError):
                os.write(time_is_up, bytes((number,)))
            if not process.ends_within(LAST_S):
                with suppress(OSError):
                    os.write(2, _last_words(number))
                process.kill()
    finally:
        os._exit(0)


def _first_signal(process: _Process, signals: int) -> tuple[int, int]:
    """Return the first signal that asks the command to end, and the additional seconds it has.

    The signal is 0 if it ended without one.
    """
    drain_s = 0
    while process.is_running():
        ready, _, _ = select.select(
            [signals, *process.descriptors], [], [], None if process.descriptors else POLL_S
        )
        if signals in ready:
            numbers = os.read(signals, 512)
            if not numbers:
                return 0, 0
            for number in numbers:
                if number > LAST_SIGNAL:
                    drain_s = number - LAST_SIGNAL
                elif number in (signal.SIGINT, signal.SIGTERM):
                    return number, drain_s if number == signal.SIGTERM else 0
    return 0, 0


class _Process:
    """The parent of this process, with a pidfd that signals its end if the system has them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.descriptors: list[int] = []
        if sys.platform == "linux":
            with suppress(OSError):
                self.descriptors = [os.pidfd_open(pid)]

    def is_running(self) -> bool:
        """Return whether the process is still running."""
        if self.descriptors and select.select(self.descriptors, [], [], 0)[0]:
            return False
        return os.getppid() == self._pid

    def ends_within(self, seconds: float) -> bool:
        """Wait up to `seconds` for the process to end, and return whether it did."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(STEP_S)
        return True

    def kill(self) -> None:
        """End the process if it is still our parent."""
        if os.getppid() == self._pid:
            with suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
