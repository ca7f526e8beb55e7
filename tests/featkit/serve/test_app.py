"""The app has every route, describes it, and loads nothing from elsewhere."""

from __future__ import annotations

import json

from fastapi.testclient import TestClient

from featkit.embedder import Embedder
from featkit.serve.app import make_app
from tests.featkit.serve.conftest import files


def test_without_an_index_only_embedding_is_offered(embedder: Embedder) -> None:
    with TestClient(make_app(None, embedder)) as client:
        assert client.get("/healthz").json()["num_items"] is None
        assert client.post("/v1/embed", files=files(1)).status_code == 200
        assert client.post("/v1/search", files=files(1)).status_code == 404


def test_openapi_describes_every_route(
    client: TestClient,
) -> None:
    spec = client.get("/openapi.json").json()
    assert {*spec["paths"]} == {
        "/healthz",
        "/livez",
        "/readyz",
        "/v1/embed",
        "/v1/embeddings",
        "/v1/search",
        "/v1/items",
        "/v1/sample",
        "/v1/items/{id}",
        "/v1/items/{id}/neighbors",
        "/v1/items/{id}/thumbnail",
    }
    body = spec["paths"]["/v1/search"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert {*body["properties"]} == {
        "files",
        "k",
        "where",
        "min_score",
        "expand",
        "rerank",
        "diversity",
    }
    assert "examples" in json.dumps(spec["components"]["schemas"]["SearchAnswer"])
    assert [client.get(page).status_code for page in ("/docs", "/redoc")] == [404, 404]
