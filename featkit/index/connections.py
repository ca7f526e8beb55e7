"""Connections to a catalogue that may be replaced at any time, and SQLite's errors in words."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featkit.errors import EnvironmentProblem, InputError
from featkit.index.tables import DamagedCatalogue
from featkit.index.vectors import Signature, missing

FORMAT = 3  # 1: without the table of thumbnails; 3: compacted, with a row map
APPLICATION_ID = 0x66656174  # "feat"; distinguishes this file from any other SQLite file
BUSY_TIMEOUT_S = 30.0

# SQLITE_ERROR is a missing table or column, and 0 is text that is not UTF-8, which has no code.
# Both mean damage, since our statements never fail on an undamaged catalogue.
DAMAGES = frozenset(
    (
        0,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_MISMATCH,
    )
)


class Connections:
    """Connections to the catalogue at a path, with a pool of those for reading. Thread-safe.

    When the file is replaced or overwritten, the next reader gets a new connection.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.absolute()  # stays right if the working directory changes
        self._pool: list[sqlite3.Connection] = []
        self._pool_lock = threading.Lock()
        # the file's signature when the pooled connections were opened
        self._signature: Signature | None = None
        # the file that was opened last, and the inode of its log
        self._last: tuple[Signature, int | None] | None = None
        # the log's size when the file was opened as immutable; None if it was not
        self._log_bytes: int | None = None
        self._closed = False

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

    def close(self) -> None:
        """Close all idle connections. Those in use are closed when their thread returns them."""
        with self._pool_lock:
            self._closed = True
            idle, self._pool = self._pool, []
        for connection in idle:
            connection.close()

    def borrow(self) -> tuple[sqlite3.Connection, Signature]:
        """Return a connection for reading and the signature of its file; `give_back` takes it."""
        signature = self.signature()
        with self._pool_lock:
            if self._closed:
                raise ValueError(f"{self.path.parent} has been closed")
            changed = signature != self._signature or (
                self._log_bytes is not None and self._log_bytes != self.log_status()[1]
            )
            stale: list[sqlite3.Connection] = []
            if changed:
                # A connection caches pages and drops them only when SQLite itself writes the file.
                stale, self._pool = self._pool, []
                self._signature, self._log_bytes = signature, None
            idle = self._pool.pop() if self._pool else None
        for connection in stale:
            connection.close()
        return (idle, signature) if idle is not None else self.open_reader()

    def give_back(self, connection: sqlite3.Connection, signature: Signature) -> None:
        """Keep a borrowed connection for the next reader, or close it if its file was replaced."""
        with self._pool_lock:
            if not self._closed and signature == self._signature:
                self._pool.append(connection)
                return
        connection.close()

    def open_reader(self) -> tuple[sqlite3.Connection, Signature]:
        """Return a connection for reading and the signature of its file.

        SQLite in WAL mode creates files next to the catalogue even to read it. If it may not, and
        no writer left a log, the file cannot change and is opened as immutable.
        """
        signature = self.signature()
        self._refuse_old_log(signature)
        if self._log_bytes is None:
            try:
                connection = self._checked(self.connect("rw"))
                self._last = signature, self.log_status()[0]
                return connection, signature
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (
                    sqlite3.SQLITE_CANTOPEN,
                    sqlite3.SQLITE_READONLY,
                ):
                    raise
        log_bytes = self.log_status()[1]
        if log_bytes > 0:
            raise EnvironmentProblem(
                f"{self.path.parent} was not closed by its last writer, and this user may not write"
                " it; open it once as a user who may, or copy it."
            )
        connection = self._checked(self.connect("ro&immutable=1"))
        self._log_bytes = log_bytes
        return connection, signature

    def _refuse_old_log(self, signature: Signature) -> None:
        """Raise InputError if the catalogue was replaced but its log was not.

        SQLite would apply the old log to the new file.
        """
        log_inode, log_bytes = self.log_status()
        if (
            self._last is None
            or log_bytes == 0
            or signature.same_file(self._last[0])
            or log_inode != self._last[1]
        ):
            return
        raise InputError(
            f"{self.path} was replaced, but its log {self.path.name}-wal was not; close all"
            " programs that use the index, and restore all of its files from one copy."
        )

    def log_status(self) -> tuple[int | None, int]:
        """Return the inode and size in bytes of the write-ahead log; (None, 0) without one."""
        try:
            status = self._file.with_name(self._file.name + "-wal").stat()
        except OSError:
            return None, 0
        return status.st_ino, status.st_size

    def connect(self, mode: str) -> sqlite3.Connection:
        """Open a connection; `mode` is SQLite's, such as "rw"."""
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
def explained(path: Path) -> Iterator[None]:
    """Turn exceptions of SQLite into one sentence about the index."""
    try:
        yield
    except (
        DamagedCatalogue,
        UnicodeDecodeError,
    ) as error:  # UnicodeDecodeError: a name in the schema
        raise _damaged(path, error) from error
    except sqlite3.DatabaseError as error:
        # The low byte is the primary error code.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        folder = path.parent
        if code == sqlite3.SQLITE_FULL:
            raise EnvironmentProblem(
                f"No space left to write {folder}; free some space, or choose another path."
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
