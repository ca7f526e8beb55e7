"""Stop signals during training (Ctrl-C, and a cluster's): noticed at once, and obeyed between two
steps, when the state is consistent."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# SIGINT is Ctrl-C; torchrun and Slurm send SIGTERM before SIGKILL; a job lets Slurm send SIGUSR1
# before its time limit.
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []),  # not on Windows
)
GRACE_S = 20  # how long a data-loader worker outlives SIGTERM


class StopRequest:
    """Record one of SIGNALS as `asked` while the context is open.

    A second Ctrl-C interrupts at once, as usual. The other signals may arrive twice, from torchrun
    and from the cluster. Python delivers signals to the main thread only, so in other threads
    `asked` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def leave_signals_to_the_loop(_worker: int = 0) -> None:
    """Make a data-loader worker ignore stop signals, so that it outlives the step that still needs
    its batch.

    SIGTERM ends it after GRACE_S: Python also sends it to end leftover processes, and waits for
    them.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # torch's handlers print to stderr; the loop reports the death of a worker itself.
    for name in ("SIGBUS", "SIGSEGV", "SIGFPE"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if not hasattr(signal, "SIGALRM"):  # Windows ends processes without a signal
        return
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(0))
    signal.signal(signal.SIGTERM, lambda _number, _frame: _exit_in(GRACE_S))


def _exit_in(seconds: int) -> None:
    pending = signal.alarm(seconds)
    if pending:  # a second SIGTERM must not extend the time
        signal.alarm(pending)
