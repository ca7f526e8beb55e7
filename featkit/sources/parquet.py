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

TEXT_BYTES = 32  # of a value of metadata, about


class ParquetSource:
    """One Parquet file; keys are `file.parquet/row`. Its row groups are decoded as they are needed,
    images and text apart."""

    def __init__(
        self,
        path: Path,
        *,
        limits: ImageLimits,
        prefix: str | None = None,
        column: str | None = None,
    ) -> None:
        """prefix: what keys begin with, the file's name by default. column: that of the images,
        chosen by default."""
        self.name, self.path, self.limits = printable(str(path)), path, limits
        self.prefix = path.name if prefix is None else prefix
        _refuse_other_kinds(path)
        self._shard, schema = ParquetShard.open(path)
        self._columns = find_columns(schema, path, column=column)
        self._image_parts, self._text_parts = _parts(
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
        """Return an empty mapping: every row is an item."""
        return NOTHING_SKIPPED

    @property
    def columns(self) -> Sequence[Columns]:
        """Return the choice of columns."""
        return [self._columns]

    def locality(self) -> Locality:
        """Return the row group of each row, and the bytes of each group's images."""
        rows = np.diff(self._starts)
        num_bytes = [self._shard.num_bytes(group) for group in range(len(rows))]
        return Locality(np.repeat(np.arange(len(rows)), rows), np.array(num_bytes, np.int64))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, number: int) -> str:
        """`file.parquet/row`."""
        return key_of(f"{self.prefix}/{number}")

    def read(self, number: int) -> bytes:
        """The image's bytes; InputError where the row has none or is damaged."""
        group, row = self._locate(number)
        num_bytes = self._shard.num_bytes(group)
        rows, place = image_groups.row(
            self._shard, group, self._image_parts, row, num_bytes=num_bytes
        )
        return read_image(rows, place, self._columns, key=self.key(number), limits=self.limits)

    def metadata(self, number: int) -> Metadata:
        """All columns of text and numbers, and the image's `path` where the layout has one;
        InputError for damaged text."""
        if not self._text_parts:
            return {}
        group, row = self._locate(number)
        num_bytes = TEXT_BYTES * len(self._text_parts) * self._shard.num_rows(group)
        rows, place = text_groups.row(
            self._shard, group, self._text_parts, row, num_bytes=num_bytes
        )
        return read_metadata(rows, place, self._columns, key=self.key(number))

    def file(self, _number: int, /) -> Path:
        """The Parquet file."""
        return self.path

    def _locate(self, number: int) -> tuple[int, int]:
        """The row group of an item, and its row in it."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        return group, number - int(self._starts[group])


def _parts(
    schema: pa.Schema, image: str, plain: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is read for images and what for metadata: of a struct with `bytes` and `path` only the
    one or the other."""
    kind = schema.field(image).type
    if not pa.types.is_struct(kind):
        return (image,), tuple(plain)
    path = [f"{image}.path"] if any(field.name == "path" for field in kind) else []
    return (f"{image}.bytes",), (*plain, *path)


def _refuse_other_kinds(path: Path) -> None:
    """InputError for an empty file, and for one that is something else by its first bytes."""
    head = read_head(path)
    kind = what_is(head)
    if kind not in (None, PARQUET):
        raise InputError(kind.sentence(str(path), otherwise="name a Parquet file"))
