"""What every engine offers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np


class Cancelled(Exception):
    """A call was ended early, by whoever holds its Cancel."""


class Cancel:
    """Ends running calls early, from another thread: a large model can be busy with one picture for seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, Callable[[], None]] = {}
        self.is_set = False

    def set(self) -> None:
        """Make running calls, and all that begin later, raise Cancelled."""
        with self._lock:
            self.is_set = True
            for end in self._running.values():
                end()

    @contextmanager
    def ends_by(self, end: Callable[[], None]) -> Iterator[None]:
        """Around one call, which `end()` makes return early. Raises Cancelled at once when it is set already."""
        with self._lock:
            if self.is_set:
                raise Cancelled
            self._running[id(end)] = end
        try:
            yield
        finally:
            with self._lock:
                del self._running[id(end)]


class Backend(Protocol):
    """A model file ready to run; safe to call from several threads."""

    @property
    def name(self) -> str:
        """What really runs, such as `onnxruntime CPU`."""
        ...

    @property
    def tokens_per_call(self) -> int:
        """Patches of all pictures of a call together from which on a larger batch is no faster."""
        ...

    def run(self, images: np.ndarray, *, cancel: Cancel | None = None) -> np.ndarray:
        """(N, H, W, 3) uint8 to unit vectors (N, D) float32. Cancelled when `cancel` was set meanwhile."""
        ...
