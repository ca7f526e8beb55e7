"""Indexes of format 1, which kept thumbnails with the items and had no folders and times."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from featkit.index import Index
from featkit.index.reclaiming import reclaim
from tests.featkit.index.conftest import unit_vectors

KEYS = ["a/b/1.jpg", "a/2.jpg", "3.jpg"]
METADATA = [{"added": "by hand", "Folder": "blue"}, {"added": "2020"}, {}]
# What format 2 did differently, undone.
TO_FORMAT_1 = """
ALTER TABLE items ADD COLUMN thumbnail BLOB;
UPDATE items SET thumbnail = (SELECT jpeg FROM thumbnails WHERE thumbnails.id = items.id);
DROP TABLE thumbnails;
DROP TABLE files;
ALTER TABLE items DROP COLUMN folder;
ALTER TABLE items DROP COLUMN added;
ALTER TABLE items RENAME COLUMN added_ TO added;
ALTER TABLE items RENAME COLUMN Folder_ TO Folder;
UPDATE metadata_columns SET column_name = name;
PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path: Path, model: Path) -> Path:
    with Index.create(tmp_path / "old.index", model=model) as index:
        thumbnails = [b"one", None, b"three"]
        index.add(KEYS, unit_vectors(3), thumbnails=thumbnails, metadata=METADATA)
    connection = sqlite3.connect(index.path / "catalogue.sqlite")
    connection.executescript(TO_FORMAT_1)
    connection.close()
    return index.path


def found(index: Index) -> dict[str, object]:
    return {
        "thumbnails": [index.thumbnail(i) for i in range(3)],
        "metadata": [item.metadata for item in index.items()],
        "in a/b": [item.key for item in index.items(where="folder = 'a/b'")],
        "at the top": [item.key for item in index.items(where="folder = ''")],
        "by field": [item.key for item in index.items(where="metadata.added = '2020'")],
    }


EXPECTED = {
    "thumbnails": [b"one", None, b"three"],
    "metadata": METADATA,
    "in a/b": ["a/b/1.jpg"],
    "at the top": ["3.jpg"],
    "by field": ["a/2.jpg"],
}


def test_an_old_index_is_read_as_it_is(path: Path) -> None:
    with Index.open(path) as index:
        assert found(index) == EXPECTED
        assert index.count("added is null") == 3


def test_compacting_brings_it_up_to_date(path: Path) -> None:
    with sqlite3.connect(path / "catalogue.sqlite") as catalogue:
        catalogue.execute("UPDATE items SET deleted = 1, thumbnail = NULL WHERE id = 1")
    with Index.open(path) as reader, Index.open(path) as index:
        assert reclaim(index).num_dead == 1
        assert [reader.thumbnail(i) for i in (0, 2)] == [b"one", b"three"]
    with Index.open(path, writable=True) as index:
        assert index.add(["new"], unit_vectors(1, seed=1)) == [3]
        assert [item.id for item in index.items()] == [0, 2, 3]
    with sqlite3.connect(path / "catalogue.sqlite") as catalogue:
        assert catalogue.execute("PRAGMA user_version").fetchone() == (3,)


def test_opening_for_writing_brings_it_up_to_date(path: Path) -> None:
    with Index.open(path) as reader, Index.open(path, writable=True) as index:
        assert found(index) == found(reader) == EXPECTED
        index.add(["a/b/4.jpg"], unit_vectors(1, seed=1), thumbnails=[b"four"])
        assert [item.key for item in reader.items(where="folder = 'a/b'")] == [KEYS[0], "a/b/4.jpg"]
        assert reader.count("added is null") == 3
        assert reader.count("added > '2020'") == 1
        assert reader.thumbnail(3) == b"four"
        assert index.remove([KEYS[0]]) == 1
        assert reader.count() == 3
    with Index.open(path) as index:
        assert index.thumbnail(2) == b"three"
