"""Reads of an index that may be written, replaced or restored at the same time."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

from featkit.errors import FeatkitError, InputError
from featkit.folders import VECTORS_FILE
from featkit.index.approximate.planning import Promise
from featkit.index.catalogue import Catalogue
from featkit.index.compatibility import Compatibility
from featkit.index.index_types import searcher_for
from featkit.index.row_map import RowMap, VectorsRecord
from featkit.index.state import CommittedVectors, IndexState, read_vectors
from featkit.index.stored_rows import FileRows
from featkit.index.tables import CatalogueReader, StateKey
from featkit.index.vectors import Signature, VectorFile, signature_at

# Pauses before each attempt of a read. It is repeated if the files are replaced meanwhile.
PAUSES_S = (0.0, 0.01, 0.03, 0.1, 0.2)

Result = TypeVar("Result")
# of the catalogue and of the vectors file
Signatures: TypeAlias = tuple[Signature | None, Signature | None]


class IndexReader:
    """Pass committed states of the index at a path to reading functions. Thread-safe.

    It keeps the vectors of the latest state, and opens them again when something was committed or
    the files were replaced.
    """

    def __init__(self, path: Path, catalogue: Catalogue, *, check_sample: bool = True) -> None:
        """check_sample: refuse an index with a damaged vector among a few sampled ones."""
        self._checks_sample = check_sample
        self.path, self.catalogue = path, catalogue
        self._folder = path.absolute()  # stays right if the cwd changes
        self._vectors_path = self._folder / VECTORS_FILE  # of the latest state
        self._vectors: CommittedVectors | None = None
        self._lock = threading.Lock()  # guards _vectors
        self._compatibility: Compatibility | None = None
        self._thread = threading.local()

    @property
    def compatibility(self) -> Compatibility:
        """The model and run of the index, with the proofs as of the latest state that was read."""
        assert self._compatibility is not None  # every index is read when it is opened
        return self._compatibility

    def forget(self) -> None:
        """Drop the vectors that are kept for the next read."""
        with self._lock:
            self._vectors = None

    def read(self, work: Callable[[IndexState], Result]) -> Result:
        """Return work(state) for one committed state of the index now at the path.

        If the files change meanwhile other than by a commit, the result is discarded and `work` is
        called again. Reads within `work` see the same state.
        """
        outer: IndexState | None = getattr(self._thread, "state", None)
        if outer is not None:
            return work(outer)
        for pause_s in PAUSES_S:
            if pause_s:
                time.sleep(pause_s)
            path = self._vectors_path
            before = self._signatures(path)
            try:
                with self.catalogue.reading() as catalogue:
                    state = self.state_seen_by(catalogue)
                    self._thread.state = state
                    try:
                        result = work(state)
                    finally:
                        self._thread.state = None
                is_same_path = state.vectors.rows.file.path == path
                file_before = before[1] if is_same_path else state.vectors.signature
                self._check_unreplaced(state.vectors, (before[0], file_before))
                return result
            except FeatkitError:
                # An error is final only if the files stayed the same.
                is_unchanged = (path, before) == (self._vectors_path, self._signatures(path))
                if is_unchanged or pause_s == PAUSES_S[-1]:
                    raise
        raise AssertionError("unreachable")

    def state_seen_by(self, catalogue: CatalogueReader) -> IndexState:
        """Return the state that a catalogue reader sees."""
        key = catalogue.state_key()
        if not key.index_id:  # an index older than ids: the file's signature stands in for one
            key = key._replace(commit=str(self.catalogue.signature()))
        vectors = self._vectors
        if vectors is not None and vectors.key == key:
            record = vectors.rows.row_map.record
        else:
            record = catalogue.vectors_record()
        self._vectors_path = path = self._folder / record.file_name
        signature = signature_at(path)
        if vectors is None or (vectors.key, vectors.signature) != (key, signature):
            vectors = self._loaded(catalogue, key, record, signature, old=vectors)
            self._check_sample(vectors)
            self._keep(vectors)
        return IndexState(self.path, self.compatibility.width, catalogue, vectors)

    def _loaded(
        self,
        catalogue: CatalogueReader,
        key: StateKey,
        record: VectorsRecord,
        signature: Signature,
        *,
        old: CommittedVectors | None,
    ) -> CommittedVectors:
        """Return the vectors of the state that a catalogue reader sees. What stayed the same since
        the old state is not read again. signature: that of the file at the path."""
        settings = catalogue.settings()
        compatibility = Compatibility.of(self.path, settings)
        if self._compatibility is not None:
            compatibility = self._compatibility.updated(compatibility)
        self._compatibility = compatibility

        before = None
        if old is not None and old.rows.row_map.record == record:
            before = old.rows if old.signature.same_file(signature) else None
        file = before.file if before else VectorFile(self._vectors_path, width=compatibility.width)
        signature = file.signature()
        num_rows = catalogue.num_rows()
        file.check_length(record.num_stored(num_rows))
        if before and old and old.key != key and old.key.commit not in catalogue.recent_commits():
            before = None  # a copy of the index may have replaced the files' bytes
        row_map = before.row_map if before else RowMap(record, catalogue.kept_ids(record))
        promise = Promise.of(settings)
        rows = FileRows(
            file,
            num_rows,
            row_map=row_map,
            most_held=promise.spare_bytes(num_rows, compatibility.width) if promise else None,
            before=before,
        )
        searcher = searcher_for(self._folder, settings)
        if old is not None and old.key == key:
            return dataclasses.replace(old, rows=rows, signature=signature, searcher=searcher)
        return read_vectors(catalogue, key, rows, signature, searcher, settings)

    def _check_sample(self, vectors: CommittedVectors) -> None:
        if self._checks_sample:
            vectors.check_sample()

    def _keep(self, new: CommittedVectors) -> None:
        with self._lock:
            old = self._vectors
            # A slow thread must not replace a newer state by an older one of the same index.
            if (
                old is None
                or old.key.changes <= new.key.changes
                or old.key.index_id != new.key.index_id
            ):
                self._vectors = new

    def _signatures(self, vectors_path: Path) -> Signatures:
        """Return the signatures of the catalogue and a vectors file, None for a missing file."""
        return (
            _signature_or_none(self.catalogue.signature),
            _signature_or_none(lambda: signature_at(vectors_path)),
        )

    def _check_unreplaced(self, vectors: CommittedVectors, before: Signatures) -> None:
        """Raise InputError if the files changed since `before` other than by commits."""
        after = self._signatures(vectors.rows.file.path)
        if after == before and after[1] == vectors.signature:
            return
        replaced = InputError(f"{self.path} is being replaced; try again when that is done.")
        if not _are_same_file(before[0], after[0]):
            raise replaced
        # A compaction removes the file of the state before, which this read still has open.
        if not _are_same_file(before[1], after[1]) and (
            self.catalogue.check_still(vectors.key) == vectors.rows.row_map.record
        ):
            raise replaced
        self._check_sample(vectors)
        self.catalogue.check_still(vectors.key)


def _are_same_file(old: Signature | None, new: Signature | None) -> bool:
    return old is not None and new is not None and old.same_file(new)


def _signature_or_none(signature: Callable[[], Signature]) -> Signature | None:
    try:
        return signature()
    except FeatkitError:
        return None
