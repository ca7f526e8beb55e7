"""Ctrl-C while training, and the signals of a cluster: heard at once, obeyed between two steps,
where the state is whole."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# Ctrl-C; what torchrun, Slurm and others send ahead of SIGKILL; what a job asks Slurm to send ahead
# of its time limit.
GRACE_S = 20  # that a worker goes on after SIGTERM
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Around the steps of a run, `asked` says whether one of SIGNALS came. A second Ctrl-C
    interrupts as it always does.

    The others may come twice, from torchrun and from the cluster. Outside the main thread, which
    alone hears signals, it is never asked.
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
    """For processes that serve the loop: signals reach them too, who would be gone before the step
    that needs them is done.

    SIGTERM ends them GRACE_S later: it is also how Python ends what a process leaves behind, and it
    waits until that is gone.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # torch would print to stderr; the loop says what happened
    for number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(0))
    signal.signal(signal.SIGTERM, lambda _number, _frame: _be_gone_in(GRACE_S))


def _be_gone_in(seconds: int) -> None:
    already = signal.alarm(seconds)
    if already:
        signal.alarm(already)
