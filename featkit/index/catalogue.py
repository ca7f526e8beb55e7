"""The catalogue of an index: SQLite in WAL mode, the truth about which items there are.

A commit here is the commit point of every change to an index. Items keep their id for ever and ids are never reused; row
`id` of the vectors file is an item's vector. A removed item stays as a row that is marked deleted. Metadata are columns of
their own, added when they first appear; no text of a user's ever becomes SQL except as a quoted column name.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from featkit.errors import EnvironmentProblem, InputError

FORMAT = 1
Value: TypeAlias = str | int | float

# Columns that every item has; metadata of the same name gets an underscore at its end.
FIXED = ("id", "key", "source", "width", "height", "thumbnail", "deleted")
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, source TEXT NOT NULL, width INTEGER, height INTEGER,
    thumbnail BLOB, deleted INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX live_key ON items (key) WHERE NOT deleted;
"""
IDS_A_QUERY = 500  # SQLite's bound on parameters is far above


@dataclass(frozen=True, kw_only=True)
class Item:
    """What the catalogue knows of an item. width and height are the original picture's, in pixels."""

    id: int
    key: str
    source: str = ""
    width: int | None = None
    height: int | None = None
    metadata: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """An item to be added; its id is given by the catalogue."""

    key: str
    source: str = ""
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    metadata: Mapping[str, Value] = field(default_factory=dict)


class Catalogue:
    """One connection, shared by the threads of a process behind a lock."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self.path = connection, path
        self._lock = threading.RLock()

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any]) -> None:
        """Write a new, empty catalogue."""
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
            rows = {"format": FORMAT, "num_rows": 0, **settings}
            connection.executemany("INSERT INTO settings VALUES (?, ?)", [(k, json.dumps(v)) for k, v in rows.items()])
            connection.commit()
        finally:
            connection.close()

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Catalogue:
        """InputError when the file is missing, no catalogue, or of a newer format."""
        if not path.is_file():
            raise InputError(f"{path.parent} is not an index: it has no {path.name}; make one with `featkit index`.")
        catalogue = cls(_connect(path, writable=writable), path)
        try:
            version = catalogue.setting("format")
        except (sqlite3.Error, KeyError) as error:
            catalogue.close()
            raise InputError(f"{path} is not the catalogue of an index: {error}") from error
        if version > FORMAT:
            catalogue.close()
            raise InputError(f"{path.parent} has format {version}, newer than the {FORMAT} read here; update featkit.")
        return catalogue

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        with self._lock:
            self._connection.close()

    def setting(self, name: str) -> Any:
        """A setting's value. KeyError where there is none."""
        with self._lock:
            row = self._connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise KeyError(name)
        return json.loads(row[0])

    def version(self) -> tuple[int, int]:
        """Changes whenever anybody commits: another process (data_version), or this connection (total_changes)."""
        with self._lock:
            (other,) = self._connection.execute("PRAGMA data_version").fetchone()
            return int(other), self._connection.total_changes

    def committed(self) -> tuple[int, np.ndarray]:
        """Number of rows ever added, and the sorted ids of those deleted since, of one committed state."""
        with self._reading():
            num_rows = self.setting("num_rows")
            rows = self._connection.execute("SELECT id FROM items WHERE deleted ORDER BY id").fetchall()
        return num_rows, np.array([row[0] for row in rows], np.int64)

    def add(self, items: Sequence[NewItem], *, first_id: int) -> int:
        """Add items under ids from `first_id` on, in one transaction; returns how many replaced one of the same key."""
        columns = self._add_columns({name: value for item in items for name, value in item.metadata.items()})
        names = ["id", "key", "source", "width", "height", "thumbnail", *columns.values()]
        insert = f"INSERT INTO items ({', '.join(map(quoted, names))}) VALUES ({', '.join('?' * len(names))})"
        with self._writing():
            replaced = 0
            for number, item in enumerate(items):
                delete = "UPDATE items SET deleted = 1, thumbnail = NULL WHERE key = ? AND NOT deleted"
                replaced += self._connection.execute(delete, (item.key,)).rowcount
                fixed = (first_id + number, item.key, item.source, item.width, item.height, item.thumbnail)
                self._connection.execute(insert, (*fixed, *(item.metadata.get(name) for name in columns)))
            self._set("num_rows", first_id + len(items))
        return replaced

    def remove(self, keys: Iterable[str]) -> int:
        """Mark items as deleted, in one transaction; returns how many there were. Their thumbnails are dropped."""
        with self._writing():
            delete = "UPDATE items SET deleted = 1, thumbnail = NULL WHERE key = ? AND NOT deleted"
            return sum(self._connection.execute(delete, (key,)).rowcount for key in keys)

    def count(self) -> int:
        """Items that are not deleted."""
        with self._lock:
            (count,) = self._connection.execute("SELECT count(*) FROM items WHERE NOT deleted").fetchone()
        return int(count)

    def items(self, ids: Sequence[int]) -> dict[int, Item]:
        """Items by id, deleted ones too, so that a search's hits can be named whatever happened since."""
        found: dict[int, Item] = {}
        for start in range(0, len(ids), IDS_A_QUERY):
            block = [int(number) for number in ids[start : start + IDS_A_QUERY]]
            found.update({item.id: item for item in self._select(f"id IN ({', '.join('?' * len(block))})", block)})
        return found

    def page(self, offset: int, limit: int) -> list[Item]:
        """Items that are not deleted, by id."""
        return self._select("NOT deleted ORDER BY id LIMIT ? OFFSET ?", [limit, offset])

    def by_key(self, key: str) -> Item | None:
        """The item of a key, unless deleted."""
        return next(iter(self._select("key = ? AND NOT deleted", [key])), None)

    def thumbnail(self, number: int) -> bytes | None:
        """An item's thumbnail as JPEG bytes; None for an id without one."""
        with self._lock:
            row = self._connection.execute("SELECT thumbnail FROM items WHERE id = ? AND NOT deleted", (number,)).fetchone()
        return None if row is None else row[0]

    def metadata_columns(self) -> list[str]:
        """Names of the metadata columns, in the order they came."""
        with self._lock:
            rows = self._connection.execute("SELECT name FROM pragma_table_info('items')").fetchall()
        return [name for (name,) in rows if name not in FIXED]

    def _select(self, condition: str, parameters: Sequence[Any]) -> list[Item]:
        """Items by a condition of this file's own writing, with the user's values bound."""
        with self._lock:
            metadata = self.metadata_columns()
            names = ["id", "key", "source", "width", "height", *metadata]
            query = f"SELECT {', '.join(map(quoted, names))} FROM items WHERE {condition}"
            rows = self._connection.execute(query, parameters).fetchall()
        return [
            Item(
                id=row[0],
                key=row[1],
                source=row[2],
                width=row[3],
                height=row[4],
                metadata={name: value for name, value in zip(metadata, row[5:], strict=True) if value is not None},
            )
            for row in rows
        ]

    def _add_columns(self, samples: Mapping[str, Value]) -> dict[str, str]:
        """Make sure that each piece of metadata has a column; returns metadata name → column name."""
        known = {name.lower(): name for name in self.metadata_columns()}  # SQLite's names know no case
        columns: dict[str, str] = {}
        for name, value in sorted(samples.items()):
            wanted = f"{name}_" if name.lower() in FIXED else name
            if wanted.lower() not in known:
                kind = {int: "INTEGER", float: "REAL"}.get(type(value), "TEXT")
                with self._lock:
                    self._connection.execute(f"ALTER TABLE items ADD COLUMN {quoted(wanted)} {kind}")
                known[wanted.lower()] = wanted
            columns[name] = known[wanted.lower()]
        return columns

    def _set(self, name: str, value: Any) -> None:
        self._connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One snapshot for several reads."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it or nothing. EnvironmentProblem on a full disk."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    message = f"{self.path} cannot be written: {error}; free space or check its permissions."
                    raise EnvironmentProblem(message) from error
                raise


def quoted(name: str) -> str:
    """A column name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""').replace("\0", "") + '"'


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """Autocommit, so that transactions are exactly the ones written here."""
    uri = path.resolve().as_uri()
    if writable:
        connection = sqlite3.connect(f"{uri}?mode=rw", uri=True, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        return connection
    try:
        connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, check_same_thread=False, isolation_level=None)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # A WAL database needs a shared-memory file beside it, which a read-only folder cannot get; there nobody writes either.
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, check_same_thread=False, isolation_level=None)
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path} is not the catalogue of an index: {error}") from error
    return connection
