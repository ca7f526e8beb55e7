"""Token buckets: how much a key may send in a second, and at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Rate(BaseModel):
    """A limit: `per_second` units in the long run, and `burst` units at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    burst: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class TokenBucket:
    """A bucket of tokens that refills at a rate. Thread-safe.

    It starts full, with `rate.burst` tokens. In any t seconds, it gives out at most
    burst + per_second · t tokens.

        tokens = min(burst, tokens + per_second * (now - last))
        if amount <= tokens: tokens -= amount
    """

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens, self._last = rate.burst, clock()

    def take(self, amount: float) -> float:
        """Take `amount` tokens and return 0, or take nothing and return the seconds to wait.

        Returns infinity if the bucket never holds that many.
        """
        if amount > self.rate.burst:
            return math.inf
        with self._lock:
            now = self._clock()
            refill = self.rate.per_second * max(0.0, now - self._last)
            self._tokens, self._last = min(self.rate.burst, self._tokens + refill), now
            if amount > self._tokens:
                return (amount - self._tokens) / self.rate.per_second
            self._tokens -= amount
            return 0.0
