"""The vectors file: rows of float32, append-only, the row number is the item's id.

What is committed is said by the catalogue alone: rows from its count on are what a writer has not
committed, or left when it died. Readers never read them; the next writer cuts them off.

    N committed rows, D width

The file is read by position, not mapped: reading a mapped page that another program has cut off
ends the process with SIGBUS, while a short read is an error with a sentence. One query over rows
that are read takes up to 2.3 times as long as over a map (100,000 x 384: 9 against 4 ms), so an
open index whose state is searched again keeps its rows in memory, where they fit.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.atomic import OPEN_FLAGS, explain_os_errors
from featkit.errors import EnvironmentProblem, InputError
from featkit.resources import spare_memory
from featkit.wording import counted

FLOAT32 = np.dtype("<f4")
# rows at most this far apart are read in one piece: copying what is between costs as much as a call
NEAR_BYTES = 64 * 2**10
PIECE_BYTES = 4 * 2**20
# A block is read once and scanned by each query: a small one stays in a core's cache, a large one
# has fewer heaps to merge.
SMALL_BLOCK_BYTES, LARGE_BLOCK_BYTES = 2**20, 4 * 2**20
FEW_QUERIES = 4
MAX_SHARE_HELD = 0.5  # of the spare memory

_seek_lock = threading.Lock()  # where the system cannot read at a position (Windows)


class Signature(NamedTuple):
    """What identifies a file and changes when it is written; two equal ones are of the same bytes."""

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
    """The vectors file, open for reading. Any number of threads may read; it is closed with the
    last reference to it.

    InputError when it is missing; EnvironmentProblem when it cannot be read.
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
        """Of the open file, which may no longer be the one at its path."""
        return Signature.of(os.fstat(self._descriptor))

    def check_length(self, num_rows: int) -> None:
        """InputError when the file holds fewer rows."""
        _check_length(self.path, self.signature().size, num_rows=num_rows, row_bytes=self.row_bytes)

    def read(self, start: int, rows: np.ndarray) -> None:
        """Fill `rows` (n, D) float32, C-contiguous, from row `start` on. InputError when the file
        ends before."""
        self.read_bytes(start * self.row_bytes, rows.reshape(-1).view(np.uint8).data)

    def read_bytes(self, place: int, rest: memoryview) -> None:
        """Fill `rest` with whole rows' bytes from the position `place` on. Errors as for `read`."""
        end = place + len(rest)
        while rest:
            try:
                num_bytes = _read_at(self._descriptor, rest, place)
            except OSError as error:
                raise EnvironmentProblem(
                    f"{self.path} cannot be read: {error.strerror}; check the disk."
                ) from error
            if num_bytes == 0:
                _check_length(
                    self.path, place, num_rows=end // self.row_bytes, row_bytes=self.row_bytes
                )
            rest, place = rest[num_bytes:], place + num_bytes


class Rows:
    """The first N rows of a vectors file, for the search: read in blocks, or by id.

    The second scan keeps what it reads in memory, for those that follow, unless it would take more
    than half of what is left.
    """

    def __init__(self, file: VectorFile, num_rows: int) -> None:
        self.file, self.num_rows, self.width = file, num_rows, file.width
        self._held: np.ndarray | None = None  # all rows
        self._num_scans = 0
        self._holding = threading.Lock()  # by the scan that fills the memory

    def blocks(self, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows (n, D) float32) for all rows, in blocks that suit a scan by so
        many queries.

        A block is valid until the next one is asked for. Every block but the last has a multiple of
        8 rows, so that each begins at a whole byte of a bitmap.
        """
        few = num_queries < FEW_QUERIES
        at_once = max(
            8, (SMALL_BLOCK_BYTES if few else LARGE_BLOCK_BYTES) // self.file.row_bytes // 8 * 8
        )
        if (held := self._held) is not None:
            step = max(1, self.num_rows) if few else at_once
            yield from (
                (start, held[start : start + step]) for start in range(0, self.num_rows, step)
            )
            return
        self._num_scans += 1
        if self._num_scans > 1 and self._fits_in_memory() and self._holding.acquire(blocking=False):
            try:
                yield from self._hold(at_once)
            finally:
                self._holding.release()
            return
        buffer = np.empty((min(at_once, self.num_rows), self.width), FLOAT32)
        for start in range(0, self.num_rows, at_once):
            block = buffer[: self.num_rows - start]
            self.file.read(start, block)
            yield start, block

    def _hold(self, at_once: int) -> Iterator[tuple[int, np.ndarray]]:
        rows = np.empty((self.num_rows, self.width), FLOAT32)
        for start in range(0, self.num_rows, at_once):
            block = rows[start : start + at_once]
            self.file.read(start, block)
            yield start, block
        self._held = rows

    def _fits_in_memory(self) -> bool:
        return self.num_rows * self.file.row_bytes <= MAX_SHARE_HELD * spare_memory()

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Rows (n, D) float32 by id, in any order, from 0 to N - 1."""
        if self._held is not None:
            return np.take(self._held, ids, axis=0)
        taken = np.empty((len(ids), self.width), FLOAT32)
        if len(ids) == 0:
            return taken
        row_bytes = self.file.row_bytes
        into = taken.reshape(-1).view(np.uint8).data
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        near, piece = NEAR_BYTES // row_bytes, max(1, PIECE_BYTES // row_bytes)
        splits = (np.diff(ordered) > near) | (np.diff(ordered // piece) > 0)
        bounds = [0, *(np.flatnonzero(splits) + 1).tolist(), len(order)]
        for begin, end in itertools.pairwise(bounds):
            first, last = int(ordered[begin]), int(ordered[end - 1])
            if end - begin == 1:
                position = int(order[begin])
                self.file.read_bytes(
                    first * row_bytes, into[position * row_bytes : (position + 1) * row_bytes]
                )
                continue
            rows = np.empty((last - first + 1, self.width), FLOAT32)
            self.file.read(first, rows)
            taken[order[begin:end]] = rows[ordered[begin:end] - first]
        return taken


class WitnessedRows:
    """Rows that remember the checksum of each row that was taken: of the bytes that an answer was
    made of."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.num_rows, self.width = rows.num_rows, rows.width
        self.checksums: dict[int, int] = {}

    def blocks(self, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        """As for `Rows`."""
        return self._rows.blocks(num_queries)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """As for `Rows`."""
        taken = self._rows.take(ids)
        self.checksums.update(zip(ids.tolist(), checksums(taken), strict=True))
        return taken


class VectorWriter:
    """Appends rows. InputError when the file is missing; EnvironmentProblem when it cannot be
    written.

    Every method is called within a write transaction of the catalogue, in which this writer's token
    has been found to be the current one: so no other writer's committed rows are overwritten or
    cut.
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
        """Whether `close` has been called."""
        return self._descriptor < 0

    def is_at(self, signature: Signature) -> bool:
        """Whether the open file is the one with this signature."""
        return signature.same_file(Signature.of(os.fstat(self._descriptor)))

    def write(self, start: int, vectors: np.ndarray) -> None:
        """Write (n, D) rows from row `start` on and flush them to the disk."""
        rest = np.ascontiguousarray(vectors, FLOAT32).reshape(-1).view(np.uint8).data
        place = start * self.width * FLOAT32.itemsize
        with explain_os_errors(self.path):
            while rest:
                written = _write_at(self._descriptor, rest, place)
                if written == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest, place = rest[written:], place + written
            os.fsync(self._descriptor)

    def cut(self, num_rows: int) -> None:
        """Remove the rows from `num_rows` on, if there are any. InputError when committed rows are
        missing."""
        row_bytes = self.width * FLOAT32.itemsize
        with explain_os_errors(self.path):
            size = os.fstat(self._descriptor).st_size
            _check_length(self.path, size, num_rows=num_rows, row_bytes=row_bytes)
            if size > num_rows * row_bytes:
                os.ftruncate(self._descriptor, num_rows * row_bytes)

    def close(self) -> None:
        """Does nothing the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def checksums(vectors: np.ndarray) -> list[int]:
    """CRC-32 of each row's bytes in the file, for (n, D) float32."""
    return [zlib.crc32(row) for row in np.ascontiguousarray(vectors, FLOAT32)]


def signature_at(path: Path) -> Signature:
    """Of the file that is at the path now. InputError when it is missing; EnvironmentProblem when
    it cannot be asked."""
    try:
        return Signature.of(path.stat())
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be read: {error.strerror}.") from error


def missing(path: Path) -> InputError:
    """The error for a file of the index that is not there."""
    return InputError(f"{path} is missing; restore it from a copy, or index the embeddings again.")


def _check_length(path: Path, length: int, *, num_rows: int, row_bytes: int) -> None:
    wanted = num_rows * row_bytes
    if length < wanted:
        raise InputError(
            f"{path} is truncated: {counted(length, 'byte')} where {counted(num_rows, 'vector')} of"
            f" {row_bytes // FLOAT32.itemsize} take {wanted:,}; restore it from a copy, or index"
            " the embeddings again."
        )


def _read_at(descriptor: int, buffer: memoryview, place: int) -> int:
    """Read into the buffer from a position in the file; the number of bytes read, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], place)
    with _seek_lock:
        os.lseek(descriptor, place, os.SEEK_SET)
        data = os.read(descriptor, min(len(buffer), PIECE_BYTES))
    buffer[: len(data)] = data
    return len(data)


def _write_at(descriptor: int, data: memoryview, place: int) -> int:
    """Write at a position in the file; the number of bytes written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, place)
    with _seek_lock:
        os.lseek(descriptor, place, os.SEEK_SET)
        return os.write(descriptor, data)
