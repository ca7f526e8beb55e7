"""Writes to an index: one process at a time, one transaction per change."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from featkit.errors import FeatkitError, InputError
from featkit.index.arguments import text_filter
from featkit.index.builders import excluding_builders
from featkit.index.catalogue import Catalogue
from featkit.index.reading import IndexReader
from featkit.index.records import NewItem, Value, same_item
from featkit.index.row_map import VectorsRecord, leftovers, remove_leftovers
from featkit.index.state import IndexState, spread
from featkit.index.table_writer import CatalogueWriter
from featkit.index.tables import CatalogueReader
from featkit.index.vectors import VectorWriter, checksums
from featkit.lock import WriterLock

LOCK_FILE = "writer.lock"
# An index older than checksums gets this many when it is first opened for writing.
NUM_CHECKSUMS_FOR_OLD = 1024


class IndexWriter:
    """The right to write an index, from the constructor to `close`. Threads take turns.

    EnvironmentProblem if another process writes the index.
    """

    def __init__(self, path: Path, catalogue: Catalogue, reader: IndexReader) -> None:
        self.path, self.catalogue, self.reader = path, catalogue, reader
        self.on_commit: Callable[[], None] = lambda: None  # called after each change
        self._vectors: VectorWriter | None = None
        self._process = os.getpid()
        self._guard = threading.RLock()  # serializes writing threads
        self._lock = WriterLock(path / LOCK_FILE)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        width = self.reader.read(lambda state: state.width)
        self.catalogue.take_token()
        with self.catalogue.excluding_writers() as catalogue:
            state = self.reader.state_seen_by(catalogue)
            rows = state.vectors.rows
            self._vectors = VectorWriter(rows.file.path, width=width)
            self._check_file(self._vectors, state)
            self._vectors.cut(rows.num_stored)  # rows that the last writer did not commit
            self._remove_leftovers(rows.row_map.record)
        if rows.num_stored and not state.vectors.sample:
            positions = spread(rows.num_stored, NUM_CHECKSUMS_FOR_OLD)
            self._add_checksums(positions if rows.ids is None else rows.ids[positions])

    def _remove_leftovers(self, record: VectorsRecord) -> None:
        """Remove the files of a compaction that was killed, unless one is running."""
        if leftovers(self.path, record):
            with suppress(FeatkitError), excluding_builders(self.path):
                remove_leftovers(self.path, record)

    def _add_checksums(self, ids: np.ndarray) -> None:
        with self.catalogue.writing() as catalogue:
            rows = self.reader.state_seen_by(catalogue).vectors.rows
            catalogue.set_checksums(dict(zip(ids.tolist(), checksums(rows.take(ids)), strict=True)))

    def close(self) -> None:
        """Give up the right to write. Does nothing the second time."""
        with self._guard:
            # If the token cannot be removed, the next writer sees that this process is gone.
            with suppress(FeatkitError):
                self.catalogue.drop_token()
            if self._vectors is not None:
                self._vectors.close()
            self._lock.release()

    def add(
        self,
        items: Sequence[NewItem],
        vectors: np.ndarray,
        *,
        apart: Collection[str] = (),
        also: Callable[[CatalogueWriter], None] | None = None,
    ) -> tuple[list[int], int]:
        """Add items with their vectors (n, D); return their ids and how many replaced another.

        apart: keys that are never taken for another spelling of an item's key. also: changes of the
        catalogue in the same transaction, before the items are added.
        """
        with self._guard:
            self._writable()
            if not items and also is None:
                return [], 0
            try:
                with self.catalogue.writing() as catalogue:
                    if also is not None:
                        also(catalogue)
                    state = self.reader.state_seen_by(catalogue)
                    file = self._file_of(state)
                    first = state.vectors.rows.num_rows
                    num_replaced = catalogue.insert_items(
                        first, items, checksums(vectors), apart=apart
                    )
                    # Flushed before the commit that makes the rows count.
                    file.write(state.vectors.rows.num_stored, vectors)
            except BaseException:
                # Ctrl-C may come just after the commit, so the catalogue decides what to cut. What
                # cannot be cut now is left to the next writer, who may be at work already.
                with suppress(FeatkitError), self.catalogue.excluding_writers() as reader:
                    self._cut(reader)
                raise
            self.on_commit()
            return list(range(first, first + len(items))), num_replaced

    def add_changed(
        self, items: Sequence[NewItem], vectors: np.ndarray, *, apart: Collection[str]
    ) -> tuple[int, int]:
        """Add the items that the index does not hold in exactly this form.

        Return how many were added and how many of those replaced another.
        """
        with self._guard:
            changed = self.reader.read(lambda state: _changed(state, items, vectors, apart))
            ids, num_replaced = self.add([items[i] for i in changed], vectors[changed], apart=apart)
            return len(ids), num_replaced

    def remove(self, keys: Iterable[str], *, where: str | None = None) -> int:
        """Remove items by key and those that match a filter, and return how many there were."""
        with self._guard:
            self._writable()
            with self.catalogue.writing() as catalogue:
                ids = [] if where is None else catalogue.ids_matching(text_filter(where))
                matching = [item.key for item in catalogue.items_by_id(ids).values()]
                num_removed = catalogue.remove_items([*keys, *matching])
            self.on_commit()
            return num_removed

    def change(self, work: Callable[[CatalogueWriter], None]) -> None:
        """Change the catalogue in one transaction, without adding vectors."""
        with self._guard:
            self._writable()
            with self.catalogue.writing() as catalogue:
                work(catalogue)
            self.on_commit()

    def restore(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Write vectors (n, D) into the rows of items whose own are damaged.

        Rows that are written without the commit of their checksums differ from those, as before.
        """
        with self._guard:
            self._writable()
            with self.catalogue.writing() as catalogue:
                catalogue.overwrites_rows()
                state = self.reader.state_seen_by(catalogue)
                file = self._file_of(state)
                file.overwrite(state.vectors.rows.row_map.rows_of(ids), vectors)
                catalogue.set_checksums(dict(zip(ids.tolist(), checksums(vectors), strict=True)))
            self.on_commit()

    def set_setting(self, name: str, value: Value) -> None:
        """Store a setting."""
        self.change(lambda catalogue: catalogue.set_setting(name, value))

    def _cut(self, catalogue: CatalogueReader) -> None:
        """Truncate the vectors file to its committed rows, unless a compaction replaced it."""
        record, file = catalogue.vectors_record(), self._vectors
        if file is not None and file.path.name == record.file_name:
            file.cut(record.num_stored(catalogue.num_rows()))

    def _file_of(self, state: IndexState) -> VectorWriter:
        """Return the vectors file of a state, which a compaction may have replaced.

        InputError if the file at its path is another one than was opened.
        """
        assert self._vectors is not None
        path = state.vectors.rows.file.path
        if self._vectors.path != path:
            old, self._vectors = self._vectors, VectorWriter(path, width=state.width)
            old.close()
        self._check_file(self._vectors, state)
        return self._vectors

    def _writable(self) -> None:
        """Raise ValueError if this process cannot write the index any more."""
        assert self._vectors is not None
        if self._vectors.is_closed:
            raise ValueError(f"{self.path} has been closed")
        if self._process != os.getpid():  # SQLite's locks and the token are the parent's
            raise ValueError(
                f"{self.path} was opened for writing by the parent process; open it in this one"
            )

    def _check_file(self, file: VectorWriter, state: IndexState) -> None:
        """Raise InputError if the vectors file at the path is not the one that is open."""
        if not file.is_at(state.vectors.signature):
            raise InputError(
                f"{file.path} was replaced after {self.path} was opened for writing; open it again."
            )


def _changed(
    state: IndexState, items: Sequence[NewItem], vectors: np.ndarray, apart: Collection[str]
) -> list[int]:
    """Return the positions of the items that are not stored in exactly this form."""
    stored = state.catalogue.stored_keys([item.key for item in items], apart=apart)
    by_stored_key = state.catalogue.items_by_key(list(stored.values()))
    old_items = {key: by_stored_key[stored_key] for key, stored_key in stored.items()}
    old_ids = np.array([item.id for item in old_items.values()], np.int64)
    old_vectors = dict(zip(old_items, state.vectors.rows.take(old_ids), strict=True))
    return [
        i
        for i, item in enumerate(items)
        if (old := old_items.get(item.key)) is None
        or not same_item(old, item)
        or not np.array_equal(old_vectors[item.key], vectors[i])
        or state.catalogue.thumbnail(old.id) != item.thumbnail
    ]
