"""A damaged catalogue gives right answers or a refusal in one sentence."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featkit.errors import FeatkitError
from featkit.index import Index
from featkit.index.reclaiming import reclaim
from tests.featkit.index.conftest import unit_vectors
from tests.sentences import refused

COUNT = 60
VECTORS = unit_vectors(COUNT)


@pytest.fixture
def rich(tmp_path: Path, model: Path) -> Path:
    """A closed index whose catalogue has content of every kind."""
    with Index.create(tmp_path / "i", model=model) as index:
        index.add(
            [f"{i}.jpg" for i in range(COUNT)],
            VECTORS,
            widths=[640] * COUNT,
            thumbnails=[b"jpeg" * 80] * COUNT,
            metadata=[
                {"a": i, "b": "é" * i, "c": i % 2 == 0, "d": float("nan")} for i in range(COUNT)
            ],
        )
        index.remove(["3.jpg"])
    return tmp_path / "i"


@pytest.fixture
def compacted(rich: Path) -> Path:
    """The index `rich` after rows of removed items were reclaimed."""
    with Index.open(rich, writable=True) as index:
        index.remove([f"{i}.jpg" for i in range(20, 40)])
        reclaim(index)
    shutil.rmtree(rich / "approximate")  # it has only the builders' lock
    return rich


def damaged(data: bytes, seed: int) -> bytes:
    """Return bytes with some bits, bytes or ranges changed, copied or cut off.

    Half of the damage is near the schema and the settings."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        at = rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 16384))
        way = rng.randrange(5)
        if way == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            changed[at] = rng.randrange(256)
        elif way == 2:
            changed[at : at + rng.randrange(1, 200)] = rng.randbytes(rng.randrange(1, 200))
        elif way == 3:
            start = rng.randrange(len(changed))
            changed[at : at + 50] = changed[start : start + 50]
        else:
            del changed[max(100, at) :]
    return bytes(changed)


def use(path: Path, *, writable: bool, seen: Counter[str]) -> None:
    """Make every call once, and assert that searches return committed items and vectors."""
    with Index.open(path, writable=writable) as index:
        calls: list[Callable[[], object]] = [
            lambda: len(index),
            lambda: index.items(0, 100),
            lambda: index.item(5),
            lambda: index.item_by_key("7.jpg"),
            lambda: index.thumbnail(5),
            lambda: index.sample(5),
            lambda: index.search(item=9),
            lambda: index.id,
            lambda: np.testing.assert_array_equal(index.vector(8), VECTORS[8]),
        ]
        if writable:
            calls += [
                lambda: index.add(["new"], unit_vectors(1), metadata=[{"e": True}]),
                lambda: index.remove(["8.jpg"]),
            ]
        for call in calls:
            try:
                call()
            except FeatkitError as error:
                seen["refused"] += 1
                seen["lines"] += str(error).count("\n")
            else:
                seen["answered"] += 1


def try_damage(path: Path, num_cases: int) -> Counter[str]:
    files = {file: file.read_bytes() for file in path.iterdir()}
    seen: Counter[str] = Counter()
    for seed in range(num_cases):
        (path / "catalogue.sqlite").write_bytes(damaged(files[path / "catalogue.sqlite"], seed))
        try:
            use(path, writable=seed % 3 == 0, seen=seen)
        except FeatkitError as error:
            seen["refused"] += 1
            seen["lines"] += str(error).count("\n")
        shutil.rmtree(path)
        path.mkdir()
        for file, data in files.items():
            file.write_bytes(data)
    return seen


def test_damage_gives_right_answers_or_a_refusal(rich: Path) -> None:
    seen = try_damage(rich, 150)
    assert seen["lines"] == 0
    assert min(seen["answered"], seen["refused"]) > 20


def test_damage_of_a_compacted_index_is_met(compacted: Path) -> None:
    seen = try_damage(compacted, 150)
    assert seen["lines"] == 0
    assert min(seen["answered"], seen["refused"]) > 20


@pytest.mark.slow
def test_much_damage_gives_right_answers_or_a_refusal(rich: Path) -> None:
    assert try_damage(rich, 10_000)["lines"] == 0


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE items",
        "DROP TABLE settings",
        "DROP TABLE metadata_columns",
        "DELETE FROM settings",
        "DELETE FROM settings WHERE name = 'fingerprint'",
        "UPDATE settings SET value = 'x' WHERE name = 'width'",
        "UPDATE settings SET value = NULL WHERE name = 'width'",
        "UPDATE settings SET value = 'x' WHERE name = 'changes'",
        "UPDATE settings SET value = CAST(x'ff' AS TEXT) WHERE name = 'model_name'",
        "UPDATE items SET key = CAST(x'ff' AS TEXT) WHERE id = 7",
        "UPDATE items SET key = x'ff' WHERE id = 7",
        "UPDATE items SET a = x'ff' WHERE id = 7",
        "UPDATE items SET width = 'wide' WHERE id = 7",
        "UPDATE items SET id = -5, deleted = 1 WHERE id = 7",
        "UPDATE items SET vector_crc32 = 1 WHERE id = 0",
        "ALTER TABLE items DROP COLUMN source",
        "UPDATE metadata_columns SET column_name = x'00' WHERE name = 'a'",
        "UPDATE metadata_columns SET column_name = 'missing' WHERE name = 'a'",
    ],
)
def test_impossible_content_is_refused(rich: Path, statement: str) -> None:
    with sqlite3.connect(rich / "catalogue.sqlite") as connection:
        connection.execute(statement)
    connection.close()
    with refused(rich), Index.open(rich) as index:
        index.search(vectors=VECTORS, k=COUNT)
        index.items(0, 100)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE kept_rows",
        "UPDATE kept_rows SET name = 'x'",
        "UPDATE kept_rows SET bits = 7",
        "UPDATE kept_rows SET bits = 'x'",
        "DELETE FROM settings WHERE name = 'vectors'",
        "UPDATE settings SET value = 7 WHERE name = 'vectors'",
        "UPDATE settings SET value = replace(value, ': 60', ': 7000000') WHERE name = 'vectors'",
        "UPDATE settings SET value = replace(value, ': 39', ': 38') WHERE name = 'vectors'",
        "UPDATE settings SET value = replace(value, 'name', 'x') WHERE name = 'vectors'",
        "INSERT INTO items (id, key, folder, source) VALUES (25, '25.jpg', '', '')",
    ],
)
def test_impossible_rows_are_refused(compacted: Path, statement: str) -> None:
    with sqlite3.connect(compacted / "catalogue.sqlite") as connection:
        assert connection.execute(statement).rowcount != 0
    connection.close()
    with refused(compacted), Index.open(compacted) as index:
        index.search(vectors=VECTORS, k=COUNT)
        index.vector(25)
