"""Reading the tables of a catalogue."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from featkit.index.records import NewItem
from featkit.index.table_writer import CatalogueWriter
from featkit.index.tables import MAX_PARAMETERS, SCHEMA, CatalogueReader, DamagedCatalogue, quoted


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A catalogue in memory with the items a, b and c, of which b is removed."""
    opened = sqlite3.connect(":memory:", isolation_level=None)
    opened.executescript(SCHEMA)
    writer = CatalogueWriter(opened)
    writer.insert_items(0, [NewItem(key=key, metadata={"name": key}) for key in "abc"], [7, 8, 9])
    writer.remove_items(["b"])
    yield opened
    opened.close()


@pytest.fixture
def reader(connection: sqlite3.Connection) -> CatalogueReader:
    return CatalogueReader(connection)


def test_removed_items_keep_their_id_and_checksum(reader: CatalogueReader) -> None:
    assert (reader.num_rows(), reader.deleted_ids()) == (3, [1])
    assert reader.checksums([0, 1, 2, 3]) == {0: 7, 1: 8, 2: 9}
    assert reader.first_checksums(2) == {0: 7, 1: 8}
    assert {*reader.items_by_id([0, 1, 2])} == {0, 2}
    assert {*reader.items_by_key(["a", "b"])} == {"a"}


def test_filters_skip_removed_items(reader: CatalogueReader) -> None:
    assert reader.ids_matching("key != 'z'") == [0, 2]


def test_more_values_than_one_statement_takes_are_split(reader: CatalogueReader) -> None:
    keys = [f"unknown{i}" for i in range(2 * MAX_PARAMETERS)]
    assert [*reader.items_by_key(["a", *keys, "c"])] == ["a", "c"]


def test_a_stored_key_may_be_another_spelling(connection: sqlite3.Connection) -> None:
    writer = CatalogueWriter(connection)
    writer.insert_items(3, [NewItem(key="caf\u00e9.jpg")], [1])
    decomposed = "cafe\u0301.jpg"
    assert writer.stored_keys([decomposed, "unknown"]) == {decomposed: "caf\u00e9.jpg"}
    assert writer.stored_keys([decomposed], apart={"caf\u00e9.jpg"}) == {}


def test_a_key_that_is_not_text_is_damage(
    reader: CatalogueReader, connection: sqlite3.Connection
) -> None:
    connection.execute("UPDATE items SET key = x'00' WHERE id = 0")
    with pytest.raises(DamagedCatalogue, match="item 0 has a key or size of a wrong type"):
        reader.items_by_id([0])


def test_quotes_in_column_names_are_doubled() -> None:
    assert quoted('a "b"') == '"a ""b"""'


def test_settings_are_read_by_name(tmp_path: Path, connection: sqlite3.Connection) -> None:
    writer = CatalogueWriter(connection)
    writer.set_setting("width", 16)
    writer.set_setting("path", str(tmp_path))
    assert writer.settings() == {"width": 16, "path": str(tmp_path)}
