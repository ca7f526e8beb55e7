"""The catalogue: one SQLite file that is the truth about an index. Its transactions are what an
index's changes are.

Here are its connections, transactions and write-ahead log; what it holds is in tables.py. The file
may be replaced under an open catalogue, so each reading compares it with the one that the
connections at hand were opened on.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from featkit.errors import EnvironmentProblem, InputError
from featkit.index import writers
from featkit.index.tables import SCHEMA, Damaged, StateKey, Value, set_setting, state_key, upgrade
from featkit.index.vectors import Signature, missing

FORMAT = 1
APPLICATION_ID = 0x66656174  # "feat"; tells this file from any other SQLite file
BUSY_TIMEOUT_S = 30.0
# A log of more bytes begins again after a commit: SQLite's own bound, which it only keeps when
# nobody reads for a moment. A reader that does not end keeps the log; the next try comes after as
# many bytes more.
MAX_LOG_BYTES = 4 * 2**20
CHECKPOINT_TIMEOUT_MS = 1000

# No such table or column, and text that is no UTF-8, which has no code: the statements here are
# right for a whole catalogue.
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
    """An open catalogue. Any number of threads may read; whoever writes holds the index's writer
    lock and a token.

    It follows the file at its path: when that is replaced or overwritten, the next reader gets a
    new connection. InputError when it is missing, no catalogue, of a newer format or damaged;
    EnvironmentProblem when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token: str | None = None  # of this writer
        # the index that the token is for: its id and its file
        self._written: tuple[str, Signature] | None = None
        self._file = path.absolute()  # whatever the working folder becomes
        self._pool: list[sqlite3.Connection] = []
        self._pool_lock = threading.Lock()
        # of the file when the pool's connections were opened
        self._signature: Signature | None = None
        # the file that was opened last, and its log's inode
        self._last: tuple[Signature, int | None] | None = None
        # of the log then, where SQLite was told that the file does not change
        self._log_bytes: int | None = None
        self._kept_log_bytes = 0  # that could not be emptied
        self._closed = False

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
                own = {"id": secrets.token_hex(16), "changes": 0, "commit": secrets.token_hex(8)}
                rows = list({**settings, **own}.items())
                connection.executemany("INSERT INTO settings (name, value) VALUES (?, ?)", rows)
            finally:
                connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one committed state until the block ends, whatever is written
        meanwhile."""
        with _explained(self.path):
            connection, signature = self._borrow()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._give_back(connection, signature)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection within a transaction that is committed when the block ends, and undone when
        it raises.

        EnvironmentProblem when another writer's token has taken the place of this one's.
        """
        with self._exclusive() as connection:
            yield connection
            connection.execute("UPDATE settings SET value = value + 1 WHERE name = 'changes'")
            set_setting(connection, "commit", secrets.token_hex(8))
            connection.execute("COMMIT")
            self._bound_log(connection)

    @contextmanager
    def excluding_writers(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from while no other writes; for work on the vectors file. Errors as
        for `writing`."""
        with self._exclusive() as connection:
            yield connection

    def take_token(self) -> None:
        """Become the index's one writer. EnvironmentProblem when another one is seen to be at work."""
        with self._exclusive() as connection:
            token = writers.take_token(connection, self.path.parent)
            try:
                upgrade(connection)
                self._written = state_key(connection).index_id, self.signature()
                connection.execute("COMMIT")
            except BaseException:
                writers.forget_token(token)
                raise
        self.token = token

    def drop_token(self) -> None:
        """Cease to be the writer, and empty the log. Does nothing the second time. Errors as for
        `writing`."""
        if self.token is None:
            return
        writers.forget_token(self.token)
        token, self.token = self.token, None
        with self._exclusive() as connection:
            writers.drop_token(connection, token)
            connection.execute("COMMIT")
            self._checkpoint(connection, "TRUNCATE")

    def close(self) -> None:
        """Close all connections that no thread is using; those in use are closed when given back."""
        with self._pool_lock:
            self._closed = True
            idle, self._pool = self._pool, []
        for connection in idle:
            connection.close()

    def signature(self) -> Signature:
        """Of the file at the path now. InputError when there is none."""
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
        """InputError unless the file, as a new connection sees it, is of the same index as `key`."""
        with _explained(self.path):
            connection, _ = self._open_reader()
            try:
                if state_key(connection).index_id != key.index_id:
                    raise InputError(f"{self.path.parent} is being replaced; try again.")
            finally:
                connection.close()

    @contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        """A connection within a transaction that excludes other writers, after the check of the
        token if there is one."""
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
                if self._written is not None and state_key(connection).index_id != self._written[0]:
                    raise replaced
                if self.token is not None:
                    writers.check_token(connection, self.token, self.path.parent)
                yield connection
            finally:
                if connection.in_transaction:  # SQLite has undone it already on a full disk
                    connection.execute("ROLLBACK")
                connection.close()

    def _bound_log(self, connection: sqlite3.Connection) -> None:
        """Write the log into the catalogue, and have one that has grown too long begin again at its
        start.

        The first after each commit and not, as SQLite does, once in a while: a log that is left,
        since the writer is killed or still open, would be read into whatever somebody copies over
        the catalogue. It waits for nobody. The second waits for those who read an older state, who
        do not wait; SQLite by itself waits for a moment without readers.
        """
        log_bytes = self._log_status()[1]
        if log_bytes <= MAX_LOG_BYTES + self._kept_log_bytes:
            self._checkpoint(connection, "PASSIVE")
            return
        self._kept_log_bytes = 0 if self._checkpoint(connection, "RESTART") else log_bytes

    def _checkpoint(self, connection: sqlite3.Connection, mode: str) -> bool:
        """Write the log into the catalogue. False when a reader did not end in time; then the log
        keeps what was committed."""
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
            # a connection keeps pages in memory, which nothing but SQLite's own writing makes it
            # forget
            if changed:
                stale, self._pool, self._signature, self._log_bytes = (
                    self._pool,
                    [],
                    signature,
                    None,
                )
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
        """A connection for reading, however little the folder permits, and the signature of the
        file that it reads.

        WAL wants to write beside the catalogue even to read it. Where it may not, and no writer has
        left anything there, the file does not change and SQLite may be told so.
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
                f"{self.path.parent} was not closed by its last writer and may not be written here;"
                " open it once as somebody who may, or copy it."
            )
        connection = self._checked(self._connect("ro&immutable=1"))
        self._log_bytes = log_bytes
        return connection, signature

    def _refuse_old_log(self, signature: Signature) -> None:
        """InputError when the catalogue was replaced and the log was not: SQLite would read the old
        log into the new file."""
        log_inode, log_bytes = self._log_status()
        if (
            self._last is None
            or log_bytes == 0
            or signature.same_file(self._last[0])
            or log_inode != self._last[1]
        ):
            return
        raise InputError(
            f"{self.path} was replaced and the log beside it, {self.path.name}-wal, was not; close"
            " whatever uses the index and restore all of its files from one copy."
        )

    def _log_status(self) -> tuple[int | None, int]:
        """The inode and the size in bytes of the write-ahead log; None and 0 when there is none."""
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
            # a connection is used by one thread at a time, but not always by the same
            check_same_thread=False,
        )

    def _checked(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """The connection, when it leads to a catalogue of a format that is known."""
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
                    f"{self.path.parent} has format {version}, newer than the {FORMAT} read here;"
                    " update featkit."
                )
            connection.execute("PRAGMA query_only = ON")
            # a map of a file that is cut off ends the process
            connection.execute("PRAGMA mmap_size = 0")
            connection.execute("SELECT count(*) FROM settings").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection


def _damaged(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).encode("utf-8", "replace").decode().split())[:200]
    return InputError(
        f"{path} is damaged or no catalogue ({reason}); restore it from a copy, or index the"
        " embeddings again."
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into one sentence about the index."""
    try:
        yield
    except (Damaged, UnicodeDecodeError) as error:  # the second: of a name in the schema
        raise _damaged(path, error) from error
    except sqlite3.DatabaseError as error:
        # the low byte is the kind, the rest the detail
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        folder = path.parent
        if code == sqlite3.SQLITE_FULL:
            raise EnvironmentProblem(
                f"No space left to write {folder}; free some or choose another place."
            ) from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
            raise EnvironmentProblem(
                f"{folder} cannot be opened: {error}; see that you may read and write it."
            ) from error
        if code in DAMAGES:
            raise _damaged(path, error) from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise EnvironmentProblem(
                f"{folder} cannot be read or written just now: {error}; try again."
            ) from error
        raise
