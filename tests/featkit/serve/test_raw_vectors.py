"""Vectors as bytes are those of JSON, and only for who asks for them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient

from featkit.embedder import Embedder
from featkit.serve.raw_vectors import FINGERPRINT_HEADER, NPY, PLAIN, wanted
from tests.featkit.serve.conftest import files


def test_bytes_are_the_vectors_of_json(client: TestClient, embedder: Embedder) -> None:
    def embed(accept: str) -> bytes:
        answer = client.post("/v1/embed", files=files(1, 2, 3), headers={"Accept": accept})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == accept
        if accept != "application/json":
            assert answer.headers[FINGERPRINT_HEADER] == embedder.fingerprint
        return answer.content

    images = client.post("/v1/embed", files=files(1, 2, 3)).json()["images"]
    expected = np.array([image["vector"] for image in images], np.float32)
    plain = np.frombuffer(embed(PLAIN), "<f4").reshape(3, embedder.width)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(np.load(io.BytesIO(embed(NPY))), expected)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("text/html, application/json;q=0.9, application/x-npy", None),
        ("application/octet-stream", PLAIN),
        (" Application/X-NPY ;q=1, application/json", NPY),
        ("application/octet-stream, application/json;q=0.5", PLAIN),
        (",,;,application/*,application/x-npy", None),
    ],
)
def test_the_first_kind_that_fits_is_sent(accept: str, kind: str | None) -> None:
    assert wanted(accept) == kind


def test_refusals_stay_json(client: TestClient) -> None:
    bad = [("files", ("a.png", b"no image"))]
    answer = client.post("/v1/embed", files=bad, headers={"Accept": PLAIN})
    assert answer.status_code == 422
    assert answer.json()["images"][0]["name"] == "a.png"
