"""The answers hold what the index holds, and their examples are valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from featkit.embedder import Embedder
from featkit.index import Hit, Index, Item
from featkit.serve import schemas
from featkit.serve.app import make_app
from tests.featkit.serve.conftest import LIMITS, image

ITEM = Item(id=3, key="a.jpg", source="s", width=None, height=5, metadata={"x": True, "y": 1})


def test_an_item_names_the_path_of_its_thumbnail() -> None:
    assert schemas.Item.of(ITEM).model_dump() == {
        "id": 3,
        "key": "a.jpg",
        "width": None,
        "height": 5,
        "metadata": {"x": True, "y": 1},
        "thumbnail": "/v1/items/3/thumbnail",
    }


def test_a_hit_is_an_item_with_a_score() -> None:
    for meaning in (None, "similar"):
        hit = schemas.Hit.of(Hit.of(ITEM, 0.5, meaning))
        wanted = {"score": 0.5, "meaning": meaning}
        assert hit.model_dump() == schemas.Item.of(ITEM).model_dump() | wanted


def test_values_of_metadata_keep_their_types() -> None:
    answer = schemas.Item.of(ITEM)
    parsed = schemas.Item.model_validate_json(answer.model_dump_json())
    assert [type(value) for value in parsed.metadata.values()] == [bool, int]


@pytest.mark.parametrize("schema", [schemas.Hit, schemas.EmbedAnswer, schemas.SearchAnswer])
def test_examples_are_valid_answers(schema: type[BaseModel]) -> None:
    for example in schema.model_json_schema()["examples"]:
        schema.model_validate(example, strict=True)


def test_nan_and_infinity_are_text(copy: Path, embedder: Embedder) -> None:
    metadata = [{"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": True, "e": 2.5}]
    with Index.open(copy, writable=True) as opened:
        (item_id,) = opened.add(["odd"], embedder.embed(image(90)), metadata=metadata)
        with TestClient(make_app(opened, embedder, limits=LIMITS)) as client:
            text = client.get(f"/v1/items/{item_id}").text

    def fail(constant: str) -> None:
        raise AssertionError(constant)

    item = json.loads(text, parse_constant=fail)
    assert item["metadata"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": True, "e": 2.5}
