"""Measure how long steps take, and how much of it is spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from featkit_train.log import Log


class Meter:
    """Count a process's steps, their time, and the share of it spent without data."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.total_s = self.total_waiting_s = 0.0
        self.steps = 0
        self._started = time.perf_counter()
        self._since = (self.total_s, self.total_waiting_s, self.steps)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Begin a step; the time spent inside counts as waiting for data."""
        self._started = time.perf_counter()
        yield
        self.total_waiting_s += time.perf_counter() - self._started

    def finished_step(self) -> None:
        """End the step that `waiting` began."""
        self.total_s += time.perf_counter() - self._started
        self.steps += 1

    def read(self) -> Log:
        """Return rates since the last call."""
        total_s, waiting_s, steps = self._since
        spent = max(self.total_s - total_s, 1e-9)
        done = self.steps - steps
        self._since = (self.total_s, self.total_waiting_s, self.steps)
        return {
            "steps_per_s": done / spent,
            "images_per_s": done * self.batch_size / spent,
            "waiting_share": (self.total_waiting_s - waiting_s) / spent,
        }

    @property
    def images_per_s(self) -> float:
        """Images per second over all steps so far."""
        return self.steps * self.batch_size / max(self.total_s, 1e-9)

    @property
    def waiting_share(self) -> float:
        """Share of all step time spent waiting for data."""
        return self.total_waiting_s / max(self.total_s, 1e-9)
