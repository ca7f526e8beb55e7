"""Pictures in Parquet files: the Hugging Face layout (`image` as {bytes, path}) or a column of binary values."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featkit.errors import InputError
from featkit.images import ImageLimits, printable
from featkit.paths import open_arrow
from featkit.sources.base import NOTHING_SKIPPED, Metadata
from featkit.sources.keys import key_of
from featkit.sources.rows import DAMAGED, find_columns, read_metadata, read_picture, reason


class ParquetSource:
    """One Parquet file; keys are `file.parquet/row`. Keeps one row group of pictures at a time."""

    def __init__(self, path: Path, *, limits: ImageLimits, prefix: str | None = None) -> None:
        """prefix: what keys begin with, the file's name by default."""
        self.name, self.path, self.limits = printable(str(path)), path, limits
        self.prefix = path.name if prefix is None else prefix
        try:
            with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
                schema = file.schema_arrow
                groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        except DAMAGED as error:
            raise InputError(f"{path} is not a Parquet file that can be read: {reason(error)}.") from error
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self._columns = find_columns(schema, path)
        if not len(self):
            raise InputError(f"{path} has no rows.")
        self._lock = threading.Lock()
        self._group = -1
        self._rows: pa.Table | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_lock=None, _group=-1, _rows=None)  # a lock cannot travel, and rows are read again
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return an empty mapping: every row is an item."""
        return NOTHING_SKIPPED

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, number: int) -> str:
        """`file.parquet/row`."""
        return key_of(f"{self.prefix}/{number}")

    def read(self, number: int) -> bytes:
        """The picture's bytes; InputError where the row has none."""
        rows, place = self._row(number)
        return read_picture(rows, place, self._columns, key=self.key(number), limits=self.limits)

    def metadata(self, number: int) -> Metadata:
        """All columns of text and numbers, and the picture's `path` where the layout has one; InputError for damaged text."""
        rows, place = self._row(number)
        return read_metadata(rows, place, self._columns, key=self.key(number))

    def file(self, _number: int, /) -> Path:
        """The Parquet file."""
        return self.path

    def _row(self, number: int) -> tuple[pa.Table, int]:
        """The rows of the group that holds `number`, and its place among them."""
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        with self._lock:
            if group != self._group or self._rows is None:
                try:
                    with open_arrow(self.path) as opened, pq.ParquetFile(opened) as file:
                        self._rows = file.read_row_group(group, columns=[self._columns.picture, *self._columns.plain])
                except DAMAGED as error:
                    raise InputError(f"{self.path} is damaged in row group {group}: {reason(error)}.") from error
                self._group = group
            return self._rows, number - int(self._starts[group])
