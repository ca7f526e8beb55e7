"""Make the changes in an index, in transactions that each leave a complete state."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featkit.digests import content_digest
from featkit.embeddings import SHOWN_FAILURES, ShardRow
from featkit.embeddings.columns import Metadata, as_text, metadata_of
from featkit.errors import InputError
from featkit.images.exif import NAMES, exif_of
from featkit.index import Index, IndexState
from featkit.index.arguments import unit_vectors
from featkit.index.records import Item, KnownFile, NewItem, Value
from featkit.index.table_writer import CatalogueWriter
from featkit.sources import Source, subset
from featkit.syncing.changes import Changes, Progress
from featkit.syncing.listing import Listing
from featkit.workers import Workers, workers_for

if TYPE_CHECKING:
    from featkit.syncing.run import SyncOptions

# A commit flushes the disk twice, so several images share one.
ROWS_PER_COMMIT, SECONDS_PER_COMMIT = 256, 5.0


def source_name(source: Source) -> str:
    """Return the name of a source for any working directory."""
    path = Path(source.name)
    return as_text(str(path.absolute().resolve()) if path.exists() else source.name)


def source_metadata(
    metadata: Mapping[str, Value], supplied: Mapping[str, Value]
) -> dict[str, Value]:
    """Return stored metadata without what EXIF declared. supplied: what the source has now, which
    may have fields of the same names.
    """
    return {
        name: value for name, value in metadata.items() if name not in NAMES or name in supplied
    }


class Applier:
    """Changes an index to equal a source."""

    def __init__(
        self,
        listing: Listing,
        index: Index,
        known: Mapping[str, KnownFile],
        options: SyncOptions,
        progress: Progress,
    ) -> None:
        self.listing, self.index, self.known = listing, index, known
        self.options, self.progress = options, progress
        self.name = source_name(listing.source)
        # Another image's name in another Unicode form is not a spelling of an item's key.
        self.apart = listing.items.keys()
        self.booleans = index.read(lambda state: state.catalogue.boolean_fields())
        self.num_embedded = self.num_copied = 0
        self.failures: list[tuple[str, str]] = []  # key and reason of the first ones

    def apply(self, changes: Changes) -> None:
        """Make all changes, in an order in which each commit can be the last."""
        existing = {key: other for key, other in changes.copies.items() if self._has_item(other)}
        others = {key: other for key, other in changes.copies.items() if key not in existing}
        self._record(changes.touched, changes)
        # First the copies, since what follows replaces and removes items with these vectors.
        not_copied = self._copy(existing, changes)
        not_moved = self._move(changes)
        self._describe(changes.described)
        self._embed([*changes.new, *changes.changed, *not_copied, *not_moved])
        self._embed(self._copy(others, changes))
        self._remove(changes.gone)

    def _has_item(self, key: str) -> bool:
        return key in self.known and self.known[key].item is not None

    def _known_file(self, key: str, digest: bytes | None, *, error: str | None = None) -> KnownFile:
        """Return what to record of an image. Its file's state is older than the bytes that were
        read, so a change in between shows at the next run.
        """
        size, mtime_ns = self.listing.states[self.listing.items[key]].recorded
        return KnownFile(size=size, mtime_ns=mtime_ns, digest=digest, error=error)

    def _record(self, keys: Sequence[str], changes: Changes) -> None:
        for block in blocks(keys):
            files = {
                key: self._known_file(key, changes.digests[key], error=self.known[key].error)
                for key in block
            }
            self.index.writer().change(recording(files))

    def _copy(self, pairs: Mapping[str, str], changes: Changes) -> list[str]:
        """Add images with the vector of another with the same bytes; return those without one."""
        not_copied: list[str] = []
        apart = {*self.apart, *changes.moved.values()}
        for block in blocks([*pairs]):
            part = {key: pairs[key] for key in block}
            items, vectors = self.index.read(
                partial(self._copied, pairs=part, digests=changes.digests)
            )
            files = {
                item.key: self._known_file(item.key, changes.digests[item.key]) for item in items
            }
            not_copied += [key for key in block if key not in files]
            self.index.writer().add(items, vectors, apart=apart, also=recording(files))
            self.num_copied += len(items)
        return not_copied

    def _copied(
        self, state: IndexState, pairs: Mapping[str, str], digests: Mapping[str, bytes]
    ) -> tuple[list[NewItem], np.ndarray]:
        """Return new items for the keys of `pairs`, with the vectors of the others, if those still
        have the same bytes.
        """
        stored = state.catalogue.items_by_key([*pairs.values()])
        recorded = state.catalogue.file_digests([*pairs.values()])
        found = {
            key: stored[other]
            for key, other in pairs.items()
            # The other may have been replaced since, by a copy or by what its file holds now.
            if other in stored and recorded.get(other) == digests[key]
        }
        items = [
            self._new_item(key, item, thumbnail=state.thumbnail(item.id))
            for key, item in found.items()
        ]
        return items, np.stack([state.vector(item.id) for item in found.values()]) if found else (
            np.zeros((0, state.width), np.float32)
        )

    def _new_item(self, key: str, like: Item, *, thumbnail: bytes | None = None) -> NewItem:
        """Return an item for a key with the size and EXIF of one that has the same bytes."""
        exif = {name: value for name, value in like.metadata.items() if name in NAMES}
        return NewItem(
            key=key,
            source=self.name,
            width=like.width,
            height=like.height,
            thumbnail=thumbnail,
            metadata=exif | metadata_of(self.listing.source, self.listing.items[key]),
        )

    def _move(self, changes: Changes) -> list[str]:
        """Give items of gone keys the keys that their images have now; return keys without one."""
        not_moved: list[str] = []
        for block in blocks([*changes.moved]):
            old = [changes.moved[key] for key in block]
            stored = self._stored(old)
            found = {key: other for key, other in zip(block, old, strict=True) if other in stored}
            not_moved += [key for key in block if key not in found]
            moves = {
                stored[other].id: self._new_item(key, stored[other]) for key, other in found.items()
            }
            files = {key: self._known_file(key, changes.digests[key]) for key in found}

            def move(
                catalogue: CatalogueWriter,
                moves: Mapping[int, NewItem] = moves,
                files: Mapping[str, KnownFile] = files,
                old: Sequence[str] = old,
            ) -> None:
                for item_id, item in moves.items():
                    catalogue.move_item(item_id, item)
                catalogue.forget_files(old)
                catalogue.record_files(files)

            self.index.writer().change(move)
        return not_moved

    def _describe(self, keys: Sequence[str]) -> None:
        """Give items the metadata that the source has now."""
        for block in blocks(keys):
            stored = self._stored(block)
            new = {item.id: self._new_item(key, item) for key, item in stored.items()}

            def describe(catalogue: CatalogueWriter, new: Mapping[int, NewItem] = new) -> None:
                for item_id, item in new.items():
                    catalogue.move_item(item_id, item)

            self.index.writer().change(describe)

    def _stored(self, keys: Sequence[str]) -> dict[str, Item]:
        return self.index.read(lambda state: state.catalogue.items_by_key(keys))

    def _remove(self, keys: Sequence[str]) -> None:
        for block in blocks(keys):

            def remove(catalogue: CatalogueWriter, block: Sequence[str] = block) -> None:
                catalogue.remove_items(block)
                catalogue.forget_files(block)

            self.index.writer().change(remove)

    # Embedding ------------------------------------------------------------------------------------

    def _embed(self, keys: Sequence[str]) -> None:
        """Embed images and add them in their order, several per commit."""
        if not keys:
            return
        source = subset(self.listing.source, [self.listing.items[key] for key in keys])
        embedder = self.index.open_embedder(threads=1)
        workers = Workers(
            source,
            embedder,
            self.options.workers or workers_for(embedder),
            digest=content_digest,
            describe=self._exif,
        )
        turns = [
            range(start, min(start + embedder.batch_size, len(keys)))
            for start in range(0, len(keys), embedder.batch_size)
        ]
        waiting: list[ShardRow] = []
        num_done = num_failed = 0
        committed = time.monotonic()
        try:
            with self.progress("embedding", len(keys)) as on_progress:
                for rows in workers.run(turns):
                    waiting += rows
                    if (
                        len(waiting) >= ROWS_PER_COMMIT
                        or time.monotonic() > committed + SECONDS_PER_COMMIT
                    ):
                        self._add(waiting)
                        waiting, committed = [], time.monotonic()
                    num_done += len(rows)
                    num_failed += sum(row.error is not None for row in rows)
                    on_progress(num_done, num_failed)
                self._add(waiting)
        finally:
            workers.stop()

    def _exif(self, data: bytes) -> Metadata:
        """Return what EXIF declares, without fields that hold booleans in this index."""
        declared = exif_of(data, position=self.options.gps)
        return {name: value for name, value in declared.items() if name not in self.booleans}

    def _add(self, rows: Sequence[ShardRow]) -> None:
        """Add the embedded rows, and record all.

        A row that the index refuses, such as one with metadata of another kind, becomes a failure.
        """
        try:
            self._add_all(rows)
        except InputError as error:
            if len(rows) > 1:
                for row in rows:
                    self._add([row])
                return
            self._add_all([dataclasses.replace(rows[0], embedding=None, error=str(error))])

    def _add_all(self, rows: Sequence[ShardRow]) -> None:
        """Add the embedded rows, and record all; one that failed loses its item."""
        good = [row for row in rows if row.embedding is not None]
        failed = [row.key for row in rows if row.embedding is None]
        files = {
            row.key: self._known_file(row.key, row.stamp.digest, error=row.error) for row in rows
        }
        vectors = np.zeros((0, self.index.width), np.float32)
        if good:
            vectors = unit_vectors(
                np.stack([row.embedding for row in good if row.embedding is not None]),
                width=self.index.width,
                keys=[row.key for row in good],
                index=self.index.path,
            )

        def record(catalogue: CatalogueWriter) -> None:
            catalogue.remove_items(failed)
            catalogue.record_files(files)

        items = [
            NewItem(
                key=row.key,
                source=self.name,
                width=row.width,
                height=row.height,
                thumbnail=row.thumbnail,
                metadata=row.metadata,
            )
            for row in good
        ]
        self.index.writer().add(items, vectors, apart=self.apart, also=record)
        self.num_embedded += len(items)
        failures = [(row.key, row.error) for row in rows if row.error is not None]
        self.failures += failures[: SHOWN_FAILURES - len(self.failures)]


def recording(files: Mapping[str, KnownFile]) -> Callable[[CatalogueWriter], None]:
    """Return the change that records the state of images."""
    return lambda catalogue: catalogue.record_files(files)


def blocks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the keys in parts that share a commit."""
    for start in range(0, len(keys), ROWS_PER_COMMIT):
        yield keys[start : start + ROWS_PER_COMMIT]
