"""The client for programs with an event loop, asyncio's or trio's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from itertools import chain
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import httpx
import numpy as np

from featkit.images import ImageLike
from featkit.index import Refinement
from featkit.serve.client import calls
from featkit.serve.client.answers import Answer
from featkit.serve.client.attempts import FAILURES, Failure, Send, Wait, attempts
from featkit.serve.client.calls import NO_REFINEMENT, Call
from featkit.serve.client.clock import Deadline
from featkit.serve.client.core import Core, at_least_one
from featkit.serve.client.paging import Pages
from featkit.serve.client.parts import Part
from featkit.serve.schemas import Health, Hit, Item, ItemsAnswer

Result = TypeVar("Result")
CONCURRENCY = 4


class AsyncClient(Core[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """A client of one service whose methods are coroutines. See `Client` for its options.

    `embed` and `search` send up to `concurrency` requests of a long list at the same time. Lists
    and generators of images are read in worker threads, so that files do not block the event loop.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def health(self, *, deadline_s: float | None = None) -> Health:
        """Return what the service runs. EnvironmentProblem if it reports that it cannot answer.

        There are no retries: this is the present state.
        """
        return await self._run(calls.health(), self._deadline(deadline_s))

    async def embed(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        concurrency: int = CONCURRENCY,
        deadline_s: float | None = None,
    ) -> np.ndarray:
        """Return the unit vectors (n, D) float32 of one image or several, in their order.

        Takes what `Embedder.embed` takes. Files are read here, when their request is due, and sent
        as bytes; so a long list needs no more memory than `concurrency` requests and the next.
        """
        answers = await self._run_each(calls.embed, images, concurrency, deadline_s)
        return self._vectors(answers)

    async def search(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
        concurrency: int = CONCURRENCY,
        deadline_s: float | None = None,
    ) -> list[list[Hit]]:
        """Return the k nearest items of the index for each image, nearest first.

        images: as for `embed`. where, refine: as for `Index.search`.
        """
        answers = await self._run_each(
            lambda parts: calls.search(parts, k, where, refine), images, concurrency, deadline_s
        )
        return [*chain(*self._values(answers))]

    async def neighbors(
        self,
        item_id: int,
        *,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
        deadline_s: float | None = None,
    ) -> list[Hit]:
        """Return the k items nearest to an item, itself first if it matches the filter."""
        call = calls.neighbors(item_id, k, where, refine)
        return await self._run(call, self._deadline(deadline_s))

    async def items(
        self,
        offset: int = 0,
        limit: int = 100,
        *,
        where: str | None = None,
        deadline_s: float | None = None,
    ) -> ItemsAnswer:
        """Return items in the order they were added, and how many match the filter in all."""
        return await self._run(calls.items(offset, limit, where), self._deadline(deadline_s))

    async def iter_items(
        self, *, where: str | None = None, deadline_s: float | None = None
    ) -> AsyncIterator[Item]:
        """Yield all items in the order they were added, fetched page by page.

        Each item that stays comes once, even if others are added or removed meanwhile.
        deadline_s: for each page.
        """
        pages = Pages(self.address, where)
        while not pages.has_ended:
            for item in pages.take(await self._run(pages.call(), self._deadline(deadline_s))):
                yield item

    async def thumbnail(self, item_id: int, *, deadline_s: float | None = None) -> bytes:
        """Return the JPEG bytes of an item's thumbnail."""
        return await self._run(calls.thumbnail(item_id), self._deadline(deadline_s))

    def _open(
        self, transport: httpx.AsyncBaseTransport | None, options: dict[str, Any]
    ) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=transport, **options)

    async def _run_each(
        self,
        call_of: Callable[[list[Part]], Call[Result]],
        images: ImageLike | Iterable[ImageLike],
        concurrency: int,
        deadline_s: float | None,
    ) -> list[Result]:
        """Return the results of the calls with all batches of images, in their order.

        The first failure ends the requests that are under way.
        """
        deadline = self._deadline(deadline_s)
        batches = self._batches(images)
        slots = anyio.Semaphore(at_least_one(concurrency, "concurrency"))
        results: dict[int, Result] = {}
        failures: list[Exception] = []

        async def run(index: int, call: Call[Result]) -> None:
            try:
                results[index] = await self._run(call, deadline)
            except Exception as error:
                fail(error)
            finally:
                slots.release()

        def fail(error: Exception) -> None:
            failures.append(error)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            try:
                index = 0
                while True:
                    await slots.acquire()
                    parts = await anyio.to_thread.run_sync(next, batches, None)
                    if parts is None:
                        break
                    group.start_soon(run, index, call_of(parts))
                    index += 1
            except Exception as error:
                fail(error)
        if failures:
            # the group would have wrapped it into an ExceptionGroup
            raise failures[0]
        return [results[index] for index in range(len(results))]

    async def _run(self, call: Call[Result], deadline: Deadline) -> Result:
        steps = attempts(call, self._policy, deadline)
        outcome: Answer | Failure | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(step, Wait):
                await self._clock.sleep_async(step.seconds)
                outcome = None
            else:
                outcome = await self._sent(step)

    async def _sent(self, step: Send) -> Answer | Failure:
        try:
            with anyio.fail_after(step.left_s):
                async with self._http.stream(
                    step.method, step.route, timeout=step.timeout_s, **step.arguments
                ) as response:
                    async for piece in response.aiter_bytes():
                        step.body.add(piece)
                    return step.body.answer(response.status_code, response.headers)
        except FAILURES as error:
            return error
