"""The OpenAPI schema of a service with keys says what the guard does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.app import make_app
from featkit.serve.guard import PROBES, scope_for
from featkit.serve.keyring import Keyring
from featkit.serve.keys import create_key
from featkit.serve.openai_errors import OpenAIRefusal
from featkit.serve.schemas import Refusal
from tests.featkit.serve.guarded import bearer

SHAPES: dict[str, type[BaseModel]] = {"Refusal": Refusal, "OpenAIRefusal": OpenAIRefusal}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_each_refusal_is_described_as_it_is(index: Index, embedder: Embedder, file: Path) -> None:
    token, powerless = create_key(file, "web"), create_key(file, "admin", scopes=("admin",))
    with TestClient(make_app(index, embedder, keyring=Keyring(file))) as client:
        spec: dict[str, Any] = client.get("/openapi.json", headers=bearer(token)).json()
        schemes = spec["components"]["securitySchemes"]
        assert (schemes["bearer"]["scheme"], schemes["header"]["name"]) == ("bearer", "X-Api-Key")
        for path, methods in spec["paths"].items():
            for method, route in methods.items():
                called = path.replace("{id}", "1")
                if path in PROBES:
                    assert "security" not in route
                    assert client.request(method, called).status_code != 401
                    continue
                assert route["security"] == [{"bearer": []}, {"header": []}]
                assert (
                    f"scope {scope_for(method.upper(), path)}."
                    in (route["responses"]["403"]["description"])
                )
                for headers, status in (({}, "401"), (bearer(powerless), "403")):
                    answer = client.request(method, called, headers=headers)
                    assert str(answer.status_code) == status
                    content = route["responses"][status]["content"]["application/json"]
                    name = content["schema"]["$ref"].rsplit("/", 1)[1]
                    assert name in spec["components"]["schemas"]
                    SHAPES[name].model_validate(answer.json())


def test_without_keys_the_schema_has_none(client: TestClient) -> None:
    spec = client.get("/openapi.json").json()
    assert "securitySchemes" not in spec["components"]
    assert all(
        "security" not in route for methods in spec["paths"].values() for route in methods.values()
    )
