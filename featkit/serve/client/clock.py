"""Time and chance, which tests replace, and the deadline of a call."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import anyio


class Clock:
    """The machine's clocks, its sleep and its random numbers."""

    def monotonic(self) -> float:
        """Return seconds since some moment, which never jump."""
        return time.monotonic()

    def now(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def uniform(self, most: float) -> float:
        """Return a random number from 0 to `most`."""
        return random.uniform(0, most)

    def sleep(self, seconds: float) -> None:
        """Sleep in this thread."""
        time.sleep(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Sleep in this task."""
        await anyio.sleep(seconds)


@dataclass(frozen=True)
class Deadline:
    """When a call must have ended. until: in seconds of the monotonic clock; infinity for never.

    given_s: how long the call was allowed to take, for messages.
    """

    clock: Clock
    given_s: float
    until: float

    @classmethod
    def after(cls, clock: Clock, seconds: float | None) -> Deadline:
        """Return the deadline that many seconds from now; None for never."""
        given_s = math.inf if seconds is None else seconds
        return cls(clock, given_s, clock.monotonic() + given_s)

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self.until - self.clock.monotonic()
