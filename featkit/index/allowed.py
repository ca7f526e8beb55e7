"""The ids that match a filter, kept for one committed state of an index."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

MAX_BYTES = 64 * 2**20
MOST_FILTERS = 64  # their texts take memory as well


class AllowedIds:
    """Which of N ids match each of the filters used last, as (N,) bool. Thread-safe.

    The least recently used are dropped beyond `max_bytes`.
    """

    def __init__(self, num_rows: int, *, max_bytes: int = MAX_BYTES) -> None:
        self.num_rows = num_rows
        self._most = max(1, min(MOST_FILTERS, max_bytes // max(1, num_rows)))
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, where: str, find: Callable[[], list[int]]) -> np.ndarray:
        """Return which ids match a filter, read-only; find: returns them if they are not kept."""
        with self._lock:
            allowed = self._kept.get(where)
            if allowed is not None:
                self._kept.move_to_end(where)
                return allowed
        allowed = np.zeros(self.num_rows, bool)
        allowed[find()] = True
        allowed.setflags(write=False)
        with self._lock:
            self._kept[where] = allowed
            self._kept.move_to_end(where)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return allowed
