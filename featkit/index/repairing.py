"""Repair an index: damaged vectors, a vectors file that is too short or missing, and codes.

A vector is written back into its own row, from an embeddings folder or by embedding its image
again. A row that a stopped repair left half written differs from its checksum, as before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from featkit.atomic import explain_os_errors
from featkit.digests import content_digest
from featkit.embeddings import Embeddings, ShardRow
from featkit.embeddings.shards import from_table
from featkit.errors import InputError, Interrupted
from featkit.folders import CATALOGUE_FILE
from featkit.index.approximate.building import compact
from featkit.index.approximate.generation import SETTING, Generation
from featkit.index.arguments import unit_vectors
from featkit.index.catalogue import Catalogue
from featkit.index.checking import CODES, CheckReport
from featkit.index.compatibility import Compatibility
from featkit.index.index import Index
from featkit.index.records import Item
from featkit.index.state import IndexState
from featkit.index.table_writer import CatalogueWriter
from featkit.index.vectors import FLOAT32, checksums
from featkit.index.writing import LOCK_FILE
from featkit.lock import WriterLock
from featkit.sources import Source, subset
from featkit.sources.keys import twins
from featkit.wording import counted
from featkit.workers import Workers, workers_for

ROWS_AT_ONCE = 256  # share a commit

# Images or their vectors, by which damaged ones are replaced.
Origin: TypeAlias = Embeddings | Source
# The keys of items, each with the row that an origin has of it.
Rows: TypeAlias = list[tuple[str, ShardRow]]


@dataclass
class RepairReport:
    """The result of a repair. done: what was done, in words. left: key and reason of each image
    whose vector is still damaged, by key.
    """

    done: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def repair(
    index: Index,
    report: CheckReport,
    *,
    origin: Origin | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> RepairReport:
    """Repair what a check found in an index that is open for writing.

    origin: an embeddings folder or images. A vector of an embeddings folder is taken if it has the
    checksum of the one that was lost; or, in an index that is older than checksums, if the
    thumbnails are equal. An image is embedded again if it has the digest that `featkit sync`
    recorded, or else the thumbnail of the item. Items that cannot be restored stay as they are.

    Without an origin, items with a damaged vector are removed, and forgotten by `featkit sync`, so
    that the next sync embeds them again. Damaged codes are built again once all vectors are sound.
    Other problems need a copy of the index.

    on_progress: called with the number of vectors dealt with, and of those that are left.
    InputError if the embeddings folder is of another model, or damaged; EnvironmentProblem on a
    full disk; Interrupted on Ctrl-C, after which finished vectors stay restored.
    """
    repaired = RepairReport()
    if report.damaged and origin is None:
        repaired.done.append(_remove(index, report.damaged))
    elif report.damaged and origin is not None:
        try:
            _restore(index, report.damaged, origin, repaired, on_progress)
        except KeyboardInterrupt:
            raise Interrupted(
                "Stopped by Ctrl-C; what was restored stays, and the same command continues."
            ) from None
    if not repaired.left and any(problem.part == CODES for problem in report.problems):
        text = index.read(lambda state: state.catalogue.settings().get(SETTING))
        record = Generation.from_json(str(text))
        compact(index, kind=record.kind, target=record.target, allow_low_recall=True)
        repaired.done.append(f"built {record.kind.about} again")
    return repaired


def fill_truncated(path: Path, *, may_be_missing: bool = False) -> list[str]:
    """Fill a truncated vectors file with zeros, so that its index can be opened and repaired.

    Return what was done. `check` then reports the vectors that are lost. may_be_missing: also
    create a file that is missing, without which no vector is left.

    InputError for a missing file; EnvironmentProblem if another process writes the index.
    """
    lock, catalogue = WriterLock(path / LOCK_FILE), Catalogue(path / CATALOGUE_FILE)
    with closing(catalogue):
        try:
            with catalogue.reading() as reader:  # refuses what is not a catalogue
                width = Compatibility.of(path, reader.settings()).width
            with catalogue.excluding_writers() as reader:
                record = reader.vectors_record()
                file, row_bytes = path / record.file_name, width * FLOAT32.itemsize
                needed = record.num_stored(reader.num_rows()) * row_bytes
                with explain_os_errors(file):
                    num_bytes = file.stat().st_size if file.exists() else 0
                    if num_bytes >= needed or not (file.exists() or may_be_missing):
                        return []
                    with file.open("ab") as opened:
                        opened.truncate(needed)
                        os.fsync(opened.fileno())
        finally:
            lock.release()
    num_vectors = -(-(needed - num_bytes) // row_bytes)
    return [f"filled {file.name}, which had lost {counted(num_vectors, 'vector')} at its end"]


def _remove(index: Index, damaged: Sequence[str]) -> str:
    """Remove and forget items, and return the sentence for it."""
    for start in range(0, len(damaged), ROWS_AT_ONCE):

        def forget(
            catalogue: CatalogueWriter, keys: Sequence[str] = damaged[start : start + ROWS_AT_ONCE]
        ) -> None:
            catalogue.remove_items(keys)
            catalogue.forget_files(keys)

        index.writer().change(forget)
    return (
        f"removed {counted(len(damaged), 'image')} with a damaged vector; `featkit sync` or"
        " `featkit index` adds them again"
    )


# Vectors ------------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    """An item, the CRC-32 of its vector, the digest of its image's bytes, and its thumbnail.

    Each of the last three is None if it is unknown.
    """

    item: Item
    checksum: int | None
    digest: bytes | None
    thumbnail: bytes | None


def _restore(
    index: Index,
    damaged: Sequence[str],
    origin: Origin,
    repaired: RepairReport,
    on_progress: Callable[[int, int], None],
) -> None:
    """Restore the vectors of items by key, as far as possible, and report it."""
    name = str(origin.path) if isinstance(origin, Embeddings) else origin.name
    missing = dict.fromkeys(damaged)
    num_exact = num_replaced = 0
    for rows in _rows_of(index, {*damaged}, origin):
        stored = index.read(partial(_stored, keys=[key for key, _ in rows]))
        ids: list[int] = []
        vectors: list[np.ndarray] = []
        for key, row in rows:
            missing.pop(key, None)
            is_exact = _is_exact(stored[key], row)
            reason = None if is_exact else _difference(index, stored[key], row)
            if reason is not None or row.embedding is None:
                repaired.left[key] = str(reason)
                continue
            ids.append(stored[key].item.id)
            vectors.append(row.embedding)
            num_exact, num_replaced = num_exact + is_exact, num_replaced + (not is_exact)
        if ids:
            index.writer().restore(np.array(ids, np.int64), np.stack(vectors))
        on_progress(len(damaged) - len(missing), len(repaired.left))
    repaired.left |= dict.fromkeys(missing, f"{name} does not have it")
    if num_exact:
        repaired.done.append(f"restored {counted(num_exact, 'vector')} exactly, from {name}")
    if num_replaced:
        images = counted(num_replaced, "image")
        repaired.done.append(
            f"took the vectors of {images} with equal thumbnails from {name}"
            if isinstance(origin, Embeddings)
            else f"embedded {images} of {name} again"
        )


def _stored(state: IndexState, keys: Sequence[str]) -> dict[str, _Stored]:
    catalogue = state.catalogue
    items, digests = catalogue.items_by_key(keys), catalogue.file_digests(keys)
    ids = [item.id for item in items.values()]
    committed = catalogue.checksums(ids)
    now = dict(zip(ids, checksums(state.vectors.rows.take(np.array(ids, np.int64))), strict=True))
    return {
        key: _Stored(
            item,
            # If a damaged vector has its checksum, that was taken after the damage.
            None if committed.get(item.id) == now[item.id] else committed.get(item.id),
            digests.get(key),
            catalogue.thumbnail(item.id),
        )
        for key, item in items.items()
    }


def _is_exact(stored: _Stored, row: ShardRow) -> bool:
    """Return whether a row has the very vector that an item has lost."""
    return (
        stored.checksum is not None
        and row.embedding is not None
        and checksums(row.embedding[None]) == [stored.checksum]
    )


def _difference(index: Index, stored: _Stored, row: ShardRow) -> str | None:
    """Return why a row's vector cannot replace that of an item, or None if it can."""
    if row.embedding is None:
        return row.error or "it has no embedding"
    try:
        unit_vectors(row.embedding[None], width=index.width, keys=[row.key], index=index.path)
    except InputError as error:
        return str(error)
    is_embedded_now = row.stamp.digest is not None
    if stored.digest is not None and is_embedded_now:
        is_same_image = row.stamp.digest == stored.digest
    else:
        is_same_image = row.thumbnail is not None and row.thumbnail == stored.thumbnail
    if not is_same_image:
        return "its image is another one, or has changed"
    # A file may have been damaged, but not what was embedded just now.
    if stored.checksum is not None and not is_embedded_now:
        return "its vector is another one"
    return None


def _rows_of(index: Index, keys: set[str], origin: Origin) -> Iterator[Rows]:
    if isinstance(origin, Embeddings):
        return _rows_of_folder(index, keys, origin)
    return _rows_of_images(index, keys, origin)


def _rows_of_folder(index: Index, keys: set[str], folder: Embeddings) -> Iterator[Rows]:
    """Yield the rows that an embeddings folder has of items, shard by shard."""
    settings = index.read(lambda state: state.catalogue.settings())
    Compatibility.of(index.path, settings).check_embeddings(folder)
    apart = twins(lambda: (key for table in folder.tables(["key"]) for key in _keys_of(table)))
    unwritten = {*folder.missing_shards()}
    for shard in range(folder.plan.num_shards):
        if shard in unwritten:
            continue
        wanted = _wanted(index, keys, _keys_of(folder.shard_table(shard, ["key"])), apart)
        if wanted:
            rows = from_table(folder.shard_table(shard).take([*wanted.values()]))
            yield [*zip(wanted, rows, strict=True)]


def _rows_of_images(index: Index, keys: set[str], source: Source) -> Iterator[Rows]:
    """Yield the rows of items, embedded again from their images."""
    all_keys = [source.key(item) for item in range(len(source))]
    wanted = _wanted(index, keys, all_keys, {*all_keys})
    if not wanted:
        return
    stored_keys = [*wanted]
    embedder = index.open_embedder(threads=1)
    images = subset(source, [*wanted.values()])
    workers = Workers(images, embedder, workers_for(embedder), digest=content_digest)
    step = embedder.batch_size
    turns = [range(start, min(start + step, len(images))) for start in range(0, len(images), step)]
    try:
        waiting: Rows = []
        for turn, rows in zip(turns, workers.run(turns), strict=True):
            waiting += zip(stored_keys[turn.start : turn.stop], rows, strict=True)
            if len(waiting) >= ROWS_AT_ONCE or turn == turns[-1]:
                yield waiting
                waiting = []
    finally:
        workers.stop()


def _keys_of(table: pa.Table) -> list[str]:
    keys: list[str] = table["key"].to_pylist()
    return keys


def _wanted(
    index: Index, keys: set[str], present: Sequence[str], apart: Collection[str]
) -> dict[str, int]:
    """Return the positions of items in a list of keys, which may be spelled otherwise there."""
    stored = index.read(lambda state: state.catalogue.stored_keys(present, apart=apart))
    return {
        stored[key]: position for position, key in enumerate(present) if stored.get(key) in keys
    }
