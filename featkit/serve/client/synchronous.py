"""The client for programs without an event loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np

from featkit.images import ImageLike
from featkit.index import Refinement
from featkit.serve.client import calls
from featkit.serve.client.answers import Answer
from featkit.serve.client.attempts import FAILURES, Failure, Send, Wait, attempts
from featkit.serve.client.calls import NO_REFINEMENT, Call
from featkit.serve.client.clock import Deadline
from featkit.serve.client.core import Core
from featkit.serve.client.paging import Pages
from featkit.serve.schemas import Health, Hit, Item, ItemsAnswer

Result = TypeVar("Result")


class Client(Core[httpx.Client, httpx.BaseTransport]):
    """A client of one service. Thread-safe, as httpx's client is.

    address: such as http://127.0.0.1:8000. api_key: sent as a bearer token; by default that of the
    environment variable FEATKIT_API_KEY.

    timeout_s: for a connection, and for the next bytes of an answer. deadline_s: for a whole call
    with its waits and all its requests; each method takes another. Each request carries how much of
    it is left. Without one, a call may last as long as bytes arrive. The deadline bounds
    every single wait for the network and is checked between them in an answer's body; a server that
    stalls again and again can hold a call longer, but not one of `AsyncClient`.

    max_attempts: for one request, when the connection breaks or the service answers 503 or 429.

    images_per_request, bytes_per_request: more images than that are sent in several requests. The
    service's own limits are 64 images and 256 MiB.

    InputError, with the service's own message, if the service refuses a request.
    EnvironmentProblem, with the HTTP status and what to do, if the service cannot be reached or
    something else answers at its address.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self, *, deadline_s: float | None = None) -> Health:
        """Return what the service runs. EnvironmentProblem if it reports that it cannot answer.

        There are no retries: this is the present state.
        """
        return self._run(calls.health(), self._deadline(deadline_s))

    def embed(
        self, images: ImageLike | Iterable[ImageLike], *, deadline_s: float | None = None
    ) -> np.ndarray:
        """Return the unit vectors (n, D) float32 of one image or several.

        Takes what `Embedder.embed` takes. Files are read here, when their request is due, and sent
        as bytes; so a long list or a generator needs no more memory than one request.
        """
        deadline = self._deadline(deadline_s)
        requests = map(calls.embed, self._batches(images))
        return self._vectors([self._run(call, deadline) for call in requests])

    def search(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
        deadline_s: float | None = None,
    ) -> list[list[Hit]]:
        """Return the k nearest items of the index for each image, nearest first.

        images: as for `embed`. where, refine: as for `Index.search`.
        """
        deadline = self._deadline(deadline_s)
        requests = (calls.search(parts, k, where, refine) for parts in self._batches(images))
        return [*chain(*self._values([self._run(call, deadline) for call in requests]))]

    def neighbors(
        self,
        item_id: int,
        *,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
        deadline_s: float | None = None,
    ) -> list[Hit]:
        """Return the k items nearest to an item, itself first if it matches the filter."""
        return self._run(calls.neighbors(item_id, k, where, refine), self._deadline(deadline_s))

    def items(
        self,
        offset: int = 0,
        limit: int = 100,
        *,
        where: str | None = None,
        deadline_s: float | None = None,
    ) -> ItemsAnswer:
        """Return items in the order they were added, and how many match the filter in all."""
        return self._run(calls.items(offset, limit, where), self._deadline(deadline_s))

    def iter_items(
        self, *, where: str | None = None, deadline_s: float | None = None
    ) -> Iterator[Item]:
        """Yield all items in the order they were added, fetched page by page.

        Each item that stays comes once, even if others are added or removed meanwhile.
        deadline_s: for each page.
        """
        pages = Pages(self.address, where)
        while not pages.has_ended:
            yield from pages.take(self._run(pages.call(), self._deadline(deadline_s)))

    def thumbnail(self, item_id: int, *, deadline_s: float | None = None) -> bytes:
        """Return the JPEG bytes of an item's thumbnail."""
        return self._run(calls.thumbnail(item_id), self._deadline(deadline_s))

    def _open(self, transport: httpx.BaseTransport | None, options: dict[str, Any]) -> httpx.Client:
        return httpx.Client(transport=transport, **options)

    def _run(self, call: Call[Result], deadline: Deadline) -> Result:
        steps = attempts(call, self._policy, deadline)
        outcome: Answer | Failure | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(step, Wait):
                self._clock.sleep(step.seconds)
                outcome = None
            else:
                outcome = self._sent(step)

    def _sent(self, step: Send) -> Answer | Failure:
        try:
            with self._http.stream(
                step.method, step.route, timeout=step.timeout_s, **step.arguments
            ) as response:
                for piece in response.iter_bytes():
                    step.body.add(piece)
                return step.body.answer(response.status_code, response.headers)
        except FAILURES as error:
            return error
