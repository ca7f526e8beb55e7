"""The committed rows of a vectors file, which are read or kept in memory.

A query over rows that are read takes up to 2.3 times as long as over a map (100,000 x 384: 9 ms
instead of 4), so an open index keeps its rows in memory from the second search on, if they fit.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from featkit.errors import InputError
from featkit.index.row_map import EVERY_ID, NoSuchRow, RowMap
from featkit.index.vectors import FLOAT32, PIECE_BYTES, VectorFile
from featkit.resources import spare_memory

# Rows at most this far apart are read in one piece: copying the gap costs as much as a system call.
NEAR_BYTES = 64 * 2**10
# A block is read once and scanned by each query: a small block stays in a core's cache, and large
# blocks leave fewer results to merge.
SMALL_BLOCK_BYTES, LARGE_BLOCK_BYTES = 2**20, 4 * 2**20
FEW_QUERIES = 4
MAX_SHARE_HELD = 0.5  # of the spare memory, for rows kept in memory
SPARE_SHARE = 1 / 8  # of the rows, as room for later ones


class FileRows:
    """The committed rows of a vectors file, read in blocks or by id. N ids have been given so far.

    The second scan keeps the rows in memory for later calls, and so does taking as many rows by id
    as there are, unless they would take more than half of the spare memory, or than `most_held`
    bytes.

    before: those of an earlier state, to which rows were only added since. What it keeps in memory
    is kept on, and only the added rows are read.
    """

    def __init__(
        self,
        file: VectorFile,
        num_rows: int,
        *,
        row_map: RowMap = EVERY_ID,
        most_held: int | None = None,
        before: FileRows | None = None,
    ) -> None:
        self.file, self.num_rows, self.width = file, num_rows, file.width
        self.row_map, self.num_stored = row_map, row_map.record.num_stored(num_rows)
        self._most_held = most_held
        self._room: np.ndarray | None = None  # all rows, and place for later ones
        self._held: np.ndarray | None = None  # all rows
        self._is_verified: np.ndarray | None = None  # which of the held rows were, (N,) bool
        self._num_scans = self._num_taken = 0
        self._holding = threading.Lock()  # held by the scan that fills `_held`
        if before is not None:
            self._keep_on(before)

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
        room = self._new_room()
        rows = room[: self.num_stored]
        for start in range(0, self.num_stored, at_once):
            block = rows[start : start + at_once]
            self.file.read(start, block)
            yield start, block
        self._set_held(room)

    def unheld(self) -> FileRows:
        """Return the same rows, to be read from the file each time."""
        return FileRows(self.file, self.num_rows, row_map=self.row_map, most_held=0)

    def _new_room(self) -> np.ndarray:
        num_rows = self.num_stored + int(SPARE_SHARE * self.num_stored)
        return np.empty((num_rows, self.width), FLOAT32)  # takes memory only where it is written

    def _set_held(self, room: np.ndarray) -> None:
        self._is_verified = np.zeros(self.num_rows, bool)
        self._room, self._held = room, room[: self.num_stored]

    def _keep_on(self, before: FileRows) -> None:
        self._num_scans = before._num_scans
        held, room = before._held, before._room
        if held is None or room is None or len(held) > self.num_stored:
            return
        if self.num_stored > len(room):
            if not self._fits_in_memory():
                return
            room = self._new_room()
            room[: len(held)] = held
        # Both states share the array, in which the added rows come after the others.
        if self.num_stored > len(held):
            self.file.read(len(held), room[len(held) : self.num_stored])
        self._set_held(room)

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
