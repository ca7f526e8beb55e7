"""A clock that only moves when somebody sleeps, and addresses that answer by a script."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import anyio.lowlevel
import httpx

from featkit.serve.client import AsyncClient, Client
from featkit.serve.client.clock import Clock

ADDRESS = "http://photos.example"
HEALTH = '{"status": "ok", "model": "m", "fingerprint": "f", "backend": "b", "num_items": 3}'
NO_ITEMS = '{"total": 3, "items": []}'


class FakeClock(Clock):
    """A clock that moves by sleeping. fraction: of the longest jitter, which is always drawn."""

    def __init__(self, fraction: float = 1.0) -> None:
        self.seconds, self.fraction = 1000.0, fraction
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> float:
        return 1_700_000_000 + self.seconds

    def uniform(self, most: float) -> float:
        return most * self.fraction

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)
        await anyio.lowlevel.checkpoint()


class Script:
    """Outcomes of the requests to an address, one after the other; the last repeats."""

    def __init__(self, *outcomes: httpx.Response | Exception) -> None:
        self.outcomes = [*outcomes]
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.clock = FakeClock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.bodies.append(request.content)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def client(self, **options: Any) -> Client:
        """Return a client whose address this is."""
        options = {"transport": httpx.MockTransport(self), "clock": self.clock, **options}
        return Client(ADDRESS, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """Return an asynchronous client whose address this is."""
        options = {"transport": httpx.MockTransport(self), "clock": self.clock, **options}
        return AsyncClient(ADDRESS, **options)


def answer(status: int = 200, body: str | bytes = NO_ITEMS, **headers: str) -> httpx.Response:
    """Return an answer; underscores in the names of headers stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=body, headers=named)


def embedded(vectors: Iterable[Iterable[float]], *, fingerprint: str = "f") -> httpx.Response:
    """Return the service's answer with these vectors."""
    rows = [[*row] for row in vectors]
    images = [{"name": "a", "height": 1, "width": 1, "vector": row} for row in rows]
    content = {"model": "m", "fingerprint": fingerprint, "width": len(rows[0]), "images": images}
    return httpx.Response(200, json=content)
