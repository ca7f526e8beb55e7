"""A cache of decoded row groups of Parquet files, with one limit in bytes for all files of a
process.

A group is decoded as a stream of small batches, so that no second copy of it is ever in memory. A
batch of a large group is kept until each of its rows was taken once. Reading in order thus holds a
few batches, and a shuffled epoch decodes each group once. Only a row that is read a second time
makes a large group start over.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from featkit.errors import InputError
from featkit.images import printable
from featkit.paths import open_arrow
from featkit.sources.rows import DAMAGED
from featkit.wording import one_line

# Limits for images and for metadata, in addition to the group that is being read.
KEPT_BYTES, KEPT_TEXT_BYTES = 64 * 2**20, 16 * 2**20
KEPT_WHOLE = 32 * 2**20  # a group up to this size is kept whole
MAX_GROUPS = 6  # kept at any size, if rows are read from that many in turn
BATCH_BYTES, MAX_BATCH = 2 * 2**20, 1024
READ_BYTES = 2**20  # read from the file at a time
KEPT_BATCHES = 2  # kept although all their rows were taken
MAX_STARTS = 2  # of one group before it is kept whole
OVERHEAD_BYTES = 10_000  # of each group in the cache

Status: TypeAlias = tuple[int, int, int]  # size, time of the last change, inode
Key: TypeAlias = tuple[Path, Status, int, tuple[str, ...]]


@dataclass(frozen=True)
class ParquetShard:
    """A Parquet file and its footer, which is read once."""

    path: Path
    metadata: pq.FileMetaData
    status: Status

    @classmethod
    def open(cls, path: Path) -> tuple[ParquetShard, pa.Schema]:
        """Read the footer. InputError if this is not a complete Parquet file."""
        try:
            with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
                return cls(path, file.metadata, _status(path)), file.schema_arrow
        except DAMAGED as error:
            raise InputError(
                f"{path} is not a Parquet file that can be read: {one_line(error)}."
            ) from error

    def num_rows(self, group: int) -> int:
        """Return the number of rows in a group."""
        return int(self.metadata.row_group(group).num_rows)

    def num_bytes(self, group: int) -> int:
        """Return the uncompressed size of a group; nearly all of it is images.

        The footer also has the size of each column, but pyarrow aborts the process if the footer is
        damaged there.
        """
        # Some writers leave the size out.
        share = self.status[0] * self.num_rows(group) // max(1, int(self.metadata.num_rows))
        return max(share, int(self.metadata.row_group(group).total_byte_size))

    def batches(
        self, group: int, columns: Sequence[str], num_bytes: int
    ) -> Generator[pa.RecordBatch, None, None]:
        """Decode columns of a group in small batches. InputError if the file was changed or is
        damaged. num_bytes: approximate size of the columns."""
        size = BATCH_BYTES * self.num_rows(group) // max(1, num_bytes)
        try:
            with open_arrow(self.path) as opened:
                metadata = self.metadata if _status(self.path) == self.status else None
                options = {
                    "pre_buffer": False,
                    "buffer_size": READ_BYTES,
                    "page_checksum_verification": True,
                }
                with pq.ParquetFile(opened, metadata=metadata, **options) as file:
                    if not file.metadata.equals(self.metadata):
                        raise InputError(
                            f"{printable(str(self.path))} has changed since it was opened; open it"
                            " again."
                        )
                    yield from file.iter_batches(
                        batch_size=min(max(1, size), MAX_BATCH),
                        row_groups=[group],
                        columns=list(columns),
                        use_threads=False,
                    )
        except DAMAGED as error:
            raise InputError(
                f"{self.path} is damaged in row group {group}: {one_line(error)}."
            ) from error


class RowGroup:
    """Some columns of one row group, decoded from the first row up to the last one requested. Safe
    from any thread."""

    def __init__(
        self, shard: ParquetShard, group: int, columns: Sequence[str], num_bytes: int
    ) -> None:
        """num_bytes: approximate size of the columns."""
        self.shard, self.group, self.columns = shard, group, columns
        self.num_rows = shard.num_rows(group)
        self.whole_bytes = num_bytes
        self.keeps_all = self.whole_bytes <= KEPT_WHOLE
        self.counted_bytes = 0  # by the cache
        self._lock = threading.Lock()
        self._num_starts = 0
        self._start()

    def row(self, row: int) -> tuple[pa.RecordBatch, int]:
        """Return the batch with a row, and the row's position in it. InputError for a row at or
        after damage."""
        with self._lock:
            i = bisect_right(self._ends, row)
            if i < len(self._ends) and self._batches[i] is None:
                self._start()
            while self._error is None and (
                row >= self._end or (self.keeps_all and self._end < self.num_rows)
            ):
                self._decode_next()
            if row >= self._end:
                raise InputError(str(self._error))
            i = bisect_right(self._ends, row)
            batch, position = self._batches[i], row - (self._ends[i - 1] if i else 0)
            self._take(i, position)
            return batch, position

    @property
    def num_bytes(self) -> int:
        """The memory in use: batches, and the pages they are decoded from."""
        decoding = 0 < self._end < self.num_rows and self._error is None
        return self._kept_bytes + (self.whole_bytes if decoding else 0) + OVERHEAD_BYTES

    @property
    def is_used_up(self) -> bool:
        """Return whether every row was taken."""
        return self._end >= self.num_rows and not self.keeps_all and not any(self._num_waiting)

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _start(self) -> None:
        """Begin at the first row. If rows are read repeatedly, all are kept from now on."""
        self._num_starts += 1
        self.keeps_all |= self._num_starts > MAX_STARTS
        self._stream = self.shard.batches(self.group, self.columns, self.whole_bytes)
        self._batches: list[pa.RecordBatch | None] = []
        self._ends: list[int] = []
        self._taken: list[bytearray] = []  # a flag for each row of a batch
        self._num_waiting: list[int] = []  # rows of each batch not taken yet
        self._used_up: deque[int] = deque()  # batches kept although all their rows were taken
        self._batch_bytes: list[int] = []
        self._kept_bytes = 0
        self._error: InputError | None = None

    def _decode_next(self) -> None:
        try:
            batch = next(self._stream, None)
        except InputError as error:
            self._error = error
            return
        if batch is None:
            self._error = InputError(
                f"{self.shard.path} has fewer rows in row group {self.group} than its footer lists;"
                " copy it again."
            )
            return
        if not self.keeps_all and not self._batches:
            # Return freed pages to the system: decoding needs several copies for a moment.
            pa.default_memory_pool().release_unused()
        batch = _without_unused_values(batch)
        self._batches.append(batch)
        self._ends.append(self._end + batch.num_rows)
        self._taken.append(bytearray(0 if self.keeps_all else batch.num_rows))
        self._num_waiting.append(0 if self.keeps_all else batch.num_rows)
        self._batch_bytes.append(batch.nbytes)
        self._kept_bytes += batch.nbytes
        if self._end >= self.num_rows:
            self._stream.close()  # also closes the file and frees its pages

    def _take(self, i: int, position: int) -> None:
        """Mark a row as taken; drop batches whose rows were all taken."""
        if self.keeps_all or self._taken[i][position]:
            return
        self._taken[i][position] = 1
        self._num_waiting[i] -= 1
        if self._num_waiting[i] == 0:
            self._used_up.append(i)
            if len(self._used_up) > KEPT_BATCHES:
                oldest = self._used_up.popleft()
                self._kept_bytes -= self._batch_bytes[oldest]
                self._batches[oldest] = None


def _without_unused_values(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose dictionaries have only its own values; pyarrow's also have those of
    earlier batches."""
    kinds = [
        kind
        for field in batch.schema
        for kind in (field.type, *(part.type for part in _fields_of(field.type)))
    ]
    if not any(pa.types.is_dictionary(kind) for kind in kinds):
        return batch
    return pa.RecordBatch.from_arrays(
        [_compacted(column) for column in batch.columns], schema=batch.schema
    )


def _compacted(array: pa.Array) -> pa.Array:
    import pyarrow.compute as pc  # takes 20 ms, and few columns are dictionaries

    if parts := _fields_of(array.type):
        columns = [_compacted(column) for column in array.flatten()]
        return pa.StructArray.from_arrays(columns, fields=parts, mask=array.is_null())
    if not pa.types.is_dictionary(array.type):
        return array
    used = array.indices.unique().drop_null()
    indices = pc.index_in(array.indices, value_set=used).cast(array.type.index_type)
    return pa.DictionaryArray.from_arrays(indices, array.dictionary.take(used))


def _fields_of(kind: pa.DataType) -> list[pa.Field]:
    return list(kind) if pa.types.is_struct(kind) else []


class RowGroups:
    """The cached row groups of all Parquet files in this process. Safe from any thread."""

    def __init__(self, kept_bytes: int) -> None:
        """kept_bytes: limit for all groups together, beyond those that are read in turn."""
        self.kept_bytes = kept_bytes
        self.forget()

    def forget(self) -> None:
        """Drop all groups, and make new locks."""
        self._lock = threading.Lock()
        self._groups: OrderedDict[Key, RowGroup] = OrderedDict()  # the last used one at the end
        self._dropped: deque[Key] = deque(maxlen=4 * MAX_GROUPS)  # before all rows were taken
        self._num_bytes = 0
        self._num_groups = 1  # estimate of how many are read in turn

    def row(
        self, shard: ParquetShard, group: int, columns: tuple[str, ...], row: int, *, num_bytes: int
    ) -> tuple[pa.RecordBatch, int]:
        """Return the batch with a row of a group, and the row's position in it. InputError for
        damage. num_bytes: approximate size of these columns of the group."""
        key = (shard.path, shard.status, group, columns)
        with self._lock:
            row_group = self._groups.get(key)
            if row_group is None:
                row_group = self._groups[key] = RowGroup(shard, group, columns, num_bytes)
                if key in self._dropped:  # the group was dropped too early
                    self._dropped.remove(key)
                    self._num_groups = min(self._num_groups + 1, MAX_GROUPS)
            self._groups.move_to_end(key)
        try:
            return row_group.row(row)
        finally:
            with self._lock:
                self._shrink(key, row_group)

    def _shrink(self, key: Key, current: RowGroup) -> None:
        """Drop the least recently used groups beyond the limit."""
        if self._groups.get(key) is not current:
            return  # the group was dropped during the read
        self._num_bytes += current.num_bytes - current.counted_bytes
        current.counted_bytes = current.num_bytes
        if self._num_bytes <= self.kept_bytes:
            return
        largest = max(group.whole_bytes for group in self._groups.values())
        limit = max(self.kept_bytes, int(largest * (self._num_groups + 0.5)))
        while self._num_bytes > limit:
            oldest, group = next(iter(self._groups.items()))
            if group is current:
                break
            del self._groups[oldest]
            self._num_bytes -= group.counted_bytes
            if not group.is_used_up:
                self._dropped.append(oldest)


image_groups, text_groups = RowGroups(KEPT_BYTES), RowGroups(KEPT_TEXT_BYTES)


def _begin_in_child() -> None:
    """Begin a forked process without groups: another thread may have held a lock."""
    image_groups.forget()
    text_groups.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


def _status(path: Path) -> Status:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
