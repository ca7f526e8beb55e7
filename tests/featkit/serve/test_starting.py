"""The port answers while the index and the model are opened, and a failure ends the service."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.index import Index
from featkit.serve.app import make_app
from featkit.serve.running import address_of, bind, run
from featkit.serve.schemas import Refusal
from featkit.serve.starting import Starting
from tests.commands import run_featkit
from tests.featkit.serve.conftest import LIMITS, files


def test_it_lives_before_it_is_ready(index: Index, embedder: Embedder) -> None:
    starting = Starting(lambda: make_app(index, embedder, limits=LIMITS))
    with TestClient(starting) as client:
        for method, path in (("GET", "/readyz"), ("GET", "/healthz"), ("POST", "/v1/embed")):
            answer = client.request(method, path)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) >= 1
            assert "still starting" in Refusal.model_validate(answer.json()).detail
        assert client.get("/livez").json() == {"status": "starting"}
        starting.load()
        assert client.get("/livez").json() == {"status": "ok"}
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/embed", files=files(1)).status_code == 200


def test_a_real_server_answers_while_it_starts() -> None:
    may_go_on, answers = threading.Event(), []

    def make() -> FastAPI:
        assert may_go_on.wait(20)
        raise InputError("No such model.")

    listener = bind("127.0.0.1", 0)
    address = address_of(listener)

    def ask() -> None:
        answers.append(httpx.get(f"{address}/livez").status_code)
        answers.append(httpx.get(f"{address}/readyz").status_code)
        may_go_on.set()

    asking = threading.Thread(target=ask)
    with pytest.raises(InputError, match="No such model"):
        run(Starting(make), listener, on_ready=asking.start, beside=Starting(make).load)
    asking.join()
    assert answers == [200, 503]


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    said = run_featkit("serve", tmp_path / "missing.index", "--port", 0)
    assert said.code == 2
    assert "missing.index" in said.error
    assert "Traceback" not in said.error
