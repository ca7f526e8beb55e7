"""Ctrl-C ends a command within two seconds, whatever native code its threads are in.

Python obeys Ctrl-C in the main thread, between two of its own instructions. It does not while that
thread is in a native call, nor while the interpreter waits at its end for a thread that is in one,
nor anywhere while a native call holds the GIL. So a command gets PATIENCE_S to end by itself, at a
committed state and with its own sentence; then it is ended. Everything that featkit writes is whole
or absent after a kill at any moment, so only the sentence is lost.

The clock is a process of its own. Python's C signal handler writes the signal's number into a pipe
(`signal.set_wakeup_fd`), which needs no GIL. The clock reads it, waits, and tells a thread here
that the time is up; if not even that thread gets to run, it kills the command. A thread alone
cannot run then, and a timer's signal would be handled by Python again.
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
PATIENCE_S = 1.5  # for the command to end by itself
LAST_S = 0.25  # for its thread to end it, after that
STEP_S = 0.02
LOOK_S = 2.0  # between two looks whether the command is still there, on systems without pidfd
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


def end_on_interrupt() -> None:
    """Make Ctrl-C end this process within two seconds, and a second Ctrl-C at once. For a process
    that is featkit's own.

    SIGTERM too, where a command handles it (as a server does). Does nothing where signals are
    ignored (a job in a shell's background), outside the main thread, or where processes cannot be
    forked.
    """
    alone = threading.current_thread() is threading.main_thread() and threading.active_count() == 1
    if (
        not hasattr(os, "fork")
        or not alone
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return
    signals, signal_written = os.pipe()
    times, time_is_up = os.pipe()
    command = os.getpid()
    try:
        clock = os.fork()
    except OSError:  # no more processes allowed: Ctrl-C works as in any Python program
        for descriptor in (signals, signal_written, times, time_is_up):
            os.close(descriptor)
        return
    if clock == 0:
        _be_the_clock(command, signals, time_is_up, unused=(signal_written, times))
    os.close(signals)
    os.close(time_is_up)
    os.set_blocking(signal_written, False)
    signal.set_wakeup_fd(signal_written, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _Interrupt())
    threading.Thread(
        target=_end_when_told, args=(times,), name="featkit-interrupt", daemon=True
    ).start()


class _Interrupt:
    """A handler that raises KeyboardInterrupt at the first Ctrl-C and ends the process at the
    second."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            _end_now(signal.SIGINT)
        self.came = True
        signal.default_int_handler(number, frame)


def _end_when_told(times: int) -> None:
    told = os.read(times, 1)
    if told:  # else the clock is gone
        _end_now(told[0])


def _end_now(number: int) -> NoReturn:
    """End this process, with 130 after Ctrl-C, without waiting for anybody."""
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


# The clock ----------------------------------------------------------------------------------------


def _be_the_clock(
    command: int, signals: int, time_is_up: int, *, unused: tuple[int, ...]
) -> NoReturn:
    """Watch the process `command`, our parent, until it ends; end it PATIENCE_S after the first
    signal that it hears."""
    try:
        for shared in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
        ):  # they reach the whole group; we end when the command does
            signal.signal(shared, signal.SIG_IGN)
        for descriptor in (0, 1, *unused):
            with suppress(OSError):
                os.close(descriptor)
        process = _Process(command)
        number = _first_signal(process, signals)
        if number and not process.ends_within(PATIENCE_S):
            with suppress(OSError):
                os.write(time_is_up, bytes((number,)))
            if not process.ends_within(LAST_S):
                with suppress(OSError):
                    os.write(2, _last_words(number))
                process.kill()
    finally:
        os._exit(0)


def _first_signal(process: _Process, signals: int) -> int:
    """The first signal that asks the command to end; 0 when it has ended without one."""
    while process.is_there():
        ready, _, _ = select.select(
            [signals, *process.descriptors], [], [], None if process.descriptors else LOOK_S
        )
        if signals in ready:
            heard = os.read(signals, 512)
            if not heard:
                return 0
            asking = [number for number in heard if number in (signal.SIGINT, signal.SIGTERM)]
            if asking:
                return asking[0]
    return 0


class _Process:
    """The parent of this process, by a descriptor that tells its end where the system has such."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.descriptors: list[int] = []
        if sys.platform == "linux":
            with suppress(OSError):
                self.descriptors = [os.pidfd_open(number)]

    def is_there(self) -> bool:
        """Whether it has not ended."""
        if self.descriptors and select.select(self.descriptors, [], [], 0)[0]:
            return False
        return os.getppid() == self._number

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end, so long at most."""
        deadline = time.monotonic() + seconds
        while self.is_there():
            if time.monotonic() > deadline:
                return False
            time.sleep(STEP_S)
        return True

    def kill(self) -> None:
        """End it if it is still our parent."""
        if os.getppid() == self._number:
            with suppress(OSError):
                os.kill(self._number, signal.SIGKILL)
