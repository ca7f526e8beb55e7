"""The catalogue: one SQLite file that is the truth about an index.

Every change of an index is one transaction of its catalogue. This file has the connections, the
transactions and the write-ahead log; tables.py and table_writer.py have what is stored. The file
may be replaced while a catalogue is open, so every read compares it with the file that the pooled
connections were opened on.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from featkit.errors import EnvironmentProblem, InputError
from featkit.index import writer_token
from featkit.index.records import Value
from featkit.index.table_writer import CatalogueWriter
from featkit.index.tables import SCHEMA, CatalogueReader, Damaged, StateKey
from featkit.index.vectors import Signature, missing

FORMAT = 1
APPLICATION_ID = 0x66656174  # "feat"; distinguishes this file from any other SQLite file
BUSY_TIMEOUT_S = 30.0
# A longer log is restarted after a commit. SQLite has the same bound, but keeps it only when there
# is a moment without readers. If a reader stays, the next attempt comes after as many bytes again.
MAX_LOG_BYTES = 4 * 2**20
CHECKPOINT_TIMEOUT_MS = 1000

# SQLITE_ERROR is a missing table or column, and 0 is text that is not UTF-8, which has no code.
# Both mean damage, since our statements are right for an undamaged catalogue.
DAMAGES = frozenset(
    (
        0,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_MISMATCH,
    )
)


class Catalogue:
    """An open catalogue. Any number of threads may read it; a writer holds the index's lock and token.

    When the file at its path is replaced or overwritten, the next read opens a new connection.
    InputError if the file is missing, damaged, not a catalogue, or has a newer format;
    EnvironmentProblem if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token: str | None = None  # this writer's
        # the id and the file of the index that the token belongs to
        self._written: tuple[str, Signature] | None = None
        self._file = path.absolute()  # stays right if the working directory changes
        self._pool: list[sqlite3.Connection] = []
        self._pool_lock = threading.Lock()
        # the file's signature when the pooled connections were opened
        self._signature: Signature | None = None
        # the file that was opened last, and the inode of its log
        self._last: tuple[Signature, int | None] | None = None
        # the log's size when the file was opened as immutable; None if it was not
        self._log_bytes: int | None = None
        self._kept_log_bytes = 0  # bytes of a log that could not be restarted
        self._closed = False

    @staticmethod
    def create(path: Path, settings: Mapping[str, Value]) -> None:
        """Write a catalogue without items, and close it."""
        with _explained(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.executescript(SCHEMA)
                own = {"id": secrets.token_hex(16), "changes": 0, "commit": secrets.token_hex(8)}
                rows = list({**settings, **own}.items())
                connection.executemany("INSERT INTO settings (name, value) VALUES (?, ?)", rows)
            finally:
                connection.close()

    @contextmanager
    def reading(self) -> Iterator[CatalogueReader]:
        """Yield a reader that sees one committed state until the block ends."""
        with _explained(self.path):
            connection, signature = self._borrow()
            try:
                connection.execute("BEGIN")
                yield CatalogueReader(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._give_back(connection, signature)

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
        with self._pool_lock:
            self._closed = True
            idle, self._pool = self._pool, []
        for connection in idle:
            connection.close()

    def signature(self) -> Signature:
        """Return the signature of the file now at the path. InputError if it does not exist."""
        try:
            return Signature.of(self._file.stat())
        except FileNotFoundError:
            if not self._file.parent.exists():
                raise InputError(
                    f"{self.path.parent} does not exist; make an index with `featkit index`."
                ) from None
            raise missing(self.path) from None
        except NotADirectoryError:
            raise InputError(
                f"{self.path.parent} is not a featkit index; name one that `featkit index` wrote."
            ) from None
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be read: {error.strerror}.") from error

    def check_still(self, key: StateKey) -> None:
        """Raise InputError unless a new connection sees the same index as `key`."""
        with _explained(self.path):
            connection, _ = self._open_reader()
            try:
                if CatalogueReader(connection).state_key().index_id != key.index_id:
                    raise InputError(f"{self.path.parent} is being replaced; try again.")
            finally:
                connection.close()

    @contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection within a transaction that excludes other writers.

        If this catalogue has a token, it is checked first.
        """
        with _explained(self.path):
            signature = self.signature()
            replaced = InputError(
                f"{self.path.parent} was replaced by another index after it was opened for writing;"
                " open it again."
            )
            if self._written is not None and not signature.same_file(self._written[1]):
                raise replaced
            connection = self._connect("rw")
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
        log_bytes = self._log_status()[1]
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

    def _borrow(self) -> tuple[sqlite3.Connection, Signature]:
        signature = self.signature()
        with self._pool_lock:
            if self._closed:
                raise ValueError(f"{self.path.parent} has been closed")
            changed = signature != self._signature or (
                self._log_bytes is not None and self._log_bytes != self._log_status()[1]
            )
            stale: list[sqlite3.Connection] = []
            if changed:
                # A connection caches pages and drops them only when SQLite itself writes the file.
                stale, self._pool = self._pool, []
                self._signature, self._log_bytes = signature, None
            idle = self._pool.pop() if self._pool else None
        for connection in stale:
            connection.close()
        return (idle, signature) if idle is not None else self._open_reader()

    def _give_back(self, connection: sqlite3.Connection, signature: Signature) -> None:
        with self._pool_lock:
            if not self._closed and signature == self._signature:
                self._pool.append(connection)
                return
        connection.close()

    def _open_reader(self) -> tuple[sqlite3.Connection, Signature]:
        """Return a connection for reading and the signature of its file.

        SQLite in WAL mode creates files next to the catalogue even to read it. If it may not, and
        no writer left a log, the file cannot change and is opened as immutable.
        """
        signature = self.signature()
        self._refuse_old_log(signature)
        if self._log_bytes is None:
            try:
                connection = self._checked(self._connect("rw"))
                self._last = signature, self._log_status()[0]
                return connection, signature
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (
                    sqlite3.SQLITE_CANTOPEN,
                    sqlite3.SQLITE_READONLY,
                ):
                    raise
        log_bytes = self._log_status()[1]
        if log_bytes > 0:
            raise EnvironmentProblem(
                f"{self.path.parent} was not closed by its last writer, and this user may not write"
                " it; open it once as a user who may, or copy it."
            )
        connection = self._checked(self._connect("ro&immutable=1"))
        self._log_bytes = log_bytes
        return connection, signature

    def _refuse_old_log(self, signature: Signature) -> None:
        """Raise InputError if the catalogue was replaced but its log was not.

        SQLite would apply the old log to the new file.
        """
        log_inode, log_bytes = self._log_status()
        if (
            self._last is None
            or log_bytes == 0
            or signature.same_file(self._last[0])
            or log_inode != self._last[1]
        ):
            return
        raise InputError(
            f"{self.path} was replaced, and its log, {self.path.name}-wal, was not; close all"
            " programs that use the index, and restore all of its files from one copy."
        )

    def _log_status(self) -> tuple[int | None, int]:
        """Return the inode and size in bytes of the write-ahead log; (None, 0) without one."""
        try:
            status = self._file.with_name(self._file.name + "-wal").stat()
        except OSError:
            return None, 0
        return status.st_ino, status.st_size

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._file.as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT_S,
            # one thread at a time uses a connection, but not always the same one
            check_same_thread=False,
        )

    def _checked(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Return the connection if its file is a catalogue in a known format; else close it."""
        try:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application_id != APPLICATION_ID:
                raise InputError(
                    f"{self.path} is not the catalogue of a featkit index; name one that `featkit"
                    " index` wrote."
                )
            if version > FORMAT:
                raise InputError(
                    f"{self.path.parent} has format {version}; this featkit reads formats up to"
                    f" {FORMAT}. Update featkit."
                )
            connection.execute("PRAGMA query_only = ON")
            # Reading a mapped page that another program truncated would kill the process.
            connection.execute("PRAGMA mmap_size = 0")
            connection.execute("SELECT count(*) FROM settings").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection


def _damaged(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).encode("utf-8", "replace").decode().split())[:200]
    return InputError(
        f"{path} is damaged or not a catalogue ({reason}); restore it from a copy, or index the"
        " embeddings again."
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn exceptions of SQLite into one sentence about the index."""
    try:
        yield
    except (Damaged, UnicodeDecodeError) as error:  # UnicodeDecodeError: a name in the schema
        raise _damaged(path, error) from error
    except sqlite3.DatabaseError as error:
        # The low byte is the primary error code.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        folder = path.parent
        if code == sqlite3.SQLITE_FULL:
            raise EnvironmentProblem(
                f"No space left to write {folder}; free some or choose another place."
            ) from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
            raise EnvironmentProblem(
                f"{folder} cannot be opened: {error}; check that you may read and write it."
            ) from error
        if code in DAMAGES:
            raise _damaged(path, error) from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise EnvironmentProblem(
                f"{folder} cannot be read or written right now: {error}; try again."
            ) from error
        raise
