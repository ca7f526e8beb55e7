"""The asynchronous client: with the service on a real port, and many requests at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio.lowlevel
import httpx
import numpy as np
import pytest

from featkit import AsyncClient, Client
from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.index import Index
from featkit.serve.client import paging
from tests.featkit.serve.client.scripts import ADDRESS, Script, answer, embedded
from tests.featkit.serve.conftest import NUM_IMAGES, png
from tests.featkit.serve.conftest import image as drawn
from tests.sentences import refused


def test_both_clients_answer_the_same(
    live_address: str, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE_SIZE", 5)
    seeds = [*range(10)]
    options: dict[str, Any] = {"images_per_request": 3, "bytes_per_request": 20_000}
    where = "key like '%1%'"

    async def ask() -> list[Any]:
        async with AsyncClient(live_address, **options) as client:
            return [
                await client.embed(png(seed) for seed in seeds),
                await client.search([png(seed) for seed in seeds], k=2, where=where),
                await client.neighbors(3, k=2),
                await client.items(2, 3),
                [item async for item in client.iter_items()],
                [item async for item in client.iter_items(where=where)],
                await client.thumbnail(3),
                await client.health(),
            ]

    vectors, *others = anyio.run(ask)
    with Client(live_address, **options) as client:
        np.testing.assert_array_equal(vectors, client.embed(png(seed) for seed in seeds))
        assert others == [
            client.search([png(seed) for seed in seeds], k=2, where=where),
            client.neighbors(3, k=2),
            client.items(2, 3),
            [*client.iter_items()],
            [*client.iter_items(where=where)],
            client.thumbnail(3),
            client.health(),
        ]
    np.testing.assert_allclose(vectors, embedder.embed([drawn(seed) for seed in seeds]), atol=1e-6)
    all_items, some_items = others[3], others[4]
    assert [item.key for item in all_items] == [f"blocks/{seed}.png" for seed in range(NUM_IMAGES)]
    assert [item.key for item in some_items] == [f"blocks/{seed}.png" for seed in (1, 10, 11)]


def test_items_removed_while_they_are_listed_leave_no_gap(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE_SIZE", 3)
    ids = [item.id for item in index.items()]

    def page(request: httpx.Request) -> httpx.Response:
        start, count = (int(request.url.params[name]) for name in ("offset", "limit"))
        fields = {"width": 1, "height": 1, "metadata": {}, "thumbnail": "/t"}
        found = [{"id": i, "key": str(i), **fields} for i in ids[start : start + count]]
        return httpx.Response(200, json={"total": len(ids), "items": found})

    with Client(ADDRESS, transport=httpx.MockTransport(page)) as client:
        listed = []
        for item in client.iter_items():
            listed.append(item.id)
            if len(listed) == 5:
                del ids[:4]
    assert listed == [*range(NUM_IMAGES)]


CALLS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "health": lambda client: client.health(),
    "embed": lambda client: client.embed([b"x"]),
    "search": lambda client: client.search([b"x"]),
    "neighbors": lambda client: client.neighbors(3),
    "items": lambda client: client.items(),
    "thumbnail": lambda client: client.thumbnail(3),
}


def error_of(call: Callable[[AsyncClient], Awaitable[object]], client: AsyncClient) -> FeatkitError:
    """Return the error that a call raises."""

    async def ask() -> FeatkitError:
        async with client:
            with pytest.raises(FeatkitError) as caught:
                await call(client)
        return caught.value

    return anyio.run(ask)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (answer(200, "<!DOCTYPE html><title>Sign in</title>"), "check the address"),
        (answer(200, '{"status": "ok", "mod'), "check the address"),
        (answer(204, ""), "check the address"),
        (answer(302, location="https://login.example"), "redirects to https://login.example"),
        (answer(502, "<html>"), "a proxy cannot reach"),
        (answer(503, retry_after="soon"), "answered 503"),
        (httpx.ReadTimeout("slow"), "(ReadTimeout)"),
        (httpx.ConnectError("refused"), "does not answer (refused)"),
        (httpx.DecodingError("not gzip"), "does not answer (not gzip)"),
    ],
)
def test_foreign_answers_are_reported(
    call: str, outcome: httpx.Response | Exception, words: str
) -> None:
    error = error_of(CALLS[call], Script(outcome).async_client())
    assert type(error) is EnvironmentProblem
    assert str(error).startswith(ADDRESS)
    assert words in str(error)


def test_the_services_refusal_is_an_input_error(live_address: str) -> None:
    error = error_of(lambda client: client.embed([b"text"]), AsyncClient(live_address))
    assert type(error) is InputError
    assert "image 0 is not an image" in str(error)


def test_busy_service_is_asked_again() -> None:
    script = Script(answer(503), answer(429, retry_after="3"), answer())

    async def ask() -> None:
        async with script.async_client(deadline_s=9) as client:
            assert (await client.items()).total == 3

    anyio.run(ask)
    assert script.clock.slept == [0.5, 4.0]
    left = [request.headers["x-request-deadline-ms"] for request in script.requests]
    assert left == ["9000", "8500", "4500"]


def test_a_silent_service_ends_with_the_deadline() -> None:
    async def never(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    client = AsyncClient(ADDRESS, transport=httpx.MockTransport(never))
    error = error_of(lambda client: client.health(deadline_s=0.05), client)
    assert "within the deadline of 0.05 s" in str(error)


class Crossing:
    """An address that embeds, and answers later requests before earlier ones.

    It begins to answer when `concurrency` requests run.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.num_running = self.most_running = self.num_answered = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        while self.most_running < self.concurrency:
            await anyio.lowlevel.checkpoint()
        number = int(request.content.partition(b"angle=")[2][:2])
        for _ in range(3 if number % 2 else 30):
            await anyio.lowlevel.checkpoint()
        self.num_running -= 1
        self.num_answered += 1
        return embedded([[np.cos(number / 20), np.sin(number / 20)]])


def angle(number: int) -> bytes:
    return f"angle={number:02}".encode()


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_order_is_kept_and_concurrency_is_bounded(concurrency: int) -> None:
    server = Crossing(concurrency)
    read: list[int] = []

    def images() -> Iterator[bytes]:
        for number in range(20):
            read.append(number)
            # requests under way, the next one, and the image that ends it
            assert number <= server.num_answered + concurrency + 1
            yield angle(number)

    async def ask() -> np.ndarray:
        transport = httpx.MockTransport(server)
        async with AsyncClient(ADDRESS, images_per_request=1, transport=transport) as client:
            return await client.embed(images(), concurrency=concurrency)

    vectors = anyio.run(ask)
    np.testing.assert_allclose(np.arctan2(*vectors.T[::-1]), np.arange(20) / 20, atol=1e-6)
    assert server.most_running == concurrency
    assert len(read) == 20


def test_one_failure_ends_the_other_requests() -> None:
    ended: list[str] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        if b"angle=01" in request.content:
            return answer(422, '{"detail": "image 1 is damaged.", "images": []}')
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("canceled")
        raise AssertionError

    client = AsyncClient(ADDRESS, images_per_request=1, transport=httpx.MockTransport(serve))
    error = error_of(lambda client: client.embed(map(angle, range(9)), concurrency=3), client)
    assert type(error) is InputError
    assert str(error) == "image 1 is damaged."
    assert len(ended) in (1, 2)


def test_errors_of_a_generator_pass_unchanged() -> None:
    def images() -> Iterator[bytes]:
        yield angle(0)
        raise KeyError("mine")

    async def ask() -> None:
        client = AsyncClient(
            ADDRESS, images_per_request=1, transport=httpx.MockTransport(Crossing(1))
        )
        with pytest.raises(KeyError, match="mine"):
            await client.embed(images())

    anyio.run(ask)


def test_what_is_not_an_image_is_not_sent() -> None:
    script = Script(AssertionError("it was sent"))
    error = error_of(lambda client: client.embed([b"x", 7]), script.async_client())  # type: ignore[list-item]
    assert "image 1 is an int" in str(error)
    error = error_of(lambda client: client.embed([]), script.async_client())
    assert "No images were given" in str(error)
    with refused("concurrency is 0; it must be at least 1"):
        raise error_of(lambda client: client.embed([b"x"], concurrency=0), script.async_client())


def test_a_canceled_call_ends() -> None:
    async def never(_request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    async def ask() -> bool:
        client = AsyncClient(ADDRESS, transport=httpx.MockTransport(never))
        with anyio.move_on_after(0.05) as scope:
            await client.embed([b"x"])
        return scope.cancelled_caught

    assert anyio.run(ask)
