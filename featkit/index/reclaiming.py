"""Reclaim the rows of removed items, while the index is read and written.

    N ids given so far, n items alive, D width

The rows of live items are copied from a snapshot into a new vectors file, without any lock, and so
are the rows that were added meanwhile. A last transaction, which excludes writers, copies the few
rows since then and puts the file in place. Readers of the state before keep the old file open.
Writers open the new one at their next transaction. Ids stay as they are.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.atomic import explain_os_errors, flush
from featkit.errors import EnvironmentProblem, FeatkitError, InputError, Interrupted
from featkit.index.builders import excluding_builders
from featkit.index.index import Index
from featkit.index.row_map import VectorsRecord, remove_leftovers
from featkit.index.state import CommittedVectors, IndexState, content_checksum
from featkit.index.stored_rows import FileRows
from featkit.index.vectors import FLOAT32, VectorWriter, signature_at

WORTH_SHARE = 0.2  # of the rows that are dead
COPY_BYTES = 16 * 2**20
TOMBSTONES_AT_ONCE = 10_000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DeadRows:
    """Rows of the vectors file that belong to removed items."""

    num_rows: int
    num_dead: int
    row_bytes: int

    @classmethod
    def of(cls, index: Index) -> DeadRows:
        """Count those of the latest state of an index."""
        vectors = index.read(lambda state: state.vectors)
        num_rows = vectors.rows.num_stored
        return cls(
            num_rows=num_rows,
            num_dead=num_rows - int(np.count_nonzero(vectors.live)),
            row_bytes=vectors.rows.width * FLOAT32.itemsize,
        )

    @property
    def num_bytes(self) -> int:
        """The bytes that they take."""
        return self.num_dead * self.row_bytes

    @property
    def are_many(self) -> bool:
        """Return whether reclaiming them is worth copying the others."""
        return self.num_dead > WORTH_SHARE * self.num_rows


def reclaim(index: Index, *, on_progress: Progress = lambda _done, _total: None) -> DeadRows:
    """Write the vectors of live items into a new file, and return what the old one had of others.

    The index is open for reading or writing; other processes may read and write it meanwhile. Does
    nothing without dead rows. From then on, versions of featkit before row maps refuse the index.
    on_progress: called with the number of vectors copied and their total.

    EnvironmentProblem if another process builds or compacts, if an earlier version of featkit is
    writing, or on a full disk; InputError for an index that was replaced meanwhile or is damaged;
    Interrupted on Ctrl-C. After each of these the index is as before.
    """
    with excluding_builders(index.path):
        dead = DeadRows.of(index)
        try:
            if dead.num_dead:
                _reclaim(index, on_progress)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped by Ctrl-C; {index.path} holds what it held. Run the command again."
            ) from None
        finally:
            # Within a transaction, in case the file system's locks do nothing.
            with suppress(FeatkitError), index.excluding_writers() as catalogue:
                remove_leftovers(index.path, catalogue.vectors_record())
        _drop_tombstones(index)
    return dead


def _reclaim(index: Index, on_progress: Progress) -> None:
    snapshot = index.read(lambda state: state.vectors)
    kept = np.flatnonzero(snapshot.live)
    record = VectorsRecord(
        name=secrets.token_hex(8), num_kept=len(kept), until=snapshot.rows.num_rows
    )
    path = index.path.absolute() / record.file_name
    with explain_os_errors(path):
        path.touch()
    file = VectorWriter(path, width=snapshot.rows.width)
    try:
        copier = _Copier(file, on_progress)
        copier.copy(snapshot.rows, kept)
        num_ids = record.until
        now = index.read(lambda state: state.vectors)
        if now.rows.row_map.record == snapshot.rows.row_map.record and now.rows.num_rows > num_ids:
            copier.copy(now.rows, np.arange(num_ids, now.rows.num_rows))
            num_ids = now.rows.num_rows
        flush(index.path)
        with index.publishing(snapshot.key.index_id) as catalogue:
            state = index.state_seen_by(catalogue)
            _check_same(index.path, snapshot, kept, num_ids, state)
            copier.copy(state.vectors.rows, np.arange(num_ids, state.vectors.rows.num_rows))
            _check_present(path, file)
            catalogue.set_vectors_file(record, kept, index.path)
    finally:
        file.close()


class _Copier:
    """Appends rows to a new vectors file."""

    def __init__(self, file: VectorWriter, on_progress: Progress) -> None:
        self._file, self._on_progress = file, on_progress
        self._num_copied = self._num_total = 0

    def copy(self, rows: FileRows, ids: np.ndarray) -> None:
        """Append the rows with these ids, ascending, and flush them to the disk."""
        rows = rows.unheld()
        self._num_total += len(ids)
        step = max(1, COPY_BYTES // rows.file.row_bytes)
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            self._file.write(self._num_copied, rows.take(part))
            self._num_copied += len(part)
            self._on_progress(self._num_copied, self._num_total)


def _check_same(
    path: Path, snapshot: CommittedVectors, kept: np.ndarray, num_ids: int, state: IndexState
) -> None:
    """Raise InputError unless a state continues the snapshot, whose first `num_ids` were copied.

    It does not if the index was replaced meanwhile by another copy of itself.
    """
    now = state.vectors
    if (
        now.rows.row_map.record != snapshot.rows.row_map.record
        or now.rows.num_rows < num_ids
        or (now.live[: snapshot.rows.num_rows] & ~snapshot.live).any()
        or content_checksum(now.rows, kept) != content_checksum(snapshot.rows, kept)
    ):
        raise InputError(f"{path} was replaced by another copy meanwhile; run the command again.")


def _check_present(path: Path, file: VectorWriter) -> None:
    """Raise EnvironmentProblem if the new file is not at its path any more.

    Where the file system's locks do nothing, another process may have taken it for a leftover.
    """
    if not path.exists() or not file.is_at(signature_at(path)):
        raise EnvironmentProblem(
            f"{path} was removed by another process; see that only one compacts {path.parent}, and"
            " run the command again."
        )


def _drop_tombstones(index: Index) -> None:
    """Remove the records of removed items whose rows are gone, in short transactions."""

    def find(state: IndexState) -> tuple[VectorsRecord, np.ndarray]:
        deleted = np.array(state.catalogue.deleted_ids(), np.int64)
        rows = state.vectors.rows
        return rows.row_map.record, deleted[~rows.row_map.have_rows(rows.num_rows)[deleted]]

    record, ids = index.read(find)
    for start in range(0, len(ids), TOMBSTONES_AT_ONCE):
        with index.publishing(index.id) as catalogue:
            if catalogue.vectors_record() == record:
                catalogue.drop_tombstones(ids[start : start + TOMBSTONES_AT_ONCE].tolist())
