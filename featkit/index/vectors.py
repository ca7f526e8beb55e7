"""The vectors file: append-only rows of float32, in which row i is the vector of item i.

    N committed rows, D width

After a compaction it lacks the rows of removed items, and row_map.py tells the row of an item.

Only the catalogue knows how many rows are committed. Rows after those are ones that a writer has
not committed yet, or left when it died. Readers never read them; the next writer truncates them.

The file is read with preads, not mapped: touching a mapped page that another program has truncated
kills the process with SIGBUS, while a short read becomes an error message. A query over rows that
are read takes up to 2.3 times as long as over a map (100,000 x 384: 9 ms instead of 4), so an open
index keeps its rows in memory from the second search on, if they fit.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.atomic import OPEN_FLAGS, explain_os_errors
from featkit.errors import EnvironmentProblem, InputError
from featkit.folders import CATALOGUE_FILE
from featkit.index.row_map import EVERY_ID, NoSuchRow, RowMap
from featkit.resources import spare_memory
from featkit.wording import counted

FLOAT32 = np.dtype("<f4")
# Rows at most this far apart are read in one piece: copying the gap costs as much as a system call.
NEAR_BYTES = 64 * 2**10
PIECE_BYTES = 4 * 2**20
# A block is read once and scanned by each query: a small block stays in a core's cache, and large
# blocks leave fewer results to merge.
SMALL_BLOCK_BYTES, LARGE_BLOCK_BYTES = 2**20, 4 * 2**20
FEW_QUERIES = 4
MAX_SHARE_HELD = 0.5  # of the spare memory, for rows kept in memory

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


class FileRows:
    """The committed rows of a vectors file, read in blocks or by id. N ids have been given so far.

    ids: the id of each row, ascending; None if row i is the vector of item i, for all N items. The
    second scan keeps the rows in memory for later calls, and so does taking as many rows by id
    as there are, unless they would take more than half of the spare memory, or than `most_held`
    bytes.
    """

    def __init__(
        self,
        file: VectorFile,
        num_rows: int,
        *,
        row_map: RowMap = EVERY_ID,
        most_held: int | None = None,
    ) -> None:
        self.file, self.num_rows, self.width = file, num_rows, file.width
        self.row_map, self.num_stored = row_map, row_map.record.num_stored(num_rows)
        self._most_held = most_held
        self._held: np.ndarray | None = None  # all rows
        self._is_verified: np.ndarray | None = None  # which of the held rows were, (N,) bool
        self._num_scans = self._num_taken = 0
        self._holding = threading.Lock()  # held by the scan that fills `_held`

    @property
    def ids(self) -> np.ndarray | None:
        """The id of each row, ascending; None if row i is the vector of item i.

        It is made each time: 8 bytes a row to keep for long is more than 2 ms of a million are
        worth.
        """
        return self.row_map.ids(self.num_rows)

    def blocks(self, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, rows (n, D) float32) for all rows, in blocks sized for `num_queries`.

        Rows are counted in the file.
        A block is valid until the next one is requested. Every block except the last has a multiple
        of 8 rows, so that each starts at a whole byte of a bitmap.
        """
        few = num_queries < FEW_QUERIES
        at_once = max(
            8, (SMALL_BLOCK_BYTES if few else LARGE_BLOCK_BYTES) // self.file.row_bytes // 8 * 8
        )
        if (held := self._held) is not None:
            step = max(1, self.num_stored) if few else at_once
            yield from (
                (start, held[start : start + step]) for start in range(0, self.num_stored, step)
            )
            return
        self._num_scans += 1
        if self._num_scans > 1 and self._fits_in_memory() and self._holding.acquire(blocking=False):
            try:
                yield from self._hold(at_once)
            finally:
                self._holding.release()
            return
        buffer = np.empty((min(at_once, self.num_stored), self.width), FLOAT32)
        for start in range(0, self.num_stored, at_once):
            block = buffer[: self.num_stored - start]
            self.file.read(start, block)
            yield start, block

    def blocks_of(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first position, rows (n, D) float32) of the rows with these ids, ascending."""
        at_once = max(8, SMALL_BLOCK_BYTES // self.file.row_bytes // 8 * 8)
        for start in range(0, len(ids), at_once):
            yield start, self.take(ids[start : start + at_once])

    def _hold(self, at_once: int) -> Iterator[tuple[int, np.ndarray]]:
        rows = np.empty((self.num_stored, self.width), FLOAT32)
        for start in range(0, self.num_stored, at_once):
            block = rows[start : start + at_once]
            self.file.read(start, block)
            yield start, block
        self._is_verified = np.zeros(self.num_rows, bool)
        self._held = rows

    def _fits_in_memory(self) -> bool:
        num_bytes = self.num_stored * self.file.row_bytes
        if self._most_held is not None and num_bytes > self._most_held:
            return False
        return num_bytes <= MAX_SHARE_HELD * spare_memory()

    def _hold_if_due(self, num_taken: int) -> None:
        """Keep all rows in memory if as many were taken as a scan reads."""
        self._num_taken += num_taken
        if self._num_taken < self.num_stored or not self._holding.acquire(blocking=False):
            return
        try:
            self._num_taken = 0  # asks for the spare memory once in a while only
            if self._held is None and self._fits_in_memory():
                for _ in self._hold(max(8, LARGE_BLOCK_BYTES // self.file.row_bytes)):
                    pass
        finally:
            self._holding.release()

    def verified(self) -> np.ndarray | None:
        """Return which of the rows in memory have had the right checksum, (N,) bool, to be updated.

        None if rows are not kept in memory.
        """
        return self._is_verified if self._held is not None else None

    def in_memory(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the rows that are kept in memory and the places of those with these ids in them;
        None if they are not kept."""
        held = self._held
        return None if held is None else (held, self.row_map.rows_of(ids))

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows (n, D) float32 with these ids, which may be in any order.

        InputError if one has no row, which is damage of the catalogue.
        """
        try:
            positions = self.row_map.rows_of(ids)
        except NoSuchRow as error:
            raise InputError(
                f"{self.file.path} has no vector of item {error.item_id}; restore the index from a"
                " copy."
            ) from error
        return self._take(positions)

    def _take(self, positions: np.ndarray) -> np.ndarray:
        """Return rows by their positions in the file."""
        if self._held is None:
            self._hold_if_due(len(positions))
        if self._held is not None:
            return np.take(self._held, positions, axis=0)
        taken = np.empty((len(positions), self.width), FLOAT32)
        if len(positions) == 0:
            return taken
        row_bytes = self.file.row_bytes
        into = taken.reshape(-1).view(np.uint8).data
        order = np.argsort(positions, kind="stable")
        ordered = positions[order]
        near, piece = NEAR_BYTES // row_bytes, max(1, PIECE_BYTES // row_bytes)
        splits = (np.diff(ordered) > near) | (np.diff(ordered // piece) > 0)
        if splits.all():  # no two rows are near each other
            self.file.read_rows(ordered.tolist(), order.tolist(), into)
            return taken
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


class ChecksummedRows:
    """Rows that know the checksums of the rows taken: of the very bytes that an answer used.

    Rows that are kept in memory are verified once.
    """

    def __init__(self, rows: FileRows) -> None:
        self._rows = rows
        self.num_rows, self.num_stored, self.width = rows.num_rows, rows.num_stored, rows.width
        self._is_verified = rows.verified()  # None: rows may be read from the file each time
        self._taken: list[tuple[np.ndarray, np.ndarray]] = []  # ids and rows

    @property
    def ids(self) -> np.ndarray | None:
        """The id of each row, as `FileRows` has them."""
        return self._rows.ids

    def unverified(self, ids: np.ndarray) -> np.ndarray:
        """Return those of the ids whose rows are still to be verified."""
        return ids if self._is_verified is None else ids[~self._is_verified[ids]]

    def set_verified(self, ids: np.ndarray) -> None:
        """Note that the rows with these ids have the right checksums."""
        if self._is_verified is not None:
            self._is_verified[ids] = True

    def blocks(self, num_queries: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield blocks as `FileRows` does, without checksums."""
        return self._rows.blocks(num_queries)

    def blocks_of(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield blocks of some rows as `FileRows` does, without checksums."""
        return self._rows.blocks_of(ids)

    def in_memory(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return rows in memory as `FileRows` does, without checksums."""
        return self._rows.in_memory(ids)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return rows by id, and keep them for `checksums`. Do not change them."""
        taken = self._rows.take(ids)
        self._taken.append((ids, taken))
        return taken

    def checksums(self, ids: Iterable[int]) -> dict[int, int]:
        """Return the checksums of rows by id, of those that were taken."""
        wanted = np.sort(np.fromiter(ids, np.int64))
        found: dict[int, int] = {}
        for taken_ids, rows in self._taken if len(wanted) else ():
            places = np.minimum(np.searchsorted(wanted, taken_ids), len(wanted) - 1)
            positions = np.flatnonzero(wanted[places] == taken_ids)
            for row_id, position in zip(
                taken_ids[positions].tolist(), positions.tolist(), strict=True
            ):
                if row_id not in found:
                    found[row_id] = zlib.crc32(rows[position])
        return found


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
            " that it lost."
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
