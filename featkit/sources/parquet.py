"""Images in Parquet files: the Hugging Face layout (`image` as {bytes, path}) or a column of
binary values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from featkit.errors import InputError
from featkit.filetypes import PARQUET, what_is
from featkit.images import ImageLimits, printable
from featkit.sources.base import NOTHING_SKIPPED, Metadata, read_head
from featkit.sources.keys import key_of
from featkit.sources.locality import Locality
from featkit.sources.row_groups import ParquetShard, image_groups, text_groups
from featkit.sources.rows import Columns, find_columns, read_image, read_metadata

TEXT_BYTES = 32  # typical size of a metadata value


class ParquetSource:
    """One Parquet file; keys are `file.parquet/row`. Row groups are decoded when they are needed,
    images and text separately."""

    def __init__(
        self,
        path: Path,
        *,
        limits: ImageLimits,
        prefix: str | None = None,
        column: str | None = None,
    ) -> None:
        """prefix: what keys begin with; the file's name by default. column: the column of the
        images; chosen by type and name by default."""
        self.name, self.path, self.limits = printable(str(path)), path, limits
        self.prefix = path.name if prefix is None else prefix
        _refuse_other_kinds(path)
        self._shard, schema = ParquetShard.open(path)
        self._columns = find_columns(schema, path, column=column)
        self._image_columns, self._text_columns = _leaves(
            schema, self._columns.image, self._columns.plain
        )
        groups = [
            self._shard.num_rows(group) for group in range(self._shard.metadata.num_row_groups)
        ]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        if not len(self):
            raise InputError(f"{path} has no rows.")

    @property
    def skipped(self) -> Mapping[str, int]:
        """Always empty: every row is an item."""
        return NOTHING_SKIPPED

    @property
    def columns(self) -> Sequence[Columns]:
        """The columns of the file."""
        return [self._columns]

    def locality(self) -> Locality:
        """Return the row group of each row, and the bytes of each group's images."""
        rows = np.diff(self._starts)
        num_bytes = [self._shard.num_bytes(group) for group in range(len(rows))]
        return Locality(np.repeat(np.arange(len(rows)), rows), np.array(num_bytes, np.int64))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, item: int, /) -> str:
        """Return `file.parquet/row`."""
        return key_of(f"{self.prefix}/{item}")

    def read(self, item: int, /) -> bytes:
        """Return the image's bytes. InputError if the row has none or is damaged."""
        group, row = self._locate(item)
        num_bytes = self._shard.num_bytes(group)
        rows, i = image_groups.row(
            self._shard, group, self._image_columns, row, num_bytes=num_bytes
        )
        return read_image(rows, i, self._columns, key=self.key(item), limits=self.limits)

    def metadata(self, item: int, /) -> Metadata:
        """Return all columns of text and numbers, and the image's `path` if the layout has one.
        InputError for damaged text."""
        if not self._text_columns:
            return {}
        group, row = self._locate(item)
        num_bytes = TEXT_BYTES * len(self._text_columns) * self._shard.num_rows(group)
        rows, i = text_groups.row(self._shard, group, self._text_columns, row, num_bytes=num_bytes)
        return read_metadata(rows, i, self._columns, key=self.key(item))

    def file(self, _item: int, /) -> Path:
        """Return the Parquet file."""
        return self.path

    def _locate(self, item: int) -> tuple[int, int]:
        """Return the row group of an item, and its row there."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        group = int(np.searchsorted(self._starts, item, side="right")) - 1
        return group, item - int(self._starts[group])


def _leaves(
    schema: pa.Schema, image: str, plain: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns to decode for images, and those for metadata. A struct's `bytes` and
    `path` are decoded separately."""
    kind = schema.field(image).type
    if not pa.types.is_struct(kind):
        return (image,), tuple(plain)
    path = [f"{image}.path"] if any(field.name == "path" for field in kind) else []
    return (f"{image}.bytes",), (*plain, *path)


def _refuse_other_kinds(path: Path) -> None:
    """InputError for an empty file, and for one whose first bytes are of another format."""
    head = read_head(path)
    kind = what_is(head)
    if kind not in (None, PARQUET):
        raise InputError(kind.sentence(str(path), otherwise="name a Parquet file"))
