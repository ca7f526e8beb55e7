"""Failures of the server are 5xx in JSON, counted, and reported by /healthz.

No answer names a path of the server."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index, IndexState
from featkit.serve import service as service_module
from featkit.serve.app import make_app
from tests.featkit.serve.conftest import LIMITS, NUM_IMAGES, image, png
from tests.model_files import make_model_file

FILES = [("files", ("a.png", png(1)))]
ROUTES: dict[str, Callable[[TestClient], Any]] = {
    "/healthz": lambda client: client.get("/healthz"),
    "/v1/items": lambda client: client.get("/v1/items"),
    "/v1/sample": lambda client: client.get("/v1/sample"),
    "/v1/items/{id}": lambda client: client.get("/v1/items/0"),
    "/v1/items/{id}/neighbors": lambda client: client.get("/v1/items/0/neighbors"),
    "/v1/items/{id}/thumbnail": lambda client: client.get("/v1/items/0/thumbnail"),
    "/v1/search": lambda client: client.post("/v1/search", files=FILES),
}


@pytest.fixture
def served(copy: Path, embedder: Embedder) -> Iterator[TestClient]:
    """A client of the service over the copy, which gets a 500 for unhandled exceptions."""
    with Index.open(copy) as opened:
        app = make_app(opened, embedder, limits=LIMITS)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


def overwrite_catalogue(path: Path) -> None:
    (path / "catalogue.sqlite").write_bytes(b"x" * 40_000)


def halve_catalogue(path: Path) -> None:
    os.truncate(path / "catalogue.sqlite", 8192)


def remove_all(path: Path) -> None:
    shutil.rmtree(path)


def cut_vectors(path: Path) -> None:
    os.truncate(path / "vectors.f32", 5)


def damage_vectors(path: Path) -> None:
    (path / "vectors.f32").write_bytes(bytes((path / "vectors.f32").stat().st_size))


def remove_vectors(path: Path) -> None:
    (path / "vectors.f32").unlink()


def replace_by_another_model(path: Path) -> None:
    shutil.rmtree(path)
    other = make_model_file(path.with_name("other.onnx"), width=32, seed=3)
    with Index.create(path, model=other) as index:
        index.add(["new"], np.eye(1, 32, dtype=np.float32))


@pytest.mark.parametrize(
    "harm",
    [
        overwrite_catalogue,
        halve_catalogue,
        remove_all,
        cut_vectors,
        damage_vectors,
        remove_vectors,
        replace_by_another_model,
    ],
)
def test_a_damaged_index_is_503_and_names_no_path(
    copy: Path, served: TestClient, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert {call(served).status_code for call in ROUTES.values()} == {200}
    harm(copy)
    with caplog.at_level(logging.ERROR, "featkit.serve"):
        for route, call in ROUTES.items():
            answer = call(served)
            assert (route, answer.status_code) == (route, 503)
            assert "log has the reason" in answer.json()["detail"]
            assert str(copy) not in answer.text
            assert copy.name not in answer.text
    assert served.get("/healthz").json()["status"] == "index unreadable"
    assert str(copy) in caplog.text  # the log has the reason
    assert served.post("/v1/embed", files=FILES).status_code == 200
    metrics = served.get("/metrics").text
    for route in ROUTES:
        assert f'featkit_requests_total{{route="{route}",status="503"}}' in metrics


def test_a_restored_index_is_served_again(copy: Path, served: TestClient) -> None:
    shutil.copytree(copy, copy.with_name("backup"))
    served.get("/healthz")
    shutil.rmtree(copy)
    assert served.get("/healthz").status_code == 503
    shutil.copytree(copy.with_name("backup"), copy)
    assert served.get("/healthz").json()["num_items"] == NUM_IMAGES
    assert {call(served).status_code for call in ROUTES.values()} == {200}


def test_a_missing_item_is_404_in_the_same_shape(served: TestClient) -> None:
    for route in ("/v1/items/99", "/v1/items/99/neighbors", "/v1/items/99/thumbnail"):
        answer = served.get(route)
        assert (answer.status_code, answer.json()) == (
            404,
            {"detail": "There is no item 99.", "images": []},
        )
    for item_id in ("9" * 20, "-1", "x"):
        answer = served.get(f"/v1/items/{item_id}")
        assert (answer.status_code, answer.json()["detail"]) == (
            404,
            f"There is no item {item_id}.",
        )
    assert served.get("/nothing").json() == {"detail": "Not Found", "images": []}
    limit = served.get("/v1/items?limit=5000")
    assert limit.status_code == 422
    assert limit.json()["detail"].startswith(
        "limit is '5000': input should be less than or equal to 1000"
    )


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError("Unable to allocate 4.6 EiB"), 503, "does not have enough memory"),
        (RuntimeError("/secret/path: CUDA error"), 500, "The server failed"),
        (KeyError("embedding"), 500, "The server failed"),
        (EnvironmentProblem("/secret/path cannot be read."), 503, "The model cannot run now"),
        (
            InputError("/secret/path takes images of 224×224 only."),
            503,
            "The model cannot run now",
        ),
    ],
)
def test_a_failing_model_makes_the_service_unhealthy(
    copy: Path,
    model: Path,
    error: Exception,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedder = Embedder(model, limits=LIMITS.images)
    infer = embedder.infer

    def fail(*_arguments: Any, **_options: Any) -> np.ndarray:
        raise error

    with Index.open(copy) as opened:
        client = TestClient(
            make_app(opened, embedder, limits=LIMITS), raise_server_exceptions=False
        )
        monkeypatch.setattr(embedder, "infer", fail)
        for count in range(1, service_module.FAILURES_UNTIL_UNHEALTHY + 1):
            assert client.get("/healthz").status_code == 200
            answer = client.post("/v1/search" if count % 2 else "/v1/embed", files=FILES)
            assert (answer.status_code, answer.headers["content-type"]) == (
                status,
                "application/json",
            )
            assert words in answer.json()["detail"]
            assert "secret" not in answer.text
        health = client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "model failing")
        assert (
            f'featkit_requests_total{{route="/v1/search",status="{status}"}} 2.0'
            in client.get("/metrics").text
        )
        monkeypatch.setattr(embedder, "infer", infer)
        assert client.post("/v1/search", files=FILES).status_code == 200
        assert client.get("/healthz").json()["status"] == "ok"


def test_running_out_of_memory_is_503(served: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.Image.open", fail)
    answer = served.post("/v1/embed", files=FILES)
    assert answer.status_code == 503
    assert "does not have enough memory" in answer.json()["detail"]


def test_bad_images_leave_the_service_healthy(served: TestClient) -> None:
    for _ in range(5):
        assert (
            served.post("/v1/embed", files=[("files", ("a.png", b"no image"))]).status_code == 422
        )
    assert served.get("/healthz").status_code == 200


def test_limits_are_named_without_command_line_options(served: TestClient) -> None:
    long = LIMITS.images.max_bytes + 12_345
    answers = [
        served.post(
            "/v1/embed", files=[("files", ("long.png", png(1) + bytes(long - len(png(1)))))]
        ),
        served.post("/v1/search", files=[("files", ("large.png", large_png()))]),
    ]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert (
        f"long.png has {long:,} bytes, more than the limit of 60,000 for one image."
        == answers[0].json()["detail"]
    )
    assert "large.png has 90,000 pixels" in answers[1].json()["detail"]
    for answer in answers:
        assert "--" not in answer.text


def large_png() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (300, 300)).save(buffer, "PNG")
    return buffer.getvalue()


def test_two_reads_of_a_route_see_one_index(
    copy: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is replaced between reading the item and its neighbors."""
    other = copy.with_name("other.index")
    with Index.create(other, model=copy / "model.onnx") as index:
        index.add(
            [f"other/{i}" for i in range(5)], embedder.embed([image(100 + i) for i in range(5)])
        )
    item = IndexState.item
    replaced: list[Path] = []

    def then_replaced(self: IndexState, item_id: int) -> object:
        found = item(self, item_id)
        if not replaced:
            replaced.append(copy.rename(copy.with_name("away")))
            other.rename(copy)
        return found

    with (
        Index.open(copy) as opened,
        TestClient(make_app(opened, embedder, limits=LIMITS)) as client,
    ):
        monkeypatch.setattr(IndexState, "item", then_replaced)
        answer = client.get("/v1/items/3/neighbors?k=3").json()
    assert replaced
    assert {hit["key"].split("/")[0] for hit in [answer["item"], *answer["hits"]]} == {"other"}


def test_a_client_that_disconnects_is_not_a_failure(live_address: str) -> None:
    def half() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc'
        time.sleep(0.1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        httpx.post(
            f"{live_address}/v1/embed",
            content=half(),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
    for _ in range(50):
        metrics = httpx.get(f"{live_address}/metrics").text
        if '{route="/v1/embed"' in metrics:
            break
        time.sleep(0.05)
    assert 'featkit_requests_total{route="/v1/embed",status="400"} 1.0' in metrics
