"""The catalogue: one SQLite file that is the truth about an index. Its transactions are what an index's changes are.

    settings            name, value: fingerprint, model_name, width, metric, run, proofs; `changes` counts transactions
    items               one row an item: id, key, source, width, height, thumbnail, deleted, and a column for each metadata
    metadata_columns    the name of a piece of metadata and its column in `items`

Ids count up from 0 without a gap and are never used again: a removed item's row stays, marked deleted and without its
thumbnail, so that row numbers of the vectors file and ids are one thing. Metadata columns have no declared type; a value
comes back as the int, float or str that went in. All text of others' reaches SQL as bound parameters, save column names,
which are quoted.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from featkit.errors import EnvironmentProblem, InputError
from featkit.sources.keys import other_spellings

FORMAT = 1
APPLICATION_ID = 0x66656174  # "feat"; tells this file from any other SQLite file
BUSY_TIMEOUT_S = 30.0
MAX_METADATA_COLUMNS = 1000
MAX_INTEGER = 2**63 - 1

Value = str | int | float

ITEM_COLUMNS = ("id", "key", "source", "width", "height", "thumbnail", "deleted")
# Names that SQLite gives to the primary key of its own accord.
RESERVED_COLUMNS = frozenset((*ITEM_COLUMNS, "rowid", "oid", "_rowid_"))

SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    source TEXT NOT NULL,
    width INTEGER,
    height INTEGER,
    thumbnail BLOB,
    deleted INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX items_by_key ON items (key) WHERE deleted = 0;
CREATE INDEX items_deleted ON items (id) WHERE deleted = 1;
CREATE TABLE metadata_columns (name TEXT PRIMARY KEY, column_name TEXT NOT NULL UNIQUE) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture of the index. Sizes are the upright original's, in pixels; None where they are not known."""

    id: int
    key: str
    source: str
    width: int | None
    height: int | None
    metadata: dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """What is stored of a picture beside its vector."""

    key: str
    source: str = ""
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    metadata: Mapping[str, Value | None] = field(default_factory=dict)


class Catalogue:
    """An open catalogue. Any number of threads may read; whoever writes holds the index's writer lock.

    InputError when it is missing, no catalogue, of a newer format or damaged; EnvironmentProblem when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pool: list[sqlite3.Connection] = []
        self._pool_lock = threading.Lock()
        self._closed = False
        self._frozen: tuple[int, ...] | None = None  # identity of a file that SQLite was told does not change
        with self.reading() as connection:
            self.settings: dict[str, Value] = dict(connection.execute("SELECT name, value FROM settings"))

    @staticmethod
    def create(path: Path, settings: Mapping[str, Value]) -> None:
        """Write a catalogue without items, closed."""
        with _explained(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.executescript(SCHEMA)
                rows = [*settings.items(), ("changes", 0)]
                connection.executemany("INSERT INTO settings (name, value) VALUES (?, ?)", rows)
            finally:
                connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one committed state until the block ends, whatever is written meanwhile."""
        with _explained(self.path):
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._give_back(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection within a transaction that is committed when the block ends, and undone when it raises."""
        with _explained(self.path):
            connection = self._connect("rw")
            try:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("UPDATE settings SET value = value + 1 WHERE name = 'changes'")
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:  # SQLite has undone it already on a full disk
                    connection.execute("ROLLBACK")
                connection.close()

    def close(self) -> None:
        """Close all connections that no thread is using; those in use are closed when given back."""
        with self._pool_lock:
            self._closed = True
            idle, self._pool = self._pool, []
        for connection in idle:
            connection.close()

    def _borrow(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise ValueError(f"{self.path.parent} has been closed")
            stale = []
            if self._frozen is not None and self._frozen != self._identity():  # somebody else may write here
                stale, self._pool, self._frozen = self._pool, [], None
            idle = self._pool.pop() if self._pool else None
        for connection in stale:
            connection.close()
        return idle if idle is not None else self._open_reader()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool_lock:
            if not self._closed:
                self._pool.append(connection)
                return
        connection.close()

    def _open_reader(self) -> sqlite3.Connection:
        """A connection for reading, however little the folder permits.

        WAL wants to write beside the catalogue even to read it. Where it may not, and no writer has left anything there,
        the file does not change and SQLite may be told so.
        """
        if self._frozen is None:
            try:
                return self._checked(self._connect("rw"))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
        identity = self._identity()
        if identity[-1] > 0:
            raise EnvironmentProblem(
                f"{self.path.parent} was not closed by its last writer and may not be written here; "
                "open it once as somebody who may, or copy it."
            )
        connection = self._checked(self._connect("ro&immutable=1"))
        self._frozen = identity
        return connection

    def _identity(self) -> tuple[int, ...]:
        """Differs once somebody writes; its last number is the size of the write-ahead log."""
        status = self.path.stat()
        try:
            log_bytes = self.path.with_name(self.path.name + "-wal").stat().st_size
        except FileNotFoundError:
            log_bytes = 0
        return status.st_ino, status.st_size, status.st_mtime_ns, log_bytes

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_S,
            check_same_thread=False,  # a connection is used by one thread at a time, but not always by the same
        )

    def _checked(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """The connection, when it leads to a catalogue of a format that is known."""
        try:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application_id != APPLICATION_ID:
                raise InputError(f"{self.path} is not the catalogue of a featkit index; name one that `featkit index` wrote.")
            if version > FORMAT:
                raise InputError(f"{self.path.parent} has format {version}, newer than the {FORMAT} read here; update featkit.")
            connection.execute("PRAGMA query_only = ON")
            connection.execute("SELECT count(*) FROM settings").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection


# What is read, within one state -------------------------------------------------------------------------------------


def num_changes(connection: sqlite3.Connection) -> int:
    """Committed transactions so far: two states with the same number are the same."""
    return int(connection.execute("SELECT value FROM settings WHERE name = 'changes'").fetchone()[0])


def num_rows(connection: sqlite3.Connection) -> int:
    """Ids given so far, those of removed items included: the next one, and the committed rows of the vectors file."""
    return int(connection.execute("SELECT coalesce(max(id), -1) + 1 FROM items").fetchone()[0])


def deleted_ids(connection: sqlite3.Connection) -> list[int]:
    """Ids of removed items, ascending."""
    return [row[0] for row in connection.execute("SELECT id FROM items WHERE deleted = 1 ORDER BY id")]


def metadata_columns(connection: sqlite3.Connection) -> dict[str, str]:
    """Columns of `items` that hold metadata, by the metadata's name."""
    return dict(connection.execute("SELECT name, column_name FROM metadata_columns ORDER BY name"))


def items_by_id(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Item]:
    """Items by id; a removed or unknown id is left out."""
    return {item.id: item for item in _select_many(connection, "id", list(ids))}


def items_by_key(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Item]:
    """Items by key; an unknown key is left out."""
    return {item.key: item for item in _select_many(connection, "key", list(keys))}


def stored_keys(connection: sqlite3.Connection, keys: Sequence[str], *, apart: Collection[str] = ()) -> dict[str, str]:
    """Return the key under which each of these items is stored: its own, else another spelling of it, if any.

    apart: keys of items that are their own, so that another spelling is not one of them; those of `keys` are, too.
    """
    stored = {key: key for key in _existing(connection, keys)}
    spellings: dict[str, str] = {}
    for key in keys:
        if key not in stored:
            for spelling in other_spellings(key):
                spellings.setdefault(spelling, key)
    own = set(keys)
    for spelling in _existing(connection, [one for one in spellings if one not in own and one not in apart]):
        stored.setdefault(spellings[spelling], spelling)
    return stored


def items_in_order(connection: sqlite3.Connection, *, offset: int, limit: int) -> list[Item]:
    """Items by ascending id, from the offset-th on."""
    return _select(connection, "deleted = 0 ORDER BY id LIMIT ? OFFSET ?", [limit, offset])


def thumbnail(connection: sqlite3.Connection, item_id: int) -> bytes | None:
    """JPEG bytes, or None where there is no such item or it has none."""
    row = connection.execute("SELECT thumbnail FROM items WHERE id = ? AND deleted = 0", [item_id]).fetchone()
    return None if row is None else row[0]


def _existing(connection: sqlite3.Connection, keys: Sequence[str], *, at_once: int = 500) -> list[str]:
    """Those of the keys that items have."""
    found: list[str] = []
    for start in range(0, len(keys), at_once):
        block = keys[start : start + at_once]
        marks = ", ".join("?" * len(block))
        found += [row[0] for row in connection.execute(f"SELECT key FROM items WHERE deleted = 0 AND key IN ({marks})", block)]
    return found


def _select_many(connection: sqlite3.Connection, column: str, values: Sequence[Value], *, at_once: int = 500) -> list[Item]:
    items: list[Item] = []
    for start in range(0, len(values), at_once):
        block = values[start : start + at_once]
        items += _select(connection, f"deleted = 0 AND {column} IN ({', '.join('?' * len(block))})", block)
    return items


def _select(connection: sqlite3.Connection, condition: str, parameters: Sequence[Value]) -> list[Item]:
    """Items for which a condition of this file's own wording holds."""
    names = metadata_columns(connection)
    columns = ", ".join(["id", "key", "source", "width", "height", *map(quoted, names.values())])
    items: list[Item] = []
    for item_id, key, source, width, height, *values in connection.execute(
        f"SELECT {columns} FROM items WHERE {condition}", parameters
    ):
        metadata = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        items.append(Item(id=item_id, key=key, source=source, width=width, height=height, metadata=metadata))
    return items


# What is written, within one transaction ----------------------------------------------------------------------------


def set_setting(connection: sqlite3.Connection, name: str, value: Value) -> None:
    """Store a setting in place of the one of this name, if there is one."""
    connection.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", [name, value])


def insert_items(
    connection: sqlite3.Connection, first_id: int, items: Sequence[NewItem], *, apart: Collection[str] = ()
) -> int:
    """Store items under the ids from `first_id` on; one whose key is there already takes its place. Return how many did.

    So does one whose key is another spelling of a key that is there and not in `apart`.

    InputError for a key or metadata that cannot be stored.
    """
    for item in items:
        _check(item)
    columns = _ensure_columns(connection, items)
    names = [*ITEM_COLUMNS[:-1], *map(quoted, columns.values())]
    statement = f"INSERT INTO items ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    stored = stored_keys(connection, [item.key for item in items], apart=apart)
    num_replaced = 0
    for item_id, item in enumerate(items, first_id):
        num_replaced += remove_items(connection, {item.key, stored.get(item.key, item.key)})
        values = [item.metadata.get(name) for name in columns]
        connection.execute(statement, [item_id, item.key, item.source, item.width, item.height, item.thumbnail, *values])
    return num_replaced


def remove_items(connection: sqlite3.Connection, keys: Iterable[str]) -> int:
    """Mark items as deleted and drop their thumbnails; unknown keys are passed over. Return how many there were."""
    statement = "UPDATE items SET deleted = 1, thumbnail = NULL WHERE key = ? AND deleted = 0"
    return sum(connection.execute(statement, [key]).rowcount for key in keys)


def quoted(column: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def _ensure_columns(connection: sqlite3.Connection, items: Sequence[NewItem]) -> dict[str, str]:
    """Add a column for each piece of metadata that has none yet; return all of them by name."""
    columns = metadata_columns(connection)
    taken = {column.casefold() for column in columns.values()} | RESERVED_COLUMNS
    for name in sorted({name for item in items for name in item.metadata} - set(columns)):
        if len(columns) == MAX_METADATA_COLUMNS:
            raise InputError(f"The items have more than {MAX_METADATA_COLUMNS:,} names of metadata; {name!r} is one too many.")
        column = name
        while column.casefold() in taken:  # SQLite does not tell Label from label
            column += "_"
        taken.add(column.casefold())
        connection.execute(f"ALTER TABLE items ADD COLUMN {quoted(column)}")
        connection.execute("INSERT INTO metadata_columns (name, column_name) VALUES (?, ?)", [name, column])
        columns[name] = column
    return columns


def _check(item: NewItem) -> None:
    """InputError for what SQLite would refuse or silently change."""
    if not item.key or not _storable(item.key) or not _storable(item.source):
        raise InputError(f"{item.key!r} of {item.source!r} cannot be a key: it is empty or no valid text.")
    for name, value in item.metadata.items():
        if not name or not _storable(name) or (isinstance(value, str) and not _storable(value)):
            raise InputError(f"{item.key}: the metadata {name!r} = {value!r} is empty or no valid text.")
        if not isinstance(value, str | int | float | None):
            raise InputError(f"{item.key}: the metadata {name!r} is {type(value).__name__}; text and numbers are stored.")
        if isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise InputError(f"{item.key}: the metadata {name!r} = {value} does not fit into 64 bits.")


def _storable(text: str) -> bool:
    """Whether text is valid Unicode (file names need not be) without a NUL, at which SQLite would end it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into one sentence about the index."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest the detail
        folder = path.parent
        if code == sqlite3.SQLITE_FULL:
            raise EnvironmentProblem(f"No space left to write {folder}; free some or choose another place.") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
            raise EnvironmentProblem(f"{folder} cannot be opened: {error}; see that you may read and write it.") from error
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise InputError(
                f"{path} is damaged or no catalogue ({error}); restore it from a copy, or index the embeddings again."
            ) from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise EnvironmentProblem(f"{folder} cannot be read or written just now: {error}; try again.") from error
        raise
