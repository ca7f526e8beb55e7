"""The statements that write a catalogue, each within a transaction of its caller."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from featkit.errors import InputError
from featkit.index import writer_token
from featkit.index.connections import FORMAT
from featkit.index.records import MAX_INTEGER, MIN_INTEGER, KnownFile, NewItem, Value
from featkit.index.row_map import SETTING, VectorsRecord, pack_ids
from featkit.index.tables import (
    BOOL,
    CHECKSUM,
    FILES_SCHEMA,
    FOLDER_SQL,
    KEPT_ROWS_SCHEMA,
    MAX_METADATA_COLUMNS,
    MOST_RECENT,
    NAN,
    NEW_COLUMNS,
    OLD,
    PLAIN,
    RECENT,
    RESERVED_COLUMNS,
    THUMBNAIL,
    THUMBNAILS_SCHEMA,
    CatalogueReader,
    quoted,
)

NEW_FORMAT = 2  # of indexes that were never compacted, so that earlier versions read them
OWN_COLUMNS = (
    *("id", "key", "folder", "source", "width", "height", "added"),
    CHECKSUM,
)


class CatalogueWriter(CatalogueReader):
    """Read and change a catalogue, through a connection within a write transaction."""

    _only_adds = True  # rows of vectors

    def overwrites_rows(self) -> None:
        """Note that rows of vectors are overwritten, which may be in a reader's memory."""
        self._only_adds = False

    def set_setting(self, name: str, value: Value) -> None:
        """Store a setting, replacing its old value."""
        self._connection.execute(
            "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", [name, value]
        )

    def count_change(self) -> None:
        """Give the state that is about to be committed a key of its own."""
        recent = [*self.recent_commits(), self.state_key().commit] if self._only_adds else []
        self.set_setting(RECENT, " ".join(recent[-MOST_RECENT:]))
        self._connection.execute("UPDATE settings SET value = value + 1 WHERE name = 'changes'")
        self.set_setting("commit", secrets.token_hex(8))

    def upgrade(self) -> None:
        """Add what an index of an earlier version lacks: its id, columns and thumbnails table."""
        if not self.state_key().index_id:
            self.set_setting("id", secrets.token_hex(16))
            self.set_setting("commit", secrets.token_hex(8))
        if not self.has_checksums():
            self._add_column(CHECKSUM, "INTEGER")
        (has_kinds,) = self._connection.execute(
            "SELECT count(*) FROM pragma_table_info('metadata_columns') WHERE name = 'kind'"
        ).fetchone()
        if not has_kinds:
            self._connection.execute("ALTER TABLE metadata_columns ADD COLUMN kind TEXT")
        if not self._has_thumbnail_table():
            self._upgrade_to_format_2()

    def _upgrade_to_format_2(self) -> None:
        for name in NEW_COLUMNS:
            self._add_column(name, "TEXT")
        self._connection.execute(THUMBNAILS_SCHEMA)
        self._connection.execute(FILES_SCHEMA)
        self._connection.execute(
            f"INSERT INTO thumbnails SELECT id, {THUMBNAIL} FROM items WHERE {THUMBNAIL} IS NOT"
            " NULL"
        )
        # The column stays and is empty: not all versions of SQLite can drop it.
        self._connection.execute(f"UPDATE items SET {THUMBNAIL} = NULL, folder = {FOLDER_SQL}")
        self._connection.execute(f"PRAGMA user_version = {NEW_FORMAT}")

    def _add_column(self, name: str, declared: str) -> None:
        """Add a column to the items, renaming that of metadata if it has this name in any case."""
        for metadata_name, column in self.metadata_columns().items():
            if column.casefold() == name:
                other = self._free_column(column)
                self._connection.execute(
                    f"ALTER TABLE items RENAME COLUMN {quoted(column)} TO {quoted(other)}"
                )
                self._connection.execute(
                    "UPDATE metadata_columns SET column_name = ? WHERE name = ?",
                    [other, metadata_name],
                )
        self._connection.execute(f"ALTER TABLE items ADD COLUMN {name} {declared}")

    def set_vectors_file(self, record: VectorsRecord, kept: np.ndarray, index: Path) -> None:
        """Replace the vectors file by one with the rows of these ids, and of those added later.

        The catalogue gets the format that earlier versions refuse. EnvironmentProblem if one of
        them is writing the index.
        """
        writer_token.refuse_older(self._connection, index)
        self.upgrade()
        self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        self._connection.execute(KEPT_ROWS_SCHEMA)
        self._connection.execute("DELETE FROM kept_rows")
        self._connection.execute(
            "INSERT INTO kept_rows (name, bits) VALUES (?, ?)",
            [record.name, pack_ids(kept, record.until)],
        )
        self.set_setting(SETTING, record.to_json())

    def drop_tombstones(self, ids: Iterable[int]) -> None:
        """Remove all that is recorded of removed items, whose rows have been reclaimed."""
        self._connection.executemany(
            "DELETE FROM items WHERE id = ? AND deleted = 1", [(item_id,) for item_id in ids]
        )

    def set_checksums(self, checksums: Mapping[int, int]) -> None:
        """Store the CRC-32 of vectors by id."""
        self._connection.executemany(
            f"UPDATE items SET {CHECKSUM} = ? WHERE id = ?",
            [(checksum, item_id) for item_id, checksum in checksums.items()],
        )

    def insert_items(
        self,
        first_id: int,
        items: Sequence[NewItem],
        checksums: Sequence[int],
        *,
        apart: Collection[str] = (),
    ) -> int:
        """Store items under consecutive ids from `first_id` and return how many replaced another.

        An item replaces the one with the same key, or with another spelling of it that is not in
        `apart`. checksums: the CRC-32 of each item's vector. InputError for a key or metadata that
        cannot be stored.
        """
        for item in items:
            _check(item)
        columns = self._ensure_columns(items)
        names = [*OWN_COLUMNS, *map(quoted, columns.values())]
        statement = f"INSERT INTO items ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        stored = self.stored_keys([item.key for item in items], apart=apart)
        added = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        num_replaced = 0
        for item_id, (item, checksum) in enumerate(zip(items, checksums, strict=True), first_id):
            num_replaced += self.remove_items({item.key, stored.get(item.key, item.key)})
            own = [item_id, item.key, _folder(item.key), item.source, item.width, item.height]
            metadata = [_to_sql(item.metadata.get(name)) for name in columns]
            self._connection.execute(statement, [*own, item.added or added, checksum, *metadata])
            if item.thumbnail is not None:
                self._connection.execute(
                    "INSERT INTO thumbnails (id, jpeg) VALUES (?, ?)", [item_id, item.thumbnail]
                )
        return num_replaced

    def remove_items(self, keys: Iterable[str]) -> int:
        """Mark items as deleted, drop their thumbnails, and return how many there were.

        Unknown keys are ignored.
        """
        num_removed = 0
        for key in keys:
            self._connection.execute(
                "DELETE FROM thumbnails WHERE id ="
                " (SELECT id FROM items WHERE key = ? AND deleted = 0)",
                [key],
            )
            statement = "UPDATE items SET deleted = 1 WHERE key = ? AND deleted = 0"
            num_removed += self._connection.execute(statement, [key]).rowcount
        return num_removed

    def move_item(self, item_id: int, item: NewItem) -> None:
        """Give a live item another key, source and metadata; its id, vector and thumbnail stay.

        An item that has the new key is removed. InputError for what cannot be stored.
        """
        _check(item)
        columns = self._ensure_columns([item])
        (old_key,) = self._connection.execute(
            "SELECT key FROM items WHERE id = ? AND deleted = 0", [item_id]
        ).fetchone()
        if old_key != item.key:
            self.remove_items([item.key])
        names = ["key", "folder", "source", *map(quoted, columns.values())]
        own = [item.key, _folder(item.key), item.source]
        values = [*own, *(_to_sql(item.metadata.get(name)) for name in columns)]
        self._connection.execute(
            f"UPDATE items SET {', '.join(f'{name} = ?' for name in names)} WHERE id = ?",
            [*values, item_id],
        )

    def record_files(self, files: Mapping[str, KnownFile]) -> None:
        """Record the state of images by key, replacing what was recorded of them."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO files (key, size, mtime_ns, digest, error) VALUES"
            " (?, ?, ?, ?, ?)",
            [
                (key, file.size, file.mtime_ns, file.digest, file.error)
                for key, file in files.items()
            ],
        )

    def forget_files(self, keys: Iterable[str]) -> None:
        """Drop what was recorded of images."""
        self._connection.executemany("DELETE FROM files WHERE key = ?", [(key,) for key in keys])

    def _ensure_columns(self, items: Sequence[NewItem]) -> dict[str, str]:
        """Add a column for each new name of metadata, and return all columns by name.

        InputError, naming the first item, if a name has booleans and other values: stored as 0 and
        1, booleans could not be distinguished from numbers.
        """
        columns = self.metadata_columns()
        kinds = self.metadata_kinds()
        for name in sorted({name for item in items for name in item.metadata} - set(columns)):
            if len(columns) == MAX_METADATA_COLUMNS:
                raise InputError(
                    f"The metadata field {name!r} cannot be added: an index has at most"
                    f" {MAX_METADATA_COLUMNS:,} metadata fields. Leave some out."
                )
            column = self._free_column(name)
            self._connection.execute(f"ALTER TABLE items ADD COLUMN {quoted(column)}")
            self._connection.execute(
                "INSERT INTO metadata_columns (name, column_name) VALUES (?, ?)", [name, column]
            )
            columns[name] = column
            kinds[name] = ""  # the first value decides
        old_kinds = dict(kinds)
        for item in items:
            for name, value in item.metadata.items():
                if value is not None:
                    kinds[name] = self._kind_with(kinds[name], columns[name], value)
                    _check_kind(item.key, name, value, kinds[name])
        changed = [(kind or None, name) for name, kind in kinds.items() if kind != old_kinds[name]]
        self._connection.executemany("UPDATE metadata_columns SET kind = ? WHERE name = ?", changed)
        return columns

    def _kind_with(self, kind: str, column: str, value: Value) -> str:
        """Return the kind of a column once it holds `value`, or the old kind on conflict."""
        if kind == "":
            return _kind_of(value)
        if kind == OLD and (_kind_of(value) == PLAIN or not self._has_other_than_bools(column)):
            return _kind_of(value)
        return kind

    def _free_column(self, name: str) -> str:
        """Return an unused name for a column of `items`."""
        columns = {column.casefold() for column in self.metadata_columns().values()}
        while name.casefold() in columns | RESERVED_COLUMNS:  # SQLite ignores the case of names
            name += "_"
        return name

    def _has_other_than_bools(self, column: str) -> bool:
        """Return whether a column from before kinds existed holds values other than booleans."""
        name = quoted(column)
        condition = f"{name} IS NOT NULL AND (typeof({name}) != 'integer' OR {name} NOT IN (0, 1))"
        rows = self._connection.execute(f"SELECT 1 FROM items WHERE {condition} LIMIT 1")
        return rows.fetchone() is not None


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _kind_of(value: Value) -> str:
    return BOOL if isinstance(value, bool) else PLAIN


def _check_kind(key: str, name: str, value: Value, kind: str) -> None:
    if _kind_of(value) != kind:
        other = "booleans" if kind == BOOL else "numbers or text"
        raise InputError(
            f"{key}: the metadata field {name!r} is {value!r}, but the index has {other} in it;"
            " use one kind of value per field."
        )


def _to_sql(value: Value | None) -> Value | bytes | None:
    return NAN if isinstance(value, float) and math.isnan(value) else value


def _check(item: NewItem) -> None:
    """Raise InputError for what SQLite would refuse or silently change."""
    if not item.key or not _storable(item.key) or not _storable(item.source):
        raise InputError(
            f"{item.key!r} of {item.source!r} cannot be a key: it is empty or not valid text."
        )
    for name, value in item.metadata.items():
        if not isinstance(name, str):
            raise InputError(
                f"{item.key}: the metadata field {name!r} is of type {_type(name)}; its name"
                " must be text."
            )
        if not name or not _storable(name) or (isinstance(value, str) and not _storable(value)):
            raise InputError(
                f"{item.key}: the metadata field {name!r} = {value!r} is empty or not valid text."
            )
        if not isinstance(value, str | int | float | None):
            raise InputError(
                f"{item.key}: the metadata field {name!r} is {_type(value)}; only text and numbers"
                " can"
                " be stored, so convert it first."
            )
        if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
            raise InputError(
                f"{item.key}: the metadata field {name!r} = {value} does not fit into 64 bits."
            )


def _type(value: object) -> str:
    return type(value).__name__


def _storable(text: str) -> bool:
    """Return whether text is valid Unicode without a NUL.

    File names need not be valid Unicode, and SQLite would end a text at a NUL.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text
