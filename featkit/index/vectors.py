"""The vectors file: append-only rows of float32, in which row i is the vector of item i.

    N committed rows, D width

After a compaction it lacks the rows of removed items, and row_map.py tells the row of an item.

Only the catalogue knows how many rows are committed. Rows after those are ones that a writer has
not committed yet, or left when it died. Readers never read them; the next writer truncates them.

The file is read with preads, not mapped: touching a mapped page that another program has truncated
kills the process with SIGBUS, while a short read becomes an error message.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.atomic import OPEN_FLAGS, explain_os_errors
from featkit.errors import EnvironmentProblem, InputError
from featkit.folders import CATALOGUE_FILE
from featkit.wording import counted

FLOAT32 = np.dtype("<f4")
PIECE_BYTES = 4 * 2**20

_seek_lock = threading.Lock()  # for systems without pread and pwrite (Windows)


class Signature(NamedTuple):
    """Identity and time stamps of a file. Equal signatures mean that the bytes are the same."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def same_file(self, other: Signature) -> bool:
        return (self.device, self.inode) == (other.device, other.inode)


class VectorFile:
    """The vectors file, open for reading by any number of threads.

    It is closed with the last reference to it. InputError if it is missing; EnvironmentProblem if
    it cannot be read.
    """

    def __init__(self, path: Path, *, width: int) -> None:
        self.path, self.width = path, width
        self.row_bytes = width * FLOAT32.itemsize
        try:
            self._descriptor = os.open(path, os.O_RDONLY | OPEN_FLAGS)
        except FileNotFoundError:
            raise missing(path) from None
        except OSError as error:
            raise EnvironmentProblem(f"{path} cannot be read: {error.strerror}.") from error
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def signature(self) -> Signature:
        """Return the signature of the open file, which may no longer be the one at its path."""
        return Signature.of(os.fstat(self._descriptor))

    def check_length(self, num_rows: int) -> None:
        """Raise InputError if the file has fewer rows."""
        _check_length(self.path, self.signature().size, num_rows=num_rows, row_bytes=self.row_bytes)

    def read(self, start: int, rows: np.ndarray) -> None:
        """Fill `rows`, (n, D) float32, C-contiguous, with the rows from `start` on.

        InputError if the file ends too early.
        """
        self.read_bytes(start * self.row_bytes, rows.reshape(-1).view(np.uint8).data)

    def read_bytes(self, position: int, rest: memoryview) -> None:
        """Fill `rest` with the bytes of whole rows from `position` on. Raises as `read` does."""
        end = position + len(rest)
        while rest:
            try:
                num_bytes = _read_at(self._descriptor, rest, position)
            except OSError as error:
                raise EnvironmentProblem(
                    f"{self.path} cannot be read: {error.strerror}; check the disk."
                ) from error
            if num_bytes == 0:
                num_rows = end // self.row_bytes
                _check_length(self.path, position, num_rows=num_rows, row_bytes=self.row_bytes)
            rest, position = rest[num_bytes:], position + num_bytes

    def read_rows(self, rows: Sequence[int], places: Sequence[int], into: memoryview) -> None:
        """Read rows that are far from each other: the i-th one to row `places[i]` of a buffer.

        Raises as `read` does.
        """
        descriptor, size = self._descriptor, self.row_bytes
        for row, place in zip(rows, places, strict=True):
            target = into[place * size : (place + 1) * size]
            try:
                is_whole = _read_at(descriptor, target, row * size) == size
            except OSError:
                is_whole = False
            if not is_whole:  # again, with an error message or the rest
                self.read_bytes(row * size, target)


class VectorWriter:
    """Appends rows to the vectors file, overwrites damaged ones, and truncates it.

    Call its methods only within a write transaction of the catalogue, which has checked that this
    writer's token is the current one. So no row that another writer committed is overwritten or cut
    off. InputError if the file is missing; EnvironmentProblem if it cannot be written.
    """

    def __init__(self, path: Path, *, width: int) -> None:
        self.path, self.width = path, width
        with explain_os_errors(path):
            try:
                self._descriptor = os.open(path, os.O_RDWR | OPEN_FLAGS)
            except FileNotFoundError:
                raise missing(path) from None

    @property
    def is_closed(self) -> bool:
        """Return whether `close` has been called."""
        return self._descriptor < 0

    def is_at(self, signature: Signature) -> bool:
        """Return whether the open file is the one with this signature."""
        return signature.same_file(Signature.of(os.fstat(self._descriptor)))

    def write(self, start: int, vectors: np.ndarray) -> None:
        """Write rows (n, D) from row `start` on, and flush them to the disk."""
        self._put(start, vectors)
        self._flush()

    def overwrite(self, positions: np.ndarray, vectors: np.ndarray) -> None:
        """Write rows (n, D) in the place of those at `positions`, and flush them to the disk."""
        for position, vector in zip(positions.tolist(), vectors, strict=True):
            self._put(position, vector)
        self._flush()

    def _put(self, start: int, vectors: np.ndarray) -> None:
        rest = np.ascontiguousarray(vectors, FLOAT32).reshape(-1).view(np.uint8).data
        position = start * self.width * FLOAT32.itemsize
        with explain_os_errors(self.path):
            while rest:
                num_bytes = _write_at(self._descriptor, rest, position)
                if num_bytes == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest, position = rest[num_bytes:], position + num_bytes

    def _flush(self) -> None:
        with explain_os_errors(self.path):
            os.fsync(self._descriptor)

    def cut(self, num_rows: int) -> None:
        """Truncate the file to `num_rows` rows. InputError if it has fewer."""
        row_bytes = self.width * FLOAT32.itemsize
        with explain_os_errors(self.path):
            size = os.fstat(self._descriptor).st_size
            _check_length(self.path, size, num_rows=num_rows, row_bytes=row_bytes)
            if size > num_rows * row_bytes:
                os.ftruncate(self._descriptor, num_rows * row_bytes)

    def close(self) -> None:
        """Close the file. Does nothing the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def checksums(vectors: np.ndarray) -> list[int]:
    """Return the CRC-32 of each row's bytes in the file, for (n, D) float32."""
    return [zlib.crc32(row) for row in np.ascontiguousarray(vectors, FLOAT32)]


def signature_at(path: Path) -> Signature:
    """Return the signature of the file now at the path.

    InputError if it is missing; EnvironmentProblem if it cannot be examined.
    """
    try:
        return Signature.of(path.stat())
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be read: {error.strerror}.") from error


def missing(path: Path) -> InputError:
    """Return the error for a missing file of an index."""
    remedy = (
        "index the embeddings again"
        if path.name == CATALOGUE_FILE
        else "run `featkit repair --from` with the embeddings or images of its index"
    )
    return InputError(f"{path} is missing; restore it from a copy, or {remedy}.")


def _check_length(path: Path, length: int, *, num_rows: int, row_bytes: int) -> None:
    needed = num_rows * row_bytes
    if length < needed:
        raise InputError(
            f"{path} is truncated: it has {counted(length, 'byte')}, but"
            f" {counted(num_rows, 'vector')} of {row_bytes // FLOAT32.itemsize} dimensions take"
            f" {needed:,}; restore it from a copy, or run `featkit repair`, which drops the images"
            " that it lost, or restores them with --from."
        )


def _read_at(descriptor: int, buffer: memoryview, position: int) -> int:
    """Read into the buffer from a position; return the number of bytes, 0 at the file's end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], position)
    with _seek_lock:
        os.lseek(descriptor, position, os.SEEK_SET)
        data = os.read(descriptor, min(len(buffer), PIECE_BYTES))
    buffer[: len(data)] = data
    return len(data)


def _write_at(descriptor: int, data: memoryview, position: int) -> int:
    """Write at a position in the file; return the number of bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, position)
    with _seek_lock:
        os.lseek(descriptor, position, os.SEEK_SET)
        return os.write(descriptor, data)
