"""Shards: rows as a table of Arrow, and a table as one Parquet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featkit.embeddings.columns import COLUMNS, common_kind
from featkit.errors import InputError
from featkit.paths import open_arrow
from featkit.stamps import NO_STAMP, Stamp

# No two items share these values, so a dictionary of them would only cost space.
NEVER_REPEATED = ("key", "thumbnail", "embedding.list.element")
INCOMPRESSIBLE = ("thumbnail", "embedding.list.element")  # JPEG, and the noise of floats


@dataclass(frozen=True, kw_only=True)
class ShardRow:
    """One item. embedding: (D,) float32, or None with the `error` that explains why."""

    key: str
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    embedding: np.ndarray | None = None
    error: str | None = None
    stamp: Stamp = NO_STAMP  # of its file; stored next to the shard, not in it
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)  # by column


def to_table(rows: Sequence[ShardRow], *, width: int, columns: Mapping[str, str]) -> pa.Table:
    """Return the rows as a table: the fixed columns, then those of metadata.

    width: dimensions of a vector. columns: the type of each metadata column. InputError for
    metadata that has no column, or does not fit its type.
    """
    arrays: dict[str, pa.Array] = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
        "embedding": _vector_column([row.embedding for row in rows], width),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    for row in rows:
        if unknown := row.metadata.keys() - columns.keys():
            raise InputError(
                f"{row.key} has metadata that its source did not have when this folder was begun:"
                f" {', '.join(sorted(unknown))}; choose another --out."
            )
    for name, kind in columns.items():
        arrays[name] = _metadata_column(name, kind, [row.metadata.get(name) for row in rows])
    return pa.table(arrays)


def from_table(table: pa.Table) -> list[ShardRow]:
    """Return the rows of a table that `to_table` made, without their stamps."""
    vectors = iter(vectors_of(table.filter(table["embedding"].is_valid())))
    names = [name for name in table.column_names if name not in COLUMNS]
    plain_rows = table.drop_columns(["embedding"]).to_pylist()
    return [
        ShardRow(
            **{name: values[name] for name in COLUMNS if name != "embedding"},
            embedding=next(vectors) if has_vector else None,
            metadata={name: values[name] for name in names if values[name] is not None},
        )
        for values, has_vector in zip(
            plain_rows, table["embedding"].is_valid().to_pylist(), strict=True
        )
    ]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as a Parquet file of one row group; equal tables give equal bytes."""
    leaves = [
        "embedding.list.element" if name == "embedding" else name for name in table.column_names
    ]
    with open_arrow(path, "wb") as file:
        pq.write_table(
            table,
            file,
            compression={name: "none" if name in INCOMPRESSIBLE else "zstd" for name in leaves},
            use_dictionary=[name for name in leaves if name not in NEVER_REPEATED],
            row_group_size=table.num_rows,
        )


def vectors_of(table: pa.Table) -> np.ndarray:
    """Return the vectors (rows, D) float32 of a table whose rows all have an embedding."""
    column = table["embedding"].combine_chunks()
    width = column.type.list_size
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    vectors: np.ndarray = flat.astype(np.float32, copy=False).reshape(-1, width)
    return vectors


def _metadata_column(name: str, kind: str, values: list[str | int | float | None]) -> pa.Array:
    convert = {"int64": int, "double": float, "string": str}[kind]
    for value in values:
        if value is not None and common_kind(kind, value) != kind:
            raise InputError(
                f"The metadata {name} was {kind} when this folder was begun and is {value!r} now;"
                " choose another --out."
            )
    return pa.array(
        [None if value is None else convert(value) for value in values], pa.type_for_alias(kind)
    )


def _vector_column(vectors: list[np.ndarray | None], width: int) -> pa.Array:
    """Return fixed-size lists of float32, built without a Python float for each value."""
    missing = pa.array([vector is None for vector in vectors], pa.bool_())
    flat = np.concatenate(
        [np.zeros(width, np.float32) if vector is None else vector for vector in vectors]
    )
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat, pa.float32()), type=pa.list_(pa.float32(), width), mask=missing
    )
