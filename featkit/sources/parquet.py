"""Pictures in Parquet files: the Hugging Face layout (`image` as {bytes, path}) or a column of binary values."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featkit.errors import InputError
from featkit.images import ImageLimits
from featkit.sources.base import Metadata

DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)  # what pyarrow raises for files that are not what they say


class ParquetSource:
    """One Parquet file; keys are `file.parquet/row`. Keeps one row group of pictures at a time."""

    def __init__(self, path: Path, *, limits: ImageLimits) -> None:
        self.name, self.path, self.limits = str(path), path, limits
        try:
            file = pq.ParquetFile(path)
        except DAMAGED as error:
            raise InputError(f"{path} is not a Parquet file that can be read: {_reason(error)}.") from error
        with file:
            schema = file.schema_arrow
            groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self.column = _picture_column(schema, path)
        self._plain = [field.name for field in schema if _is_plain(field.type)]
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

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, number: int) -> str:
        """`file.parquet/row`."""
        return f"{self.path.name}/{number}"

    def read(self, number: int) -> bytes:
        """The picture's bytes; InputError where the row has none."""
        rows, place = self._row(number)
        value = rows[self.column][place]
        if value.is_valid and pa.types.is_struct(value.type):
            value = value["bytes"]
        data = value.as_py()
        if data is None:
            raise InputError(f"{self.key(number)} has no picture in its column {self.column}.")
        if len(data) > self.limits.max_bytes:
            raise InputError(f"{self.key(number)} has {len(data):,} bytes, more than the limit of {self.limits.max_bytes:,}.")
        return bytes(data)

    def metadata(self, number: int) -> Metadata:
        """All columns of text and numbers, and the picture's `path` where the layout has one; InputError for damaged text."""
        rows, place = self._row(number)
        found: Metadata = {}
        try:
            for column in self._plain:
                value = rows[column][place].as_py()
                if value is not None:
                    found[column] = int(value) if isinstance(value, bool) else value
            if pa.types.is_struct(rows.schema.field(self.column).type):
                path = (rows[self.column][place].as_py() or {}).get("path")
                if path is not None:
                    found.setdefault("path", path)
        except UnicodeDecodeError as error:  # Arrow does not look at text before it is asked for
            raise InputError(f"{self.key(number)} has metadata that is no text: {_reason(error)}.") from error
        return found

    def file(self, _number: int, /) -> Path:
        """The Parquet file."""
        return self.path

    def _row(self, number: int) -> tuple[pa.Table, int]:
        """The rows of the group that holds `number`, and its place among them."""
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        with self._lock:
            if group != self._group or self._rows is None:
                try:
                    with pq.ParquetFile(self.path) as file:
                        self._rows = file.read_row_group(group, columns=[self.column, *self._plain])
                except DAMAGED as error:
                    raise InputError(f"{self.path} is damaged in row group {group}: {_reason(error)}.") from error
                self._group = group
            return self._rows, number - int(self._starts[group])


def _reason(error: Exception) -> str:
    """What pyarrow has to say, which may be several lines, as the end of a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def _picture_column(schema: pa.Schema, path: Path) -> str:
    """The column of pictures: a struct with `bytes`, or binary; `image` or `jpg` first when there are several."""
    found = [field.name for field in schema if _holds_pictures(field.type)]
    if not found:
        raise InputError(f"{path} has no column of pictures ({{bytes, path}} or binary) among: {', '.join(schema.names)}.")
    return next((name for name in ("image", "jpg", "img", "picture") if name in found), found[0])


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
