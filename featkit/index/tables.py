"""The tables of a catalogue: what is stored of items, and the statements that read and write them
in a transaction.

    settings            name, value: fingerprint, model_name, width, metric, run, proofs; `id` is the index's own, random;
                        `changes` counts transactions and `commit` is random for each; `writer` is the token of writers.py
    items               one row an item: id, key, source, width, height, thumbnail, deleted, vector_crc32 (CRC-32 of its
                        row in the vectors file), and a column for each metadata
    metadata_columns    the name of a piece of metadata, its column in `items`, and its kind

Ids count up from 0 without a gap and are never used again: a removed item's row stays, marked
deleted and without its thumbnail, so that row numbers of the vectors file and ids are one thing.
Metadata columns have no declared type; a value comes back as the bool, int, float or str that went
in. SQLite knows neither booleans nor NaN: a column of the kind `bool` holds 0 and 1 for False and
True, and NaN is a blob. All text of others' reaches SQL as bound parameters, save column names,
which are quoted.

An index from before ids, checksums and kinds lacks those settings and columns; `upgrade` adds them
when it is next opened for writing.
"""

from __future__ import annotations

import math
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from featkit.errors import InputError
from featkit.sources.keys import other_spellings

MAX_METADATA_COLUMNS = 1000
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

Value = str | int | float  # and bool, which is an int

CHECKSUM = "vector_crc32"
ITEM_COLUMNS = ("id", "key", "source", "width", "height", "thumbnail", "deleted")
# Names that SQLite gives to the primary key of its own accord.
RESERVED_COLUMNS = frozenset((*ITEM_COLUMNS, CHECKSUM, "rowid", "oid", "_rowid_"))

# Kinds of metadata columns. One from before there were kinds may hold booleans as 0 and 1.
PLAIN, BOOL, OLD = "plain", "bool", "old"
NAN = b"nan"
SIDES = {int, type(None)}

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    source TEXT NOT NULL,
    width INTEGER,
    height INTEGER,
    thumbnail BLOB,
    deleted INTEGER NOT NULL DEFAULT 0,
    vector_crc32 INTEGER
);
CREATE UNIQUE INDEX items_by_key ON items (key) WHERE deleted = 0;
CREATE INDEX items_deleted ON items (id) WHERE deleted = 1;
CREATE TABLE metadata_columns (name TEXT PRIMARY KEY, column_name TEXT NOT NULL UNIQUE, kind TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """An image of the index. Sizes are the upright original's, in pixels; None where they are not
    known."""

    id: int
    key: str
    source: str
    width: int | None
    height: int | None
    metadata: dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """What is stored of an image beside its vector."""

    key: str
    source: str = ""
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    metadata: Mapping[str, Value | None] = field(default_factory=dict)


class Damaged(Exception):
    """What a catalogue holds cannot be; turned into an InputError that names the catalogue where
    the reading ends."""


class StateKey(NamedTuple):
    """What tells a committed state from all others, also of other indexes."""

    index_id: str  # empty for an index from before there were ids
    changes: int
    commit: str


# What is read, within one state -------------------------------------------------------------------


def state_key(connection: sqlite3.Connection) -> StateKey:
    """Which state this is: two with the same key hold the same."""
    rows = connection.execute(
        "SELECT name, value FROM settings WHERE name IN ('id', 'changes', 'commit')"
    )
    values = dict(rows)
    changes = values.get("changes", 0)
    if not isinstance(changes, int):
        raise Damaged(f"its number of changes is {changes!r}")
    return StateKey(str(values.get("id", "")), changes, str(values.get("commit", "")))


def settings(connection: sqlite3.Connection) -> dict[str, Value]:
    """All settings by name."""
    return dict(connection.execute("SELECT name, value FROM settings"))


def checksums(
    connection: sqlite3.Connection, ids: Sequence[int], *, at_once: int = 500
) -> dict[int, int]:
    """CRC-32 of the vectors' bytes by id, removed items included; an id without one is left out.
    Only after `has_checksums`."""
    found: dict[int, int] = {}
    for start in range(0, len(ids), at_once):
        block = ids[start : start + at_once]
        marks = ", ".join("?" * len(block))
        found.update(
            connection.execute(f"SELECT id, {CHECKSUM} FROM items WHERE id IN ({marks})", block)
        )
    return {item_id: checksum for item_id, checksum in found.items() if checksum is not None}


def any_checksums(connection: sqlite3.Connection, *, limit: int) -> dict[int, int]:
    """The first checksums by id, where most items may have none."""
    statement = f"SELECT id, {CHECKSUM} FROM items WHERE {CHECKSUM} IS NOT NULL ORDER BY id LIMIT ?"
    return dict(connection.execute(statement, [limit]))


def has_checksums(connection: sqlite3.Connection) -> bool:
    """Whether the catalogue has checksums of vectors, which an index from before them gets at its
    next opening to write."""
    (column,) = connection.execute(
        "SELECT count(*) FROM pragma_table_info('items') WHERE name = ?", [CHECKSUM]
    ).fetchone()
    return bool(column) and CHECKSUM not in metadata_columns(connection).values()


def num_rows(connection: sqlite3.Connection) -> int:
    """Ids given so far, those of removed items included: the next one, and the committed rows of
    the vectors file."""
    return int(connection.execute("SELECT coalesce(max(id), -1) + 1 FROM items").fetchone()[0])


def deleted_ids(connection: sqlite3.Connection) -> list[int]:
    """Ids of removed items, ascending."""
    return [
        row[0] for row in connection.execute("SELECT id FROM items WHERE deleted = 1 ORDER BY id")
    ]


def metadata_columns(connection: sqlite3.Connection) -> dict[str, str]:
    """Columns of `items` that hold metadata, by the metadata's name."""
    columns = dict(
        connection.execute("SELECT name, column_name FROM metadata_columns ORDER BY name")
    )
    if not all(isinstance(text, str) for pair in columns.items() for text in pair):
        raise Damaged("a name of metadata is no text")
    return columns


def items_by_id(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Item]:
    """Items by id; a removed or unknown id is left out."""
    return {item.id: item for item in _select_many(connection, "id", list(ids))}


def items_by_key(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Item]:
    """Items by key; an unknown key is left out."""
    return {item.key: item for item in _select_many(connection, "key", list(keys))}


def stored_keys(
    connection: sqlite3.Connection, keys: Sequence[str], *, apart: Collection[str] = ()
) -> dict[str, str]:
    """Return the key under which each of these items is stored: its own, else another spelling of
    it, if any.

    apart: keys of items that are their own, so that another spelling is not one of them; those of
    `keys` are, too.
    """
    stored = {key: key for key in _existing(connection, keys)}
    spellings: dict[str, str] = {}
    for key in keys:
        if key not in stored:
            for spelling in other_spellings(key):
                spellings.setdefault(spelling, key)
    own = set(keys)
    for spelling in _existing(
        connection, [one for one in spellings if one not in own and one not in apart]
    ):
        stored.setdefault(spellings[spelling], spelling)
    return stored


def items_in_order(connection: sqlite3.Connection, *, offset: int, limit: int) -> list[Item]:
    """Items by ascending id, from the offset-th on."""
    return _select(connection, "deleted = 0 ORDER BY id LIMIT ? OFFSET ?", [limit, offset])


def thumbnail(connection: sqlite3.Connection, item_id: int) -> bytes | None:
    """JPEG bytes, or None where there is no such item or it has none."""
    row = connection.execute(
        "SELECT thumbnail FROM items WHERE id = ? AND deleted = 0", [item_id]
    ).fetchone()
    return None if row is None else row[0]


def _existing(
    connection: sqlite3.Connection, keys: Sequence[str], *, at_once: int = 500
) -> list[str]:
    """Those of the keys that items have."""
    found: list[str] = []
    for start in range(0, len(keys), at_once):
        block = keys[start : start + at_once]
        marks = ", ".join("?" * len(block))
        found += [
            row[0]
            for row in connection.execute(
                f"SELECT key FROM items WHERE deleted = 0 AND key IN ({marks})", block
            )
        ]
    return found


def _select_many(
    connection: sqlite3.Connection, column: str, values: Sequence[Value], *, at_once: int = 500
) -> list[Item]:
    items: list[Item] = []
    for start in range(0, len(values), at_once):
        block = values[start : start + at_once]
        items += _select(
            connection, f"deleted = 0 AND {column} IN ({', '.join('?' * len(block))})", block
        )
    return items


def _select(
    connection: sqlite3.Connection, condition: str, parameters: Sequence[Value]
) -> list[Item]:
    """Items for which a condition of this file's own wording holds."""
    names = metadata_columns(connection)
    kinds = _kinds(connection)
    are_bools = [kinds[name] == BOOL for name in names]
    # With the table's name, since SQLite takes a quoted name of no column for text.
    columns = ", ".join(
        [
            "id",
            "key",
            "source",
            "width",
            "height",
            *(f"items.{quoted(name)}" for name in names.values()),
        ]
    )
    items: list[Item] = []
    for item_id, key, source, width, height, *values in connection.execute(
        f"SELECT {columns} FROM items WHERE {condition}", parameters
    ):
        if not (
            isinstance(key, str)
            and isinstance(source, str)
            and {type(width), type(height)} <= SIDES
        ):
            raise Damaged(f"item {item_id} has a key or size of a wrong kind")
        metadata = {
            name: _from_sql(value, is_bool=is_bool)
            for name, value, is_bool in zip(names, values, are_bools, strict=True)
            if value is not None
        }
        items.append(
            Item(id=item_id, key=key, source=source, width=width, height=height, metadata=metadata)
        )
    return items


def _kinds(connection: sqlite3.Connection) -> dict[str, str]:
    """The kind of each piece of metadata by name."""
    try:
        rows = connection.execute("SELECT name, kind FROM metadata_columns").fetchall()
    except sqlite3.OperationalError:  # no such column
        return dict.fromkeys(metadata_columns(connection), OLD)
    return {name: kind or OLD for name, kind in rows}


def _from_sql(value: Value | bytes, *, is_bool: bool) -> Value:
    if isinstance(value, bytes):
        if value == NAN:
            return math.nan
        raise Damaged("metadata is of a kind that is never stored")
    return bool(value) if is_bool and value in (0, 1) else value


def in_json(value: Value) -> Value:
    """A value of metadata as JSON can hold it, which has no numbers for NaN and infinity: they are
    text, as in JavaScript."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


# What is written, within one transaction ----------------------------------------------------------


def set_setting(connection: sqlite3.Connection, name: str, value: Value) -> None:
    """Store a setting in place of the one of this name, if there is one."""
    connection.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", [name, value])


def upgrade(connection: sqlite3.Connection) -> None:
    """Give an index from before them an id and columns for checksums and kinds. Leaves a newer one
    as it is."""
    if not state_key(connection).index_id:
        set_setting(connection, "id", secrets.token_hex(16))
        set_setting(connection, "commit", secrets.token_hex(8))
    if not has_checksums(connection):
        # Then a piece of metadata may have a column of this name, in whatever case.
        for name, column in metadata_columns(connection).items():
            if column.casefold() == CHECKSUM:
                other = _free_column(column, connection)
                connection.execute(
                    f"ALTER TABLE items RENAME COLUMN {quoted(column)} TO {quoted(other)}"
                )
                connection.execute(
                    "UPDATE metadata_columns SET column_name = ? WHERE name = ?", [other, name]
                )
        connection.execute(f"ALTER TABLE items ADD COLUMN {CHECKSUM} INTEGER")
    (kinds,) = connection.execute(
        "SELECT count(*) FROM pragma_table_info('metadata_columns') WHERE name = 'kind'"
    ).fetchone()
    if not kinds:
        connection.execute("ALTER TABLE metadata_columns ADD COLUMN kind TEXT")


def set_checksums(connection: sqlite3.Connection, checksums: Mapping[int, int]) -> None:
    """Store the CRC-32 of vectors by id."""
    statement = f"UPDATE items SET {CHECKSUM} = ? WHERE id = ?"
    connection.executemany(
        statement, [(checksum, item_id) for item_id, checksum in checksums.items()]
    )


def insert_items(
    connection: sqlite3.Connection,
    first_id: int,
    items: Sequence[NewItem],
    checksums: Sequence[int],
    *,
    apart: Collection[str] = (),
) -> int:
    """Store items under the ids from `first_id` on; one whose key exists takes its place. Return
    how many did.

    So does one whose key is another spelling of an existing key that is not in `apart`. checksums:
    CRC-32 of each item's vector. InputError for a key or metadata that cannot be stored.
    """
    for item in items:
        _check(item)
    columns = _ensure_columns(connection, items)
    names = [*ITEM_COLUMNS[:-1], CHECKSUM, *map(quoted, columns.values())]
    statement = f"INSERT INTO items ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    stored = stored_keys(connection, [item.key for item in items], apart=apart)
    num_replaced = 0
    for item_id, (item, checksum) in enumerate(zip(items, checksums, strict=True), first_id):
        num_replaced += remove_items(connection, {item.key, stored.get(item.key, item.key)})
        values = [_to_sql(item.metadata.get(name)) for name in columns]
        own = [item_id, item.key, item.source, item.width, item.height, item.thumbnail, checksum]
        connection.execute(statement, [*own, *values])
    return num_replaced


def remove_items(connection: sqlite3.Connection, keys: Iterable[str]) -> int:
    """Mark items as deleted and drop their thumbnails; unknown keys are passed over. Return how
    many there were."""
    statement = "UPDATE items SET deleted = 1, thumbnail = NULL WHERE key = ? AND deleted = 0"
    return sum(connection.execute(statement, [key]).rowcount for key in keys)


def quoted(column: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def _ensure_columns(connection: sqlite3.Connection, items: Sequence[NewItem]) -> dict[str, str]:
    """Add a column for each piece of metadata that has none yet; return all of them by name.

    InputError, naming the first item, for booleans among other values of the same name: they could
    not be told apart.
    """
    columns = metadata_columns(connection)
    kinds = _kinds(connection)
    for name in sorted({name for item in items for name in item.metadata} - set(columns)):
        if len(columns) == MAX_METADATA_COLUMNS:
            raise InputError(
                f"The items have more than {MAX_METADATA_COLUMNS:,} names of metadata; {name!r} is"
                " one too many."
            )
        column = _free_column(name, connection)
        connection.execute(f"ALTER TABLE items ADD COLUMN {quoted(column)}")
        connection.execute(
            "INSERT INTO metadata_columns (name, column_name) VALUES (?, ?)", [name, column]
        )
        columns[name] = column
        kinds[name] = ""  # of the first value
    before = dict(kinds)
    for item in items:
        for name, value in item.metadata.items():
            if value is None:
                continue
            kind = BOOL if isinstance(value, bool) else PLAIN
            if (
                kinds[name] == OLD
                and kind == BOOL
                and not _has_other_than_bools(connection, columns[name])
            ):
                kinds[name] = BOOL
            if (kinds[name] == OLD and kind == PLAIN) or kinds[name] == "":
                kinds[name] = kind
            if kinds[name] != kind:
                other = "booleans" if kinds[name] == BOOL else "numbers or text"
                raise InputError(
                    f"{item.key}: the metadata {name!r} is {value!r}, and the index has {other}"
                    " under that name; use one kind of value for a name."
                )
    changed = [(kind or None, name) for name, kind in kinds.items() if kind != before[name]]
    connection.executemany("UPDATE metadata_columns SET kind = ? WHERE name = ?", changed)
    return columns


def _free_column(name: str, connection: sqlite3.Connection) -> str:
    """A name for a column of `items` that is not taken yet."""
    taken = {
        column.casefold() for column in metadata_columns(connection).values()
    } | RESERVED_COLUMNS
    while name.casefold() in taken:  # SQLite does not tell Label from label
        name += "_"
    return name


def _has_other_than_bools(connection: sqlite3.Connection, column: str) -> bool:
    """Whether a column from before there were kinds holds what no boolean was stored as."""
    condition = (
        f"{quoted(column)} IS NOT NULL AND (typeof({quoted(column)}) != 'integer' OR"
        f" {quoted(column)} NOT IN (0, 1))"
    )
    return (
        connection.execute(f"SELECT 1 FROM items WHERE {condition} LIMIT 1").fetchone() is not None
    )


def _to_sql(value: Value | None) -> Value | bytes | None:
    return NAN if isinstance(value, float) and math.isnan(value) else value


def _check(item: NewItem) -> None:
    """InputError for what SQLite would refuse or silently change."""
    if not item.key or not _storable(item.key) or not _storable(item.source):
        raise InputError(
            f"{item.key!r} of {item.source!r} cannot be a key: it is empty or no valid text."
        )
    for name, value in item.metadata.items():
        if not isinstance(name, str):
            raise InputError(
                f"{item.key}: the metadata's name {name!r} is {_type(name)}; a name is text."
            )
        if not name or not _storable(name) or (isinstance(value, str) and not _storable(value)):
            raise InputError(
                f"{item.key}: the metadata {name!r} = {value!r} is empty or no valid text."
            )
        if not isinstance(value, str | int | float | None):
            raise InputError(
                f"{item.key}: the metadata {name!r} is {_type(value)}; text and numbers are stored,"
                " so convert it first."
            )
        if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
            raise InputError(
                f"{item.key}: the metadata {name!r} = {value} does not fit into 64 bits."
            )


def _type(value: object) -> str:
    return type(value).__name__


def _storable(text: str) -> bool:
    """Whether text is valid Unicode (file names need not be) without a NUL, at which SQLite would
    end it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text
