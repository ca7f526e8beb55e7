"""The items of an index with their vectors as one Parquet file, and back.

    key, source, width, height, added, thumbnail (if asked for), embedding (fixed-size list of
    float32), and a column for each metadata field

The schema's metadata has the model's name and fingerprint and the run that made the vectors. Files
of other tools are read as well, if they have the columns `key` and `embedding`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featkit.atomic import replace_file
from featkit.backends import Run
from featkit.embeddings import COLUMNS
from featkit.errors import InputError
from featkit.index.arguments import new_items, unit_vectors
from featkit.index.index import Index
from featkit.index.records import AddReport, Item, NewItem, Value
from featkit.index.state import IndexState
from featkit.paths import open_arrow
from featkit.sources.keys import twins
from featkit.wording import first_line

FINGERPRINT, MODEL_NAME, RUN = b"featkit.fingerprint", b"featkit.model", b"featkit.run"
KEY, EMBEDDING, THUMBNAIL = "key", "embedding", "thumbnail"
OWN = (KEY, "source", "width", "height", "added", THUMBNAIL, EMBEDDING)
ROWS_AT_ONCE = 2048

Progress = Callable[[int, int], None]


def write_vectors(
    index: Index,
    path: Path,
    *,
    where: str | None = None,
    thumbnails: bool = False,
    on_progress: Progress = lambda _done, _failed: None,
) -> int:
    """Write the items of one committed state, or those that match a filter; return how many.

    The file appears whole or not at all. FilterError for a wrong filter; EnvironmentProblem if it
    cannot be written.
    """
    return index.read(lambda state: _write(index, state, path, where, thumbnails, on_progress))


def _write(
    index: Index,
    state: IndexState,
    path: Path,
    where: str | None,
    thumbnails: bool,
    on_progress: Progress,
) -> int:
    ids = state.ids(where)
    kinds = state.catalogue.metadata_types()
    schema = _schema(index, kinds, thumbnails=thumbnails)
    with replace_file(path) as temporary, open_arrow(temporary, "wb") as file:
        compression = {
            name: "none" if name in (THUMBNAIL, EMBEDDING) else "zstd" for name in schema.names
        }
        with pq.ParquetWriter(file, schema, compression=compression) as writer:
            for start in range(0, len(ids), ROWS_AT_ONCE):
                part = ids[start : start + ROWS_AT_ONCE].tolist()
                items = state.catalogue.items_by_id(part)
                rows = [items[item_id] for item_id in part]
                writer.write_table(_table(state, rows, kinds, schema))
                on_progress(start + len(part), 0)
    return len(ids)


def _schema(index: Index, kinds: dict[str, str], *, thumbnails: bool) -> pa.Schema:
    own: dict[str, pa.DataType] = {
        KEY: pa.string(),
        "source": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "added": pa.string(),
        **({THUMBNAIL: pa.binary()} if thumbnails else {}),
        EMBEDDING: pa.list_(pa.float32(), index.width),
    }
    fields = {_field(name): pa.type_for_alias(kind) for name, kind in kinds.items()}
    about = {
        FINGERPRINT: index.fingerprint.encode(),
        MODEL_NAME: index.model_name.encode(),
        RUN: str(index.run).encode(),
    }
    return pa.schema(own | fields, metadata=about)


def _field(name: str) -> str:
    """Return the column for a metadata field, which may be named like one of the fixed ones."""
    return f"{name}_" if name.rstrip("_") in (*OWN, *COLUMNS) else name


def _name(field: str) -> str:
    """Return the metadata field that `_field` put into a column."""
    is_escaped = field.endswith("_") and field.rstrip("_") in (*OWN, *COLUMNS)
    return field[:-1] if is_escaped else field


def _table(
    state: IndexState, items: Sequence[Item], kinds: dict[str, str], schema: pa.Schema
) -> pa.Table:
    ids = np.array([item.id for item in items], np.int64)
    vectors = state.vectors_of(ids)
    columns: dict[str, Any] = {
        KEY: [item.key for item in items],
        "source": [item.source for item in items],
        "width": [item.width for item in items],
        "height": [item.height for item in items],
        "added": [item.added for item in items],
        EMBEDDING: pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1), pa.float32()), vectors.shape[1]
        ),
    }
    if THUMBNAIL in schema.names:
        columns[THUMBNAIL] = [state.thumbnail(item.id) for item in items]
    for name, kind in kinds.items():
        convert = {"bool": bool, "int64": int, "double": float, "string": str}[kind]
        columns[_field(name)] = [
            None if (value := item.metadata.get(name)) is None else convert(value) for item in items
        ]
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


class VectorFile:
    """A Parquet file of keys and vectors, `num_rows` of them. InputError if it cannot be read or
    lacks a column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_arrow(path) as file, pq.ParquetFile(file) as parquet:
                schema, self.num_rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} cannot be read as Parquet: {first_line(error)}.") from error
        missing = [name for name in (KEY, EMBEDDING) if name not in schema.names]
        if missing:
            raise InputError(
                f"{path} has no column {missing[0]}; give a file from `featkit export-vectors`, or"
                f" one with the columns {KEY} and {EMBEDDING}."
            )
        _check_schema(path, schema)
        about = schema.metadata or {}
        self.fingerprint = about.get(FINGERPRINT, b"").decode("utf-8", "replace") or None
        self.model_name = about.get(MODEL_NAME, b"").decode("utf-8", "replace") or None
        self.run = about.get(RUN, b"").decode("utf-8", "replace") or None

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows in parts. InputError if they cannot be read."""
        try:
            with open_arrow(self.path) as file, pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(ROWS_AT_ONCE):
                    yield pa.Table.from_batches([batch])
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path} is damaged: {first_line(error)}.") from error


def read_vectors(
    index: Index, file: VectorFile, *, on_progress: Progress = lambda _done, _failed: None
) -> AddReport:
    """Add the items of a file to an index that is open for writing, and count the outcomes.

    An item whose vector and metadata the index already has stays as it is. InputError if the file
    was made by another model, or holds what an index cannot.
    """
    if file.fingerprint is not None and file.fingerprint != index.fingerprint:
        raise InputError(
            f"{file.path} has vectors of {file.model_name} ({file.fingerprint[:12]}), but"
            f" {index.path} of {index.model_name} ({index.fingerprint[:12]})."
        )
    if file.run is not None and not index.accepts(_run_of(file)):
        raise InputError(
            f"{file.path} has vectors by {file.run}, but {index.path} by {index.run}; prove that"
            " both give the same vectors with `featkit verify`, or index it apart."
        )
    apart = twins(lambda: (key for table in file.tables() for key in table[KEY].to_pylist() if key))
    report, num_done = AddReport(), 0
    for table in file.tables():
        keys = table[KEY].to_pylist()
        if None in keys:
            raise InputError(f"{file.path}: row {num_done + keys.index(None):,} has no key.")
        vectors = unit_vectors(
            _vectors(table[EMBEDDING], file.path), width=index.width, keys=keys, index=index.path
        )
        items = new_items(
            keys,
            source=file.path.name,
            widths=_column(table, "width"),
            heights=_column(table, "height"),
            thumbnails=_column(table, THUMBNAIL),
            metadata=_metadata(table),
        )
        sources, added = _column(table, "source"), _column(table, "added")
        items = [
            dataclasses.replace(
                item,
                source=(sources[i] if sources and sources[i] is not None else item.source),
                added=added[i] if added else None,
            )
            for i, item in enumerate(items)
        ]
        if THUMBNAIL not in table.column_names:  # what the index has of them stays
            items = _with_stored_thumbnails(index, items)
        last = sorted({key: i for i, key in enumerate(keys)}.values())
        num_added, num_replaced = index.writer().add_changed(
            [items[i] for i in last], vectors[last], apart=apart
        )
        report += AddReport(
            num_added=num_added,
            num_replaced=num_replaced,
            num_unchanged=len(last) - num_added,
        )
        num_done += len(keys)
        on_progress(num_done, 0)
    return report


def _check_schema(path: Path, schema: pa.Schema) -> None:
    """Raise InputError for columns of other types than those that can be used."""
    for name in (KEY, EMBEDDING, *OWN):
        if schema.names.count(name) > 1:
            raise InputError(f"{path} has two columns {name}; leave one out.")
    for name in (KEY, "source", "added"):
        if name in schema.names and not _is_text(schema.field(name).type):
            raise InputError(
                f"The column {name} of {path} is of type {schema.field(name).type}; it must be"
                " text, so convert it or leave it out."
            )
    kind = schema.field(EMBEDDING).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_list = is_list or pa.types.is_fixed_size_list(kind)
    if not is_list or not (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        raise InputError(
            f"The column {EMBEDDING} of {path} is of type {kind}; it must be a list of numbers."
        )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _run_of(file: VectorFile) -> Run:
    try:
        return Run.parse(file.run or "")
    except ValueError as error:
        raise InputError(f"{file.path} cannot be used: {error}; update featkit.") from error


def _with_stored_thumbnails(index: Index, items: Sequence[NewItem]) -> list[NewItem]:
    """Return the items with the thumbnails that the index has of their keys."""

    def read(state: IndexState) -> list[NewItem]:
        stored = state.catalogue.items_by_key([item.key for item in items])
        return [
            dataclasses.replace(item, thumbnail=state.catalogue.thumbnail(stored[item.key].id))
            if item.key in stored
            else item
            for item in items
        ]

    return index.read(read)


def _column(table: pa.Table, name: str) -> list[Any] | None:
    return table[name].to_pylist() if name in table.column_names else None


def _metadata(table: pa.Table) -> list[dict[str, Value]]:
    names = [name for name in table.column_names if name not in (*OWN, *COLUMNS)]
    rows = table.select(names).to_pylist()
    return [
        {_name(name): value for name, value in row.items() if value is not None} for row in rows
    ]


def _vectors(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Return a column of lists as an array (n, D)."""
    lists = column.combine_chunks()
    if lists.null_count:
        raise InputError(f"{path} has rows without an embedding; leave them out.")
    flat: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
    if len(lists) and len(flat) % len(lists):
        raise InputError(f"{path} has embeddings of different lengths.")
    return flat.reshape(len(lists), -1)
