"""Data sets as `datasets.Dataset.save_to_disk` writes them: Arrow streams and a note of them, read
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
# what older versions of the library call the rows' order
INDICES = ("_indices_data_files", "_indices_files")
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class SavedDataset:
    """One folder of Arrow streams, mapped and not read; keys are `folder/row`, with the data set
    before a split's folder.

    A file that is damaged is an item `folder/file` in place of the rows that cannot be read. How
    many they are is not known, so that rows of later files have keys of their own,
    `folder/file/row`. Where a file keeps the order of the rows, any damage is refused.
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
        if self._failed and len(self._failed) == len(self._batches):
            raise InputError(next(iter(self._failed.values())))
        if not self._batches:
            raise InputError(f"{folder} has no rows.")
        schema = next(batch.schema for batch in self._batches if batch is not None)
        self._columns = find_columns(schema, self._files[0], column=column)
        self._order = _read_order(order_files)
        is_whole = not self._failed
        if (
            is_whole
            and self._order is not None
            and len(self._order)
            and int(self._order.max()) >= self._ends[-1]
        ):
            raise InputError(
                f"{folder} orders row {int(self._order.max()):,}, and has only {self._ends[-1]:,};"
                " write it again."
            )
        if not len(self):
            raise InputError(f"{folder} has no rows.")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None}  # files are mapped again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def skipped(self) -> Mapping[str, int]:
        """Return an empty mapping: every row is an item."""
        return NOTHING_SKIPPED

    @property
    def columns(self) -> Sequence[Columns]:
        """Return the choice of columns."""
        return [self._columns]

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._order is None else len(self._order)

    def key(self, number: int) -> str:
        """`folder/row`, for a split `folder/split/row`; after a damaged file `folder/file/row`."""
        i, _ = self._locate(number)
        if self._order is not None or not self._failed or i < min(self._failed):
            return f"{self._prefix}/{number}"
        file = self._file_of[i]
        name = f"{self._prefix}/{printable(self._files[file].name)}"
        first = self._file_of.index(file)
        return (
            name
            if i in self._failed
            else f"{name}/{number - (int(self._ends[first - 1]) if first else 0)}"
        )

    def read(self, number: int) -> bytes:
        """The image's bytes; InputError where the row has none or is damaged."""
        return read_image(
            self._row(number), 0, self._columns, key=self.key(number), limits=self.limits
        )

    def metadata(self, number: int) -> Metadata:
        """All columns of text and numbers, names of class labels, and the image's `path`."""
        if self._locate(number)[0] in self._failed:
            return {}
        return read_metadata(self._row(number), 0, self._columns, key=self.key(number))

    def file(self, number: int, /) -> Path:
        """The Arrow file."""
        return self._files[self._file_of[self._locate(number)[0]]]

    def _open(self) -> None:
        self._batches: list[pa.RecordBatch | None] = []  # None: rows that cannot be read
        self._failed: dict[int, str] = {}  # why, by their place among the batches
        self._file_of: list[int] = []  # of each batch
        schema: pa.Schema | None = None
        for file_number, file in enumerate(self._files):
            try:
                for batch in _read_stream(file):
                    schema = schema or batch.schema
                    if batch.schema != schema:
                        raise InputError(
                            f"{file} has other columns than {self._files[0]}; write the data set"
                            " again."
                        )
                    self._batches.append(batch)
                    self._file_of.append(file_number)
            except InputError as error:
                self._failed[len(self._batches)] = str(error)
                self._batches.append(None)
                self._file_of.append(file_number)
        rows = [1 if batch is None else batch.num_rows for batch in self._batches]
        self._ends = np.cumsum([0, *rows], dtype=np.int64)[1:]

    def _row(self, number: int) -> pa.RecordBatch:
        """One row, looked through: Arrow maps a file without a look at what its offsets point to."""
        i, place = self._locate(number)
        batch = self._batches[i]
        if batch is None:
            raise InputError(self._failed[i])
        row = batch.slice(place, 1)
        try:
            row.validate(full=True)
        except DAMAGED as error:
            raise InputError(f"{self.key(number)} is damaged: {one_line(error)}.") from error
        return row

    def _locate(self, number: int) -> tuple[int, int]:
        """The batch that holds item `number`, and its place in it."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        row = number if self._order is None else int(self._order[number])
        if (
            self._order is not None
            and self._failed
            and row >= self._ends[first := min(self._failed)] - 1
        ):
            return first, 0  # from here on it is not known which row is where
        batch = int(np.searchsorted(self._ends, row, side="right"))
        return batch, row - (int(self._ends[batch - 1]) if batch else 0)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
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
    """A saved data set, or one split of several. InputError, with those there are, where none or
    another is named."""
    if not (folder / SPLITS_FILE).is_file():
        if split is not None:
            raise InputError(f"{folder} is one data set without splits; leave out :{split}.")
        return SavedDataset(folder, name=name, limits=limits, column=column)
    found = _read_json(folder / SPLITS_FILE).get("splits")
    if not isinstance(found, list) or not all(_is_plain_name(one) for one in found):
        raise InputError(f"{folder / SPLITS_FILE} has no list of splits; write the data set again.")
    chosen = choose_split(found, split, of=str(folder), example=f"{folder}/{{}}")
    return SavedDataset(folder / chosen, name=name, limits=limits, column=column)


def choose_split(found: Sequence[str], wanted: str | None, *, of: str, example: str) -> str:
    """The split that is wanted, or the only one. InputError that lists those there are, and how to
    name the first."""
    if wanted in found:
        return str(wanted)
    if wanted is None and len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{of} has no splits.")
    trouble = f"has no split {wanted!r}" if wanted is not None else "has several splits"
    raise InputError(
        f"{of} {trouble}; name one of {', '.join(found)}: {example.replace('{}', found[0])}."
    )


def _data_set_of(folder: Path) -> list[Path]:
    """The folder of the data set that a split's folder belongs to."""
    parent = folder.resolve().parent
    return [parent] if (parent / SPLITS_FILE).is_file() else []


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); write the data set again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not the note of a data set; write the data set again.")
    return found


def _listed(folder: Path, state: dict[str, Any], key: str) -> list[Path]:
    """Files beside the note, by their names; never a path out of the folder."""
    entries = state.get(key) or []
    names = [
        entry.get("filename") if isinstance(entry, dict) else None
        for entry in entries
        if isinstance(entries, list)
    ]
    if not all(_is_plain_name(name) for name in names):
        raise InputError(
            f"{folder / STATE_FILE} names files that do not lie beside it; write the data set"
            " again."
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
    """The batches of one file with any rows. InputError for what is not a whole Arrow stream."""
    _refuse_other_kinds(file)
    try:
        with file.open("rb") as opened:
            opened.seek(-min(len(END_OF_STREAM), file.stat().st_size), 2)
            is_whole = opened.read() == END_OF_STREAM
        if is_whole:
            yield from (batch for batch in pa.ipc.open_stream(map_arrow(file)) if batch.num_rows)
        else:
            with suppress(*DAMAGED):  # what there is before the cut
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
    """InputError for a missing or empty file, and for one that is something else by its first
    bytes."""
    if not file.exists():
        raise InputError(f"{file} does not exist; copy the whole data set, or write it again.")
    head = read_head(file)
    kind = what_is(head)
    if kind not in (None, ARROW_STREAM):
        raise InputError(kind.sentence(str(file), otherwise="write the data set again"))


def _read_order(files: Sequence[Path]) -> np.ndarray | None:
    """The rows in the order in which they are items, where a selection or a shuffle was saved as
    one."""
    if not files:
        return None
    columns = [
        batch.column(0) for file in files for batch in _read_stream(file) if batch.num_columns
    ]
    if not all(
        pa.types.is_unsigned_integer(column.type) and not column.null_count for column in columns
    ):
        raise InputError(f"{files[0]} does not hold the numbers of rows; write the data set again.")
    return np.concatenate([np.zeros(0, np.uint64), *(column.to_numpy() for column in columns)])
