"""The rows of the vectors file by item id, also after rows of removed items were reclaimed.

    N ids given so far, n rows that the last compaction kept, in the order of their ids

An index that was never compacted has the file vectors.f32, whose row i is the vector of item i.
A compaction writes vectors-<name>.f32 with the rows of the items alive at that moment, and the
catalogue records which ids those are. Items that are added later follow, in the order of their ids.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from featkit.folders import VECTORS_FILE
from featkit.index.records import MAX_INTEGER, Value

SETTING = "vectors"
NAME = re.compile(r"|[0-9a-f]{16}")
NO_IDS = np.zeros(0, np.int64)


class NoSuchRow(Exception):
    """The row of an item was reclaimed. item_id: whose."""

    def __init__(self, item_id: int) -> None:
        self.item_id = item_id
        super().__init__(item_id)


@dataclass(frozen=True, kw_only=True)
class VectorsRecord:
    """The record of a vectors file.

    name: a part of the file's name, empty for vectors.f32. num_kept: n. until: the id of the first
    item that was added after the compaction.
    """

    name: str = ""
    num_kept: int = 0
    until: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Value]) -> VectorsRecord:
        """Return the record among the settings of an index. ValueError if it cannot be read."""
        text = settings.get(SETTING)
        if text is None:
            return cls()
        try:
            record = cls(**json.loads(str(text)))
            record.check()
            return record
        except TypeError as error:
            raise ValueError(str(error)) from error

    def check(self) -> None:
        """Raise ValueError for what featkit never stores, such as a path for a name."""
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the name is {self.name!r}")
        if type(self.num_kept) is not int or type(self.until) is not int:
            raise ValueError("a number is not whole")
        if not 0 <= self.num_kept <= self.until <= MAX_INTEGER:
            raise ValueError(f"{self.num_kept} rows of {self.until} ids were kept")

    @property
    def file_name(self) -> str:
        """The name of the vectors file within the index folder."""
        return f"vectors-{self.name}.f32" if self.name else VECTORS_FILE

    def to_json(self) -> str:
        """Return the record as the text of a setting."""
        return json.dumps(asdict(self))

    def num_stored(self, num_ids: int) -> int:
        """Return the number of committed rows of the file, if `num_ids` ids have been given."""
        return self.num_kept + num_ids - self.until


class RowMap:
    """The row of each id. kept: the ids of the rows that the compaction kept, (n,) ascending."""

    def __init__(self, record: VectorsRecord = VectorsRecord(), kept: np.ndarray = NO_IDS) -> None:
        # half the memory; ids beyond are for indexes of billions
        is_small = record.until <= np.iinfo(np.int32).max
        self.record, self.kept = record, kept.astype(np.int32) if is_small else kept

    @property
    def has_all(self) -> bool:
        """Return whether every id has a row, which is then the row of the same number."""
        return self.record.num_kept == self.record.until

    def ids(self, num_ids: int) -> np.ndarray | None:
        """Return the id of each row, ascending; None if row i is the vector of item i."""
        if self.has_all:
            return None
        return np.concatenate([self.kept, np.arange(self.record.until, num_ids, dtype=np.int64)])

    def have_rows(self, num_ids: int) -> np.ndarray:
        """Return which ids have a row, (N,) bool."""
        have = np.ones(num_ids, bool)
        if not self.has_all:
            have[: self.record.until] = False
            have[self.kept] = True
        return have

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows of ids (n,) int64. NoSuchRow if the row of one was reclaimed."""
        if self.has_all:
            return ids
        rows: np.ndarray = ids - (self.record.until - self.record.num_kept)
        is_early = ids < self.record.until
        early = ids[is_early]
        places = np.searchsorted(self.kept, early.astype(self.kept.dtype))
        is_kept = np.zeros(len(early), bool)
        if len(self.kept):
            is_kept = self.kept[np.minimum(places, len(self.kept) - 1)] == early
        if not is_kept.all():
            raise NoSuchRow(int(early[~is_kept][0]))
        rows[is_early] = places
        return rows


EVERY_ID = RowMap()  # of an index that was never compacted


def remove_leftovers(index: Path, record: VectorsRecord) -> None:
    """Remove all vectors files but the one in use.

    Call it under the builders' lock and in a write transaction that has read the record.

    Who has them open can still read them; on Windows they stay until the next call.
    """
    for file in leftovers(index, record):
        with suppress(OSError):
            file.unlink()


def leftovers(index: Path, record: VectorsRecord) -> list[Path]:
    """Return the vectors files that are not the one in use."""
    original = index / VECTORS_FILE
    files = [*index.glob("vectors-*.f32"), *([original] if original.exists() else [])]
    return [file for file in files if file.name != record.file_name]


def pack_ids(ids: np.ndarray, until: int) -> bytes:
    """Return ids below `until` as compressed bits, one for each id."""
    are_kept = np.zeros(until, bool)
    are_kept[ids] = True
    return zlib.compress(np.packbits(are_kept, bitorder="little").tobytes(), 1)


def unpack_ids(bits: bytes, until: int) -> np.ndarray:
    """Return what `pack_ids` packed, ascending, (n,) int64. ValueError for anything else."""
    try:
        # not more than needed, whatever the bits claim to be
        data = zlib.decompressobj().decompress(bits, (until + 7) // 8 + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(data) != (until + 7) // 8:
        raise ValueError("the bits of ids are of another number of ids")
    return np.flatnonzero(
        np.unpackbits(np.frombuffer(data, np.uint8), count=until, bitorder="little")
    )
