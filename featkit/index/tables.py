"""The tables of a catalogue, and the statements that read them.

    settings            name, value: fingerprint, model_name, width, metric, run, proofs; `id` is
                        the index's own, random; `changes` counts transactions and `commit` is
                        random for each, and `recent` has those of the states before; `writer`
                        is the token of writer_token.py
    items               one row per item: id, key, folder (its part before the last /), source,
                        width, height, added (when, in UTC, as ISO 8601), deleted, vector_crc32
                        (CRC-32 of its row in the vectors file), and one column for each name of
                        metadata
    thumbnails          the JPEG bytes by id, apart from the items, so that a filter need not read
                        past them
    files               the images that `featkit sync` has seen, by key: size, modification time and
                        digest of the file, and the error of one that could not be embedded
    metadata_columns    each name of metadata, its column in `items`, and its kind
    kept_rows           after a compaction: the ids of the rows that it kept, as bits

Ids count up from 0 and are never reused. A removed item keeps its row, marked as deleted (a
tombstone) and without its thumbnail, until a compaction drops it.
Metadata columns have no declared type; a value comes back as the bool, int, float or str that went
in. SQLite has neither booleans nor NaN: a column of the kind `bool` stores False and True as 0 and
1, and NaN is stored as a blob. Text from outside reaches SQL as bound parameters only, except for
column names, which are quoted.

Earlier indexes lack settings, columns and the table of thumbnails, which were a column of the
items. `CatalogueWriter.upgrade` adds them when such an index is next opened for writing; until
then, readers do without.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from sqlite3 import SQLITE_LIMIT_VARIABLE_NUMBER
from typing import NamedTuple

import numpy as np

from featkit.index.records import Item, KnownFile, Value
from featkit.index.row_map import NO_IDS, SETTING, VectorsRecord, unpack_ids
from featkit.index.where import FilterError
from featkit.index.where_sql import (
    ANY,
    BOOLEAN,
    NUMBER,
    SQL_TYPES,
    TEXT,
    SqlColumn,
    SqlFilter,
    never_known,
    to_sql,
)
from featkit.sources.keys import other_spellings

MAX_METADATA_COLUMNS = 1000
# Parameters of one statement. SQLite's own limit was 999 until 3.32.
MAX_PARAMETERS = 500

RECENT, MOST_RECENT = "recent", 100
CHECKSUM, THUMBNAIL = "vector_crc32", "thumbnail"
# Columns that filters may name, and the kinds of their values. The last two came with format 2.
FILTER_COLUMNS = {
    "key": TEXT,
    "source": TEXT,
    "width": NUMBER,
    "height": NUMBER,
    "folder": TEXT,
    "added": TEXT,
}
NEW_COLUMNS = ("folder", "added")
# The last three are names that SQLite itself gives to the primary key.
RESERVED_COLUMNS = frozenset(
    ("id", "deleted", *FILTER_COLUMNS, CHECKSUM, THUMBNAIL, "rowid", "oid", "_rowid_")
)
FOLDER_SQL = "rtrim(rtrim(key, replace(key, '/', '')), '/')"

# Kinds of metadata columns. A column from before kinds existed may hold booleans as 0 and 1.
PLAIN, BOOL, OLD = "plain", "bool", "old"
NAN = b"nan"
SIDES = {int, type(None)}

THUMBNAILS_SCHEMA = "CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, jpeg BLOB NOT NULL)"
FILES_SCHEMA = (
    "CREATE TABLE files (key TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest BLOB, error"
    " TEXT) WITHOUT ROWID"
)
KEPT_ROWS_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kept_rows (name TEXT PRIMARY KEY, bits BLOB NOT NULL) WITHOUT ROWID"
)
SCHEMA = f"""
{THUMBNAILS_SCHEMA};
{FILES_SCHEMA};
CREATE TABLE settings (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    folder TEXT NOT NULL,
    source TEXT NOT NULL,
    width INTEGER,
    height INTEGER,
    added TEXT,
    deleted INTEGER NOT NULL DEFAULT 0,
    vector_crc32 INTEGER
);
CREATE UNIQUE INDEX items_by_key ON items (key) WHERE deleted = 0;
CREATE INDEX items_deleted ON items (id) WHERE deleted = 1;
CREATE TABLE metadata_columns (name TEXT PRIMARY KEY, column_name TEXT NOT NULL UNIQUE, kind TEXT) WITHOUT ROWID;
"""  # noqa: E501


class DamagedCatalogue(Exception):
    """A catalogue holds what featkit never stores.

    The catalogue turns it into an InputError that names the file.
    """


class StateKey(NamedTuple):
    """The identity of a committed state. Two states with equal keys have equal content."""

    index_id: str  # empty for an index from before ids existed
    changes: int
    commit: str


class CatalogueReader:
    """Read one committed state of a catalogue, through a connection within a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def state_key(self) -> StateKey:
        """Return the identity of this state."""
        rows = self._connection.execute(
            "SELECT name, value FROM settings WHERE name IN ('id', 'changes', 'commit')"
        )
        values = dict(rows)
        changes = values.get("changes", 0)
        if not isinstance(changes, int):
            raise DamagedCatalogue(f"its count of changes is {changes!r}")
        return StateKey(str(values.get("id", "")), changes, str(values.get("commit", "")))

    def recent_commits(self) -> list[str]:
        """Return the keys' commits of the last states before this one, the latest last.

        To their vectors, rows were only added since.
        """
        query = "SELECT value FROM settings WHERE name = ?"
        row = self._connection.execute(query, [RECENT]).fetchone()
        return [] if row is None else str(row[0]).split()

    def quick_check(self) -> str | None:
        """Return what SQLite finds wrong with the file's pages; None if nothing."""
        try:
            (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            return str(error)
        return None if found == "ok" else str(found)

    def settings(self) -> dict[str, Value]:
        """Return all settings by name."""
        return dict(self._connection.execute("SELECT name, value FROM settings"))

    def has_checksums(self) -> bool:
        """Return whether the catalogue has a column for the checksums of vectors."""
        return self.has_column(CHECKSUM)

    def has_column(self, name: str) -> bool:
        """Return whether the table of items has a column of this name that is not of metadata."""
        (column,) = self._connection.execute(
            "SELECT count(*) FROM pragma_table_info('items') WHERE name = ?", [name]
        ).fetchone()
        return bool(column) and name not in self.metadata_columns().values()

    def _has_thumbnail_table(self) -> bool:
        (table,) = self._connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'thumbnails'"
        ).fetchone()
        return bool(table)

    def checksums(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the CRC-32 of vectors by id, those of removed items included.

        Ids without a checksum are left out. Requires `has_checksums`.
        """
        checksums: dict[int, int] = {}
        for block in _blocks(ids):
            checksums.update(
                self._connection.execute(
                    f"SELECT id, {CHECKSUM} FROM items WHERE id IN ({_marks(block)})", block
                )
            )
        return {item_id: crc for item_id, crc in checksums.items() if crc is not None}

    def first_checksums(self, limit: int) -> dict[int, int]:
        """Return the first `limit` checksums by id, for a catalogue in which few items have one."""
        condition = f"{CHECKSUM} IS NOT NULL ORDER BY id LIMIT ?"
        return dict(
            self._connection.execute(f"SELECT id, {CHECKSUM} FROM items WHERE {condition}", [limit])
        )

    def num_rows(self) -> int:
        """Return the number of ids given so far, which is the next id. Removed items count.

        The vectors file has as many committed rows if it was never compacted.
        """
        row = self._connection.execute("SELECT coalesce(max(id), -1) + 1 FROM items").fetchone()
        return max(int(row[0]), self.vectors_record().until)

    def vectors_record(self) -> VectorsRecord:
        """Return the record of the vectors file."""
        rows = self._connection.execute(
            "SELECT name, value FROM settings WHERE name = ?", [SETTING]
        )
        try:
            return VectorsRecord.of(dict(rows))
        except ValueError as error:
            raise DamagedCatalogue("the record of the vectors file cannot be read") from error

    def kept_ids(self, record: VectorsRecord) -> np.ndarray:
        """Return the ids of the rows that a compaction kept, ascending, (n,) int64."""
        if not record.name:
            return NO_IDS
        row = self._connection.execute(
            "SELECT bits FROM kept_rows WHERE name = ?", [record.name]
        ).fetchone()
        try:
            ids = unpack_ids(row[0], record.until)
        except (TypeError, ValueError) as error:
            raise DamagedCatalogue("the record of its rows cannot be read") from error
        if len(ids) != record.num_kept:
            raise DamagedCatalogue("the record of its rows has another number of them")
        return ids

    def num_live(self) -> int:
        """Return the number of items, without removed ones."""
        (count,) = self._connection.execute(
            "SELECT count(*) FROM items WHERE deleted = 0"
        ).fetchone()
        return int(count)

    def deleted_ids(self) -> list[int]:
        """Return the ids of removed items, ascending."""
        rows = self._connection.execute("SELECT id FROM items WHERE deleted = 1 ORDER BY id")
        return [item_id for (item_id,) in rows]

    def metadata_columns(self) -> dict[str, str]:
        """Return the columns of `items` that hold metadata, by the name of the metadata."""
        columns = dict(
            self._connection.execute("SELECT name, column_name FROM metadata_columns ORDER BY name")
        )
        if not all(isinstance(text, str) for pair in columns.items() for text in pair):
            raise DamagedCatalogue("the name of a metadata field is not text")
        return columns

    def metadata_kinds(self) -> dict[str, str]:
        """Return the kind of each column of metadata, by the name of the metadata."""
        try:
            rows = self._connection.execute("SELECT name, kind FROM metadata_columns").fetchall()
        except sqlite3.OperationalError:  # the column `kind` does not exist
            return dict.fromkeys(self.metadata_columns(), OLD)
        return {name: kind or OLD for name, kind in rows}

    def metadata_types(self) -> dict[str, str]:
        """Return the narrowest of "bool", "int64", "double" and "string" that holds all values of
        each metadata field; fields without a value are left out.
        """
        kinds, types = self.metadata_kinds(), {}
        for name, column in self.metadata_columns().items():
            sql = f"items.{quoted(column)}"
            found = {
                each
                for (each,) in self._connection.execute(
                    f"SELECT DISTINCT typeof({sql}) FROM items WHERE deleted = 0"
                )
            } - {"null"}
            if kinds[name] == BOOL:
                types[name] = "bool"
            elif "text" in found:
                types[name] = "string"
            elif found:
                types[name] = "int64" if found == {"integer"} else "double"
        return types

    def items_by_id(self, ids: Sequence[int]) -> dict[int, Item]:
        """Return items by id. Removed and unknown ids are left out."""
        return {item.id: item for item in self._items_with("id", ids)}

    def items_by_key(self, keys: Sequence[str]) -> dict[str, Item]:
        """Return items by key. Unknown keys are left out."""
        return {item.key: item for item in self._items_with("key", keys)}

    def known_files(self) -> dict[str, KnownFile]:
        """Return what `featkit sync` recorded, by key, with the ids of live items."""
        if not self._has_thumbnail_table():  # format 1
            return {}
        rows = self._connection.execute(
            "SELECT files.key, size, mtime_ns, digest, error, items.id FROM files"
            " LEFT JOIN items ON items.key = files.key AND items.deleted = 0"
        )
        return {
            key: KnownFile(size=size, mtime_ns=mtime_ns, digest=digest, error=error, item=item)
            for key, size, mtime_ns, digest, error, item in rows
        }

    def item_digests(self) -> Iterator[tuple[int, bytes]]:
        """Yield the ids of live items with the digests of bytes that `featkit sync` recorded."""
        if self._has_thumbnail_table():
            yield from self._connection.execute(
                "SELECT items.id, digest FROM files JOIN items ON items.key = files.key"
                " WHERE items.deleted = 0 AND digest IS NOT NULL"
            )

    def file_digests(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the digests that `featkit sync` recorded, by key, of those that have one."""
        if not self._has_thumbnail_table():  # format 1
            return {}
        return {
            key: digest
            for block in _blocks(keys)
            for key, digest in self._connection.execute(
                f"SELECT key, digest FROM files WHERE key IN ({_marks(block)})", block
            )
            if digest is not None
        }

    def boolean_fields(self) -> frozenset[str]:
        """Return the names of the metadata fields that hold booleans."""
        return frozenset(name for name, kind in self.metadata_kinds().items() if kind == BOOL)

    def failed_files(self) -> list[tuple[str, str]]:
        """Return key and error of the images that `featkit sync` could not embed, by key."""
        if not self._has_thumbnail_table():  # format 1
            return []
        return self._connection.execute(
            "SELECT key, error FROM files WHERE error IS NOT NULL ORDER BY key"
        ).fetchall()

    def ids_matching(self, where: str) -> list[int]:
        """Return the ids of the items that match a filter, ascending.

        FilterError if it is not a filter, or names a column that there is not. So too if nothing
        matches and the filter expects text of a column that only holds numbers, or the reverse.
        """
        made = self._to_sql(where)
        if len(made.parameters) > (most := self._connection.getlimit(SQLITE_LIMIT_VARIABLE_NUMBER)):
            raise FilterError(where, 1, f"it has more than {most:,} values.")
        try:
            rows = self._connection.execute(
                f"SELECT id FROM items WHERE deleted = 0 AND {made.sql} ORDER BY id",
                made.parameters,
            )
            ids = [item_id for (item_id,) in rows]
        except sqlite3.OperationalError as error:
            # SQLite bounds the depth of expressions and the length of patterns.
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            raise FilterError(where, 1, f"it is too complex ({error}).") from error
        if not ids:
            self._check_expectations(made)
        return ids

    def _to_sql(self, where: str) -> SqlFilter:
        from featkit.index.where_text import parse_filter  # imports lark, for filters only

        columns = {name: SqlColumn(name, kind) for name, kind in FILTER_COLUMNS.items()}
        if not self.has_column("folder"):
            columns["folder"] = SqlColumn(FOLDER_SQL, TEXT)
            columns["added"] = SqlColumn("NULL", TEXT)
        kinds = self.metadata_kinds()
        metadata = {
            # qualified, since SQLite takes a quoted name that is not a column for text
            name: SqlColumn(
                f"items.{quoted(column)}",
                BOOLEAN if kinds[name] == BOOL else ANY,
                old_booleans=kinds[name] == OLD,
            )
            for name, column in self.metadata_columns().items()
        }
        return to_sql(where, parse_filter(where), columns=columns, metadata=metadata)

    def _check_expectations(self, where: SqlFilter) -> None:
        different = {(each.sql, each.kind): each for each in reversed(where.expectations)}
        for expectation in different.values():
            types = SQL_TYPES[expectation.kind]
            kinds = self._connection.execute(
                f"SELECT DISTINCT typeof({expectation.sql}) IN {types} FROM items"
                f" WHERE deleted = 0 AND typeof({expectation.sql}) NOT IN ('null', 'blob')"
            ).fetchall()
            if kinds == [(0,)]:
                raise never_known(where.text, expectation)

    def thumbnail(self, item_id: int) -> bytes | None:
        """Return the JPEG bytes of an item's thumbnail; None if it or the item does not exist."""
        statement = "SELECT jpeg FROM thumbnails WHERE id = ?"
        if not self._has_thumbnail_table():
            statement = f"SELECT {THUMBNAIL} FROM items WHERE id = ? AND deleted = 0"
        row = self._connection.execute(statement, [item_id]).fetchone()
        return None if row is None else row[0]

    def stored_keys(self, keys: Sequence[str], *, apart: Collection[str] = ()) -> dict[str, str]:
        """Map keys to the keys under which their items are stored, if there are any.

        An item is stored under the same key or, failing that, under another spelling of it. A
        stored spelling that is in `apart` or among `keys` belongs to an image of its own and does
        not count.
        """
        stored = {key: key for key in self._existing(keys)}
        spellings: dict[str, str] = {}
        for key in keys:
            if key not in stored:
                for spelling in other_spellings(key):
                    spellings.setdefault(spelling, key)
        own = set(keys)
        candidates = [key for key in spellings if key not in own and key not in apart]
        for spelling in self._existing(candidates):
            stored.setdefault(spellings[spelling], spelling)
        return stored

    def _existing(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys that items have."""
        return [
            key
            for block in _blocks(keys)
            for (key,) in self._connection.execute(
                f"SELECT key FROM items WHERE deleted = 0 AND key IN ({_marks(block)})", block
            )
        ]

    def _items_with(self, column: str, values: Sequence[Value]) -> list[Item]:
        return [
            item
            for block in _blocks(values)
            for item in self._items_where(f"deleted = 0 AND {column} IN ({_marks(block)})", block)
        ]

    def _items_where(self, condition: str, parameters: Sequence[Value]) -> list[Item]:
        """Return the items that meet a condition, whose text never comes from outside."""
        names = self.metadata_columns()
        kinds = self.metadata_kinds()
        are_bools = [kinds[name] == BOOL for name in names]
        # Qualified by the table, since SQLite takes a quoted name that is not a column for text.
        metadata_columns = [f"items.{quoted(column)}" for column in names.values()]
        added = "added" if self.has_column("added") else "NULL"
        columns = ", ".join(["id", "key", "source", "width", "height", added, *metadata_columns])
        items: list[Item] = []
        for item_id, key, source, width, height, added_at, *values in self._connection.execute(
            f"SELECT {columns} FROM items WHERE {condition}", parameters
        ):
            if not (
                isinstance(key, str)
                and isinstance(source, str)
                and {type(width), type(height)} <= SIDES
                and isinstance(added_at, str | None)
            ):
                raise DamagedCatalogue(f"item {item_id} has a key or size of a wrong type")
            metadata = {
                name: _from_sql(value, is_bool=is_bool)
                for name, value, is_bool in zip(names, values, are_bools, strict=True)
                if value is not None
            }
            items.append(
                Item(
                    id=item_id,
                    key=key,
                    source=source,
                    width=width,
                    height=height,
                    metadata=metadata,
                    added=added_at,
                )
            )
        return items


def quoted(column: str) -> str:
    """Return a column name as an SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def _blocks(values: Sequence[Value]) -> Iterator[list[Value]]:
    """Yield the values in lists that fit into one statement."""
    for start in range(0, len(values), MAX_PARAMETERS):
        yield list(values[start : start + MAX_PARAMETERS])


def _marks(values: Sequence[Value]) -> str:
    return ", ".join("?" * len(values))


def _from_sql(value: Value | bytes, *, is_bool: bool) -> Value:
    if isinstance(value, bytes):
        if value == NAN:
            return math.nan
        raise DamagedCatalogue("metadata has a type that is never stored")
    return bool(value) if is_bool and value in (0, 1) else value
