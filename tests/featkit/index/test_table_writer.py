"""Writing the tables of a catalogue."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from featkit.index.records import NewItem
from featkit.index.table_writer import CatalogueWriter
from featkit.index.tables import BOOL, MAX_METADATA_COLUMNS, PLAIN, SCHEMA
from tests.sentences import refused


@pytest.fixture
def writer() -> Iterator[CatalogueWriter]:
    """A writer of an empty catalogue in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA)
    yield CatalogueWriter(connection)
    connection.close()


def test_an_item_replaces_the_one_with_its_key(writer: CatalogueWriter) -> None:
    assert writer.insert_items(0, [NewItem(key="a", thumbnail=b"old")], [1]) == 0
    assert writer.insert_items(1, [NewItem(key="a"), NewItem(key="b")], [2, 3]) == 1
    assert (writer.deleted_ids(), writer.thumbnail(0)) == ([0], None)
    assert sorted(writer.items_by_id([0, 1, 2])) == [1, 2]


def test_removing_counts_existing_items_only(writer: CatalogueWriter) -> None:
    writer.insert_items(0, [NewItem(key="a")], [1])
    assert writer.remove_items(["a", "unknown"]) == 1
    assert writer.remove_items(["a"]) == 0


def test_the_first_value_decides_the_kind_of_a_column(writer: CatalogueWriter) -> None:
    writer.insert_items(0, [NewItem(key="a", metadata={"x": None, "y": True, "z": 1})], [1])
    assert {name: writer.metadata_kinds()[name] for name in "yz"} == {"y": BOOL, "z": PLAIN}
    writer.insert_items(1, [NewItem(key="b", metadata={"x": False})], [1])
    assert writer.metadata_kinds()["x"] == BOOL
    with refused("c: the metadata field 'z' is True, but the index has numbers or text"):
        writer.insert_items(2, [NewItem(key="c", metadata={"z": True})], [1])


def test_names_that_differ_by_case_get_two_columns(writer: CatalogueWriter) -> None:
    metadata = {"label": 1, "Label": 2, "key": 3}
    writer.insert_items(0, [NewItem(key="a", metadata=metadata)], [1])
    assert writer.items_by_id([0])[0].metadata == metadata
    columns = [column.casefold() for column in writer.metadata_columns().values()]
    assert len({*columns, "key"}) == 4


def test_too_many_names_of_metadata_are_refused(writer: CatalogueWriter) -> None:
    metadata = {f"name{i:04}": i for i in range(MAX_METADATA_COLUMNS + 1)}
    with refused("The metadata field 'name1000' cannot be added", "at most 1,000 metadata fields"):
        writer.insert_items(0, [NewItem(key="a", metadata=metadata)], [1])


def test_a_counted_change_gets_a_new_key(writer: CatalogueWriter) -> None:
    writer.set_setting("changes", 4)
    before = writer.state_key()
    writer.count_change()
    assert writer.state_key().changes == 5
    assert writer.state_key().commit not in ("", before.commit)
