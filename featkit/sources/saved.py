"""Data sets written by `datasets.Dataset.save_to_disk`: Arrow streams and a JSON list of them, read
without that library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featkit.errors import InputError
from featkit.filetypes import ARROW_STREAM, what_is
from featkit.images import ImageLimits, printable
from featkit.paths import map_arrow
from featkit.sources.base import NOTHING_SKIPPED, Metadata, read_head
from featkit.sources.rows import DAMAGED, Columns, find_columns, read_image, read_metadata
from featkit.wording import one_line

STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"
# The keys under which versions of the library list the files with the row order.
INDICES = ("_indices_data_files", "_indices_files")
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class SavedDataset:
    """One folder of Arrow streams, which are mapped into memory. Keys are `folder/row`, or
    `data set/split/row` for a split.

    A damaged file is one item `folder/file` in place of the rows that cannot be read. Their number
    is unknown, so rows of later files get keys of their own, `folder/file/row`. If a file with the
    order of the rows is damaged, the data set is refused.
    """

    def __init__(
        self, folder: Path, *, name: str, limits: ImageLimits, column: str | None = None
    ) -> None:
        self.name, self.folder, self.limits = printable(name), folder, limits
        self._prefix = printable(
            "/".join(part.name for part in (*_data_set_of(folder), folder.resolve()))
        )
        state = _read_json(folder / STATE_FILE)
        self._files = _listed(folder, state, "_data_files")
        order_files = [file for key in INDICES for file in _listed(folder, state, key)]
        self._open()
        schemas = [batch.schema for batch in self._batches if batch is not None]
        if not schemas:
            raise InputError(next(iter(self._failed.values()), f"{folder} has no rows."))
        self._columns = find_columns(schemas[0], self._files[0], column=column)
        self._order = _read_order(order_files)
        self._check_order()
        if not len(self):
            raise InputError(f"{folder} has no rows.")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None}  # the files are mapped again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def skipped(self) -> Mapping[str, int]:
        """Always empty: every row is an item."""
        return NOTHING_SKIPPED

    @property
    def columns(self) -> Sequence[Columns]:
        """The columns of the files."""
        return [self._columns]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._order is None else len(self._order)

    def key(self, item: int, /) -> str:
        """Return `folder/row`, or `data set/split/row`; after a damaged file `folder/file/row`."""
        batch, _ = self._locate(item)
        if self._order is not None or not self._failed or batch < min(self._failed):
            return f"{self._prefix}/{item}"
        file = self._file_of[batch]
        name = f"{self._prefix}/{printable(self._files[file].name)}"
        if batch in self._failed:
            return name
        first = self._file_of.index(file)
        first_item = int(self._ends[first - 1]) if first else 0
        return f"{name}/{item - first_item}"

    def read(self, item: int, /) -> bytes:
        """Return the image's bytes. InputError if the row has none or is damaged."""
        row = self._row(item)
        return read_image(row, 0, self._columns, key=self.key(item), limits=self.limits)

    def metadata(self, item: int, /) -> Metadata:
        """Return all columns of text and numbers, names of class labels, and the image's `path`."""
        if self._locate(item)[0] in self._failed:
            return {}
        return read_metadata(self._row(item), 0, self._columns, key=self.key(item))

    def file(self, item: int, /) -> Path:
        """Return the Arrow file."""
        return self._files[self._file_of[self._locate(item)[0]]]

    def _open(self) -> None:
        """Map the files."""
        self._batches: list[pa.RecordBatch | None] = []  # None: rows that cannot be read
        self._failed: dict[int, str] = {}  # the error of each of those, by its batch
        self._file_of: list[int] = []  # of each batch
        schema: pa.Schema | None = None
        for i, file in enumerate(self._files):
            try:
                for batch in _read_stream(file):
                    schema = schema or batch.schema
                    if batch.schema != schema:
                        raise InputError(
                            f"{file} has different columns than {self._files[0]}; write the data"
                            " set"
                            " again."
                        )
                    self._batches.append(batch)
                    self._file_of.append(i)
            except InputError as error:
                self._failed[len(self._batches)] = str(error)
                self._batches.append(None)
                self._file_of.append(i)
        rows = [1 if batch is None else batch.num_rows for batch in self._batches]
        self._ends = np.cumsum([0, *rows], dtype=np.int64)[1:]

    def _check_order(self) -> None:
        """InputError if the order names rows that do not exist."""
        if self._order is None or not len(self._order) or self._failed:
            return
        last = int(self._order.max())
        if last >= self._ends[-1]:
            raise InputError(
                f"{self.folder} refers to row {last:,}, but has only {self._ends[-1]:,} rows; write"
                " it again."
            )

    def _row(self, item: int) -> pa.RecordBatch:
        """Return one row, validated: Arrow maps a file without checking its offsets."""
        i, position = self._locate(item)
        batch = self._batches[i]
        if batch is None:
            raise InputError(self._failed[i])
        row = batch.slice(position, 1)
        try:
            row.validate(full=True)
        except DAMAGED as error:
            raise InputError(f"{self.key(item)} is damaged: {one_line(error)}.") from error
        return row

    def _locate(self, item: int) -> tuple[int, int]:
        """Return the batch that holds an item, and its position there."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        row = item
        if self._order is not None:
            row = int(self._order[item])
            if self._failed:
                # After the first failure, row positions are unknown.
                first = min(self._failed)
                if row >= self._ends[first] - 1:
                    return first, 0
        batch = int(np.searchsorted(self._ends, row, side="right"))
        return batch, row - (int(self._ends[batch - 1]) if batch else 0)


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote this folder."""
    return (folder / SPLITS_FILE).is_file() or (
        (folder / STATE_FILE).is_file() and any(folder.glob("*.arrow"))
    )


def open_saved(
    folder: Path,
    *,
    name: str,
    split: str | None = None,
    limits: ImageLimits,
    column: str | None = None,
) -> SavedDataset:
    """Open a saved data set, or one split of it. InputError, listing the splits, if there are
    several and none is named, or if the named one does not exist."""
    if not (folder / SPLITS_FILE).is_file():
        if split is not None:
            raise InputError(f"{folder} is one data set without splits; leave out :{split}.")
        return SavedDataset(folder, name=name, limits=limits, column=column)
    splits = _read_json(folder / SPLITS_FILE).get("splits")
    if not isinstance(splits, list) or not all(_is_plain_name(name) for name in splits):
        raise InputError(f"{folder / SPLITS_FILE} has no list of splits; write the data set again.")
    chosen = choose_split(splits, split, of=str(folder), example=f"{folder}/{{}}")
    return SavedDataset(folder / chosen, name=name, limits=limits, column=column)


def choose_split(splits: Sequence[str], wanted: str | None, *, of: str, example: str) -> str:
    """Return the wanted split, or the only one. InputError that lists the splits and shows how to
    name the first.

    of: the data set, for messages. example: how to request a split, with {} for its name.
    """
    if wanted in splits:
        return str(wanted)
    if wanted is None and len(splits) == 1:
        return splits[0]
    if not splits:
        raise InputError(f"{of} has no splits.")
    trouble = f"has no split {wanted!r}" if wanted is not None else "has several splits"
    raise InputError(
        f"{of} {trouble}; name one of {', '.join(splits)}: {example.replace('{}', splits[0])}."
    )


def _data_set_of(folder: Path) -> list[Path]:
    """Return the folder of the data set that a split's folder belongs to, if any."""
    parent = folder.resolve().parent
    return [parent] if (parent / SPLITS_FILE).is_file() else []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); write the data set again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not describe a data set; write the data set again.")
    return content


def _listed(folder: Path, state: dict[str, Any], key: str) -> list[Path]:
    """Return the files that a data set lists under a key; never a path out of its folder."""
    entries = state.get(key) or []
    names = [
        entry.get("filename") if isinstance(entry, dict) else None
        for entry in entries
        if isinstance(entries, list)
    ]
    if not all(_is_plain_name(name) for name in names):
        raise InputError(
            f"{folder / STATE_FILE} names files outside its folder; write the data set again."
        )
    return [folder / str(name) for name in names]


def _is_plain_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and "\0" not in name
    )


def _read_stream(file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of one file that have rows. InputError if it is not a complete Arrow
    stream."""
    _refuse_other_kinds(file)
    try:
        with file.open("rb") as opened:
            opened.seek(-min(len(END_OF_STREAM), file.stat().st_size), 2)
            is_whole = opened.read() == END_OF_STREAM
        if is_whole:
            yield from (batch for batch in pa.ipc.open_stream(map_arrow(file)) if batch.num_rows)
        else:
            with suppress(*DAMAGED):  # read everything before the cut
                yield from (
                    batch for batch in pa.ipc.open_stream(map_arrow(file)) if batch.num_rows
                )
    except DAMAGED as error:
        raise InputError(
            f"{file} is not an Arrow stream that can be read: {one_line(error)}."
        ) from error
    if not is_whole:
        raise InputError(
            f"{file} ends before its end mark; it is truncated, or not an Arrow stream."
        )


def _refuse_other_kinds(file: Path) -> None:
    """InputError for a missing or empty file, and for one whose first bytes are of another
    format."""
    if not file.exists():
        raise InputError(f"{file} does not exist; copy the whole data set, or write it again.")
    head = read_head(file)
    kind = what_is(head)
    if kind not in (None, ARROW_STREAM):
        raise InputError(kind.sentence(str(file), otherwise="write the data set again"))


def _read_order(files: Sequence[Path]) -> np.ndarray | None:
    """Return the row of each item if the data set was saved with a selection or shuffle, else
    None."""
    if not files:
        return None
    columns = [
        batch.column(0) for file in files for batch in _read_stream(file) if batch.num_columns
    ]
    if not all(
        pa.types.is_unsigned_integer(column.type) and not column.null_count for column in columns
    ):
        raise InputError(f"{files[0]} does not hold row indices; write the data set again.")
    return np.concatenate([np.zeros(0, np.uint64), *(column.to_numpy() for column in columns)])
