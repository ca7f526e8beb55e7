"""The catalogue: one SQLite file with the authoritative state of an index.

Every change of an index is one transaction of its catalogue. This file has the transactions and the
write-ahead log; tables.py and table_writer.py have what is stored, and connections.py follows the
file when it is replaced while the catalogue is open.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from featkit.errors import InputError
from featkit.index import writer_token
from featkit.index.connections import APPLICATION_ID, Connections, explained
from featkit.index.records import Value
from featkit.index.row_map import VectorsRecord
from featkit.index.table_writer import NEW_FORMAT, CatalogueWriter
from featkit.index.tables import SCHEMA, CatalogueReader, StateKey
from featkit.index.vectors import Signature

# A longer log is restarted after a commit. SQLite has the same bound, but enforces it only when no
# reader is active. If a reader stays, the next attempt comes after that many more bytes.
MAX_LOG_BYTES = 4 * 2**20
CHECKPOINT_TIMEOUT_MS = 1000


class Catalogue:
    """An open catalogue.

    Any number of threads may read it. A writer holds the index's lock and token.

    When the file at its path is replaced or overwritten, the next read opens a new connection.
    InputError if the file is missing, damaged, not a catalogue, or has a newer format;
    EnvironmentProblem if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token: str | None = None  # this writer's
        # the id and the file of the index that the token belongs to
        self._written: tuple[str, Signature] | None = None
        self._connections = Connections(path)
        self._kept_log_bytes = 0  # size in bytes of a log that could not be restarted

    @staticmethod
    def create(path: Path, settings: Mapping[str, Value]) -> None:
        """Write a catalogue without items, and close it."""
        with explained(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {NEW_FORMAT}")
                connection.executescript(SCHEMA)
                own = {"id": secrets.token_hex(16), "changes": 0, "commit": secrets.token_hex(8)}
                rows = list({**settings, **own}.items())
                connection.executemany("INSERT INTO settings (name, value) VALUES (?, ?)", rows)
            finally:
                connection.close()

    @contextmanager
    def reading(self) -> Iterator[CatalogueReader]:
        """Yield a reader that sees one committed state until the block ends."""
        with explained(self.path):
            connection, signature = self._connections.borrow()
            try:
                connection.execute("BEGIN")
                yield CatalogueReader(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._connections.give_back(connection, signature)

    @contextmanager
    def writing(self) -> Iterator[CatalogueWriter]:
        """Yield a writer within a transaction: committed when the block ends, undone if it raises.

        EnvironmentProblem if another writer's token has replaced this one's.
        """
        with self._exclusive() as connection:
            writer = CatalogueWriter(connection)
            yield writer
            writer.count_change()
            connection.execute("COMMIT")
            self._bound_log(connection)

    @contextmanager
    def publishing(self, index_id: str) -> Iterator[CatalogueWriter]:
        """Yield a writer within a transaction of its own, whoever writes the index at this time.

        InputError if the catalogue now belongs to another index than `index_id`.
        """
        with self._exclusive() as connection:
            writer = CatalogueWriter(connection)
            if writer.state_key().index_id != index_id:
                raise InputError(f"{self.path.parent} was replaced by another index; try again.")
            yield writer
            writer.count_change()
            connection.execute("COMMIT")
            self._bound_log(connection)

    @contextmanager
    def excluding_writers(self) -> Iterator[CatalogueReader]:
        """Yield a reader while nobody else can write, for work on the vectors file.

        Raises what `writing` raises.
        """
        with self._exclusive() as connection:
            yield CatalogueReader(connection)

    def take_token(self) -> None:
        """Become the index's only writer. EnvironmentProblem if another writer is alive."""
        with self._exclusive() as connection:
            token = writer_token.take(connection, self.path.parent)
            try:
                writer = CatalogueWriter(connection)
                writer.upgrade()
                self._written = writer.state_key().index_id, self.signature()
                connection.execute("COMMIT")
            except BaseException:
                writer_token.forget(token)
                raise
        self.token = token

    def drop_token(self) -> None:
        """Stop being the writer, and empty the log. Does nothing the second time.

        Raises what `writing` raises.
        """
        if self.token is None:
            return
        writer_token.forget(self.token)
        token, self.token = self.token, None
        with self._exclusive() as connection:
            writer_token.drop(connection, token)
            connection.execute("COMMIT")
            self._checkpoint(connection, "TRUNCATE")

    def close(self) -> None:
        """Close all idle connections. Those in use are closed when their thread returns them."""
        self._connections.close()

    def signature(self) -> Signature:
        """Return the signature of the file now at the path. InputError if it does not exist."""
        return self._connections.signature()

    def check_still(self, key: StateKey) -> VectorsRecord:
        """Return the record of the vectors file that a new connection sees.

        InputError unless it sees the same index as `key`.
        """
        with explained(self.path):
            connection, _ = self._connections.open_reader()
            try:
                reader = CatalogueReader(connection)
                if reader.state_key().index_id != key.index_id:
                    raise InputError(f"{self.path.parent} is being replaced; try again.")
                return reader.vectors_record()
            finally:
                connection.close()

    @contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection within a transaction that excludes other writers.

        If this catalogue has a token, it is checked first.
        """
        with explained(self.path):
            signature = self.signature()
            replaced = InputError(
                f"{self.path.parent} was replaced by another index after it was opened for writing;"
                " open it again."
            )
            if self._written is not None and not signature.same_file(self._written[1]):
                raise replaced
            connection = self._connections.connect("rw")
            try:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA journal_size_limit = {MAX_LOG_BYTES}")
                connection.execute("BEGIN IMMEDIATE")
                if self._written is not None:
                    index_id = CatalogueReader(connection).state_key().index_id
                    if index_id != self._written[0]:
                        raise replaced
                if self.token is not None:
                    writer_token.check(connection, self.token, self.path.parent)
                yield connection
            finally:
                if connection.in_transaction:  # False on a full disk: SQLite has rolled back
                    connection.execute("ROLLBACK")
                connection.close()

    def _bound_log(self, connection: sqlite3.Connection) -> None:
        """Copy the log into the catalogue after a commit, and restart a log that is too long."""
        log_bytes = self._connections.log_status()[1]
        if log_bytes <= MAX_LOG_BYTES + self._kept_log_bytes:
            # After every commit, while SQLite does so every 1,000 pages: if the writer is killed,
            # the log stays, and SQLite would apply it to any file copied over the catalogue.
            # PASSIVE waits for nobody.
            self._checkpoint(connection, "PASSIVE")
            return
        # RESTART waits for readers of older states, and new readers do not wait for it. SQLite's
        # automatic checkpoint restarts the log only if it finds a moment without readers.
        self._kept_log_bytes = 0 if self._checkpoint(connection, "RESTART") else log_bytes

    def _checkpoint(self, connection: sqlite3.Connection, mode: str) -> bool:
        """Copy the log into the catalogue. Return False if a reader did not finish in time.

        Nothing is lost then: the log keeps what was committed.
        """
        try:
            connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_TIMEOUT_MS}")
            busy, *_ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.DatabaseError:
            return False
        return not busy
