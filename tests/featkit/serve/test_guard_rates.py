"""A key sends no more images and bytes than its rates allow."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.app import make_app
from featkit.serve.guard import HELD_KEY, KeyGuard, charge_images
from featkit.serve.keyring import Keyring
from featkit.serve.keys import create_key
from featkit.serve.rates import Rate
from tests.featkit.serve.conftest import files
from tests.featkit.serve.guarded import bearer, echo_app
from tests.serving import serving


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_images_past_the_rate_are_refused(file: Path) -> None:
    token = create_key(file, "web", image_rate=Rate(per_second=0.01, burst=5))
    keyring = Keyring(file)
    with TestClient(echo_app(keyring, num_images=2)) as client:
        answers = [client.post("/v1/embed", headers=bearer(token)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 0 < int(answers[2].headers["retry-after"]) <= 100
        assert "This key may send 0.01 images per second" in answers[2].json()["detail"]
        other = create_key(file, "unlimited")
        assert client.post("/v1/embed", headers=bearer(other)).status_code == 200
    with TestClient(echo_app(keyring, num_images=6)) as client:
        answer = client.post("/v1/embed", headers=bearer(token))
        assert (answer.status_code, "retry-after" in answer.headers) == (413, False)
        assert "This key may send 5 images at once" in answer.json()["detail"]


def test_the_routes_charge_for_their_images(index: Index, embedder: Embedder, file: Path) -> None:
    token = create_key(file, "web", image_rate=Rate(per_second=0.01, burst=5))
    with TestClient(make_app(index, embedder, keyring=Keyring(file))) as client:
        statuses = [
            client.post(
                f"/v1/{route}", files=files(*range(count)), headers=bearer(token)
            ).status_code
            for route, count in (("embed", 3), ("search", 3), ("search", 2), ("embed", 1))
        ]
    assert statuses == [200, 429, 200, 429]


def test_without_keys_images_cost_nothing() -> None:
    app = FastAPI()

    @app.get("/")
    def charge(request: Request) -> None:
        charge_images(request, 10**9)

    assert TestClient(app).get("/").status_code == 200


def test_bytes_are_charged_before_the_body_is_read(file: Path) -> None:
    token = create_key(file, "web", byte_rate=Rate(per_second=1, burst=1000))
    with TestClient(echo_app(Keyring(file))) as client:
        answers = [
            client.post("/v1/embed", content=b"x" * size, headers=bearer(token))
            for size in (1001, 600, 600, 300)
        ]
    assert [answer.status_code for answer in answers] == [413, 200, 429, 200]
    assert 0 < int(answers[2].headers["retry-after"]) <= 200


@pytest.mark.parametrize("path", ["/v1/embed", "/v1/search"])
def test_bytes_of_chunks_are_charged_as_they_arrive(file: Path, path: str) -> None:
    token = create_key(file, "web", byte_rate=Rate(per_second=1, burst=1_000_000))

    def pieces() -> Iterator[bytes]:
        yield b'{"a": "'
        for _ in range(100):
            yield b"x" * 20_000
        yield b'"}'

    headers = {**bearer(token), "Content-Type": "application/json"}
    with serving(echo_app(Keyring(file))) as address, httpx.Client() as client:
        assert client.post(f"{address}{path}", content=b"{}", headers=headers).status_code == 200
        answer = client.post(f"{address}{path}", content=pieces(), headers=headers)
    assert answer.status_code == 429
    assert "bytes per second" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("route", "kind"),
    [
        ("embed", "multipart/form-data; boundary=x"),
        ("search", "multipart/form-data; boundary=x"),
        ("embeddings", "application/json"),
    ],
)
def test_chunks_past_the_rate_end_each_route(
    index: Index, embedder: Embedder, file: Path, route: str, kind: str
) -> None:
    token = create_key(file, "web", byte_rate=Rate(per_second=1, burst=1_000_000))
    head = b"--x\r\nContent-Disposition: form-data; name=files; filename=a\r\n\r\n"

    def pieces() -> Iterator[bytes]:
        yield head if "multipart" in kind else b'{"input": "'
        for _ in range(100):
            yield b"x" * 20_000

    headers = {**bearer(token), "Content-Type": kind}
    with serving(make_app(index, embedder, keyring=Keyring(file))) as address:
        answer = httpx.post(f"{address}/v1/{route}", content=pieces(), headers=headers)
    assert (answer.status_code, "bytes per second" in answer.text) == (429, True)
    assert int(answer.headers["retry-after"]) > 0


def test_a_wrong_content_length_is_charged_by_the_bytes(file: Path) -> None:
    token = create_key(file, "web", byte_rate=Rate(per_second=0.001, burst=1000)).encode()
    keyring = Keyring(file)
    charged: list[float] = []

    async def app(scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        await receive()
        bucket = scope[HELD_KEY].byte_bucket
        charged.append(next(n for n in range(1001) if bucket.take(1000 - n) == 0))

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 200, "more_body": True}

    async def send(_: Message) -> None:
        raise AssertionError("the guard has answered")

    for lengths in ([], [b"-5"], [b"9" * 19], [b"10", b"900"], [b"150"], [b"400"]):
        keyring = Keyring(file)
        headers = [(b"x-api-key", token), *((b"content-length", length) for length in lengths)]
        scope = {"type": "http", "method": "GET", "path": "/v1/items", "headers": headers}
        asyncio.run(KeyGuard(app, keyring)(scope, receive, send))
    assert charged == [400] * 6


def test_eight_clients_of_a_key_share_its_rate(file: Path) -> None:
    rate = Rate(per_second=20, burst=10)
    token = create_key(file, "web", image_rate=rate)
    statuses: list[int] = []
    with serving(echo_app(Keyring(file), num_images=1)) as address:
        started = time.monotonic()

        def ask() -> None:
            with httpx.Client(headers=bearer(token)) as client:
                for _ in range(15):
                    statuses.append(client.post(f"{address}/v1/embed").status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted = time.monotonic() - started
    assert len(statuses) == 120
    assert {*statuses} <= {200, 429}
    assert rate.burst <= statuses.count(200) <= rate.burst + rate.per_second * lasted
