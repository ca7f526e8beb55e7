"""Requests are counted, and counting hides nothing from a route."""

from __future__ import annotations

import threading

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from featkit.serve.metrics import add_metrics
from tests.serving import serving


def test_metrics_count_by_route_and_status(client: TestClient) -> None:
    client.get("/v1/items/1")
    client.get("/v1/items/2")
    client.get("/v1/items/99")
    text = client.get("/metrics").text
    assert 'featkit_requests_total{route="/v1/items/{id}",status="200"} 2.0' in text
    assert 'featkit_requests_total{route="/v1/items/{id}",status="404"} 1.0' in text


@pytest.mark.parametrize("counted", [False, True])
def test_a_route_notices_that_its_client_left(counted: bool) -> None:
    app = FastAPI()
    heard = threading.Event()

    @app.post("/wait")
    async def wait(request: Request) -> None:
        await request.body()
        for _ in range(100):
            await anyio.sleep(0.05)
            if await request.is_disconnected():
                heard.set()
                return

    if counted:
        add_metrics(app)
    with serving(app) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/wait", content=b"abc", timeout=0.2)
        assert heard.wait(4)
