"""One committed state of an index, and the queries that it answers."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from featkit.errors import InputError
from featkit.index.allowed import AllowedIds
from featkit.index.arguments import (
    one_query,
    text_filter,
    text_keys,
    unit_vectors,
    whole_number,
)
from featkit.index.meaning import CALIBRATION, Calibration, Meaning
from featkit.index.records import MAX_INTEGER, Hit, Item, NoSuchItem, Value
from featkit.index.refining import Refinement, diverse, expanded, reciprocal_distances
from featkit.index.searcher import Neighbors, Searcher
from featkit.index.stored_rows import ChecksummedRows, FileRows
from featkit.index.tables import CatalogueReader, DamagedCatalogue, StateKey
from featkit.index.vectors import Signature

# When the files have changed, the checksums of this many committed vectors are compared: the
# first, the last and evenly spread ones between.
SAMPLE_SIZE = 32
NUM_COMPARED = 1000  # vectors that identify the content of an index
NO_REFINEMENT = Refinement()


@dataclass(frozen=True)
class CommittedVectors:
    """The N committed vectors of one state, and which of their ids are live: (N,) bool.

    This is the part of a state that outlives a read. `sample` has checksums by id; `signature` is
    that of the vectors file when the sample was last verified.
    """

    key: StateKey
    rows: FileRows
    live: np.ndarray
    searcher: Searcher
    signature: Signature
    sample: dict[int, int]
    allowed: AllowedIds
    calibration: Calibration | None

    def check_sample(self) -> None:
        """Raise InputError unless the sampled vectors of the file have their checksums.

        If they do not, it is damaged or belongs to another index.
        """
        rows = ChecksummedRows(self.rows.unheld())
        rows.take(np.fromiter(self.sample, np.int64, len(self.sample)))
        self.check(rows.checksums(self.sample), self.sample)

    def check(self, computed: Mapping[int, int], committed: Mapping[int, int]) -> None:
        """Raise InputError unless the computed checksums equal the committed ones, by id."""
        for item_id, checksum in committed.items():
            if computed[item_id] != checksum:
                raise InputError(
                    f"{self.rows.file.path} does not belong to catalogue.sqlite or is damaged:"
                    f" vector {item_id} differs from the committed one; restore both from one copy,"
                    " or run `featkit repair`."
                )


class IndexState:
    """One committed state of an index. Valid only within the `Index.read` that passed it."""

    def __init__(
        self, path: Path, width: int, catalogue: CatalogueReader, vectors: CommittedVectors
    ) -> None:
        self.path, self.width = path, width
        self.catalogue, self.vectors = catalogue, vectors

    @property
    def id(self) -> str:
        """The random id of the index."""
        return self.vectors.key.index_id

    def __len__(self) -> int:
        """Return the number of items, without removed ones."""
        return self.count()

    def ids(self, where: str | None = None) -> np.ndarray:
        """Return the ids of the items, or of those that match a filter, ascending: (n,) int64."""
        return np.flatnonzero(self._allowed(where))

    def count(self, where: str | None = None) -> int:
        """Return the number of items, or of those that match a filter."""
        return int(np.count_nonzero(self._allowed(where)))

    def __contains__(self, key: object) -> bool:
        """Return whether there is an item with this key."""
        return isinstance(key, str) and bool(self.catalogue.items_by_key([key]))

    @overload
    def search(
        self, *, item: int, k: int = ..., where: str | None = ..., refine: Refinement = ...
    ) -> list[Hit]: ...
    @overload
    def search(
        self,
        *,
        vectors: np.ndarray,
        k: int = ...,
        where: str | None = ...,
        refine: Refinement = ...,
    ) -> list[list[Hit]]: ...
    def search(
        self,
        *,
        item: int | None = None,
        vectors: np.ndarray | None = None,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
    ) -> list[Hit] | list[list[Hit]]:
        """Return the k items nearest to an item or to each of several vectors.

        Arguments, results and errors are those of `Index.search`.
        """
        one_query(item=item, vectors=vectors)
        k = whole_number(k, "k", least=1)
        if item is not None:
            return self._hits(self.vector(item)[None], k, where, refine)[0]
        queries = unit_vectors(vectors, width=self.width, keys=None, index=self.path)
        return self._hits(queries, k, where, refine)

    def _hits(
        self, queries: np.ndarray, k: int, where: str | None, refine: Refinement
    ) -> list[list[Hit]]:
        results = self.nearest(queries, k=refine.expand or refine.pool(k), where=where)
        if refine != NO_REFINEMENT:
            results = [
                self._refined(query, each, k, where, refine)
                for query, each in zip(queries, results, strict=True)
            ]
        if not results:
            return []
        items = self._items(np.unique(np.concatenate([each.ids for each in results])).tolist())
        return [
            [
                Hit.of(items[item_id], score, self.meaning(score))
                for item_id, score in zip(
                    neighbors.ids.tolist(), neighbors.scores.tolist(), strict=True
                )
            ]
            for neighbors in results
        ]

    def meaning(self, score: float) -> Meaning | None:
        """Return what a score means in this index, or None if it is not calibrated."""
        calibration = self.vectors.calibration
        return None if calibration is None else calibration.meaning(score)

    def _refined(
        self, query: np.ndarray, found: Neighbors, k: int, where: str | None, refine: Refinement
    ) -> Neighbors:
        """Return the k hits of one query, refined; `found` are the plain ones."""
        if refine.changes_order and len(found.ids):
            search_with = query
            if refine.expand:
                search_with = expanded(query, self.vectors_of(found.ids), found.scores)
                (found,) = self.nearest(search_with[None], k=refine.pool(k), where=where)
            vectors, relevance = self.vectors_of(found.ids), found.scores
            scores = np.einsum("md,d->m", vectors.astype(np.float64), query.astype(np.float64))
            found = found._replace(scores=scores.astype(np.float32))
            if refine.rerank:
                first = reciprocal_distances(search_with, vectors[: refine.rerank])
                order = np.argsort(first, kind="stable")
                found = _chosen(found, np.append(order, np.arange(len(order), len(found.ids))))
            elif refine.diversity:
                least = -np.inf if refine.min_score is None else refine.min_score
                pool = np.flatnonzero(found.scores >= least)
                chosen = diverse(relevance[pool], vectors[pool], k=k, diversity=refine.diversity)
                found = _chosen(found, pool[chosen])
        if refine.min_score is not None:
            found = _chosen(found, np.flatnonzero(found.scores >= refine.min_score))
        return _chosen(found, np.arange(len(found.ids))[:k])

    def nearest(self, queries: np.ndarray, *, k: int, where: str | None = None) -> list[Neighbors]:
        """Return ids and scores of the k items nearest to each of several vectors (Q, D)."""
        rows = ChecksummedRows(self.vectors.rows)
        allowed = self._allowed(where)
        results = self.vectors.searcher.search(queries, rows, k=k, allowed=allowed)
        if results:
            self._verify(rows, np.unique(np.concatenate([each.ids for each in results])))
        return results

    def _allowed(self, where: str | None) -> np.ndarray:
        """Return which ids are live and match a filter, (N,) bool."""
        if where is None:
            return self.vectors.live
        text = text_filter(where)
        return self.vectors.allowed.get(text, lambda: self.catalogue.ids_matching(text))

    def item(self, item_id: int) -> Item:
        """Return an item by id. NoSuchItem if it does not exist or was removed."""
        item_id = whole_number(item_id, "The id")
        in_range = 0 <= item_id <= MAX_INTEGER
        items = self.catalogue.items_by_id([item_id]) if in_range else {}
        if item_id not in items:
            raise NoSuchItem(self.path, item_id)
        return items[item_id]

    def item_by_key(self, key: str) -> Item:
        """Return an item by key. NoSuchItem if it does not exist or was removed."""
        (key,) = text_keys([key], call="item_by_key(")
        items = self.catalogue.items_by_key([key])
        if key not in items:
            raise NoSuchItem(self.path, key)
        return items[key]

    def items(self, offset: int = 0, limit: int = 100, *, where: str | None = None) -> list[Item]:
        """Return items in the order they were added, after skipping the first `offset`.

        where: a filter; only the items that match it count.
        """
        offset = whole_number(offset, "offset", least=0)
        limit = whole_number(limit, "limit", least=0)
        ids = self.ids(where)[offset : offset + limit].tolist()
        items = self._items(ids)
        return [items[item_id] for item_id in ids]

    def sample(self, limit: int = 100, *, seed: int = 0, where: str | None = None) -> list[Item]:
        """Return up to `limit` different items in random order, reproducible by the seed.

        where: a filter; only items that match it.
        """
        live = self.ids(where)
        positions = random.Random(seed).sample(range(len(live)), min(limit, len(live)))
        ids = live[positions].tolist()
        items = self._items(ids)
        return [items[item_id] for item_id in ids]

    def thumbnail(self, item_id: int) -> bytes | None:
        """Return the JPEG bytes of an item's thumbnail, or None if it has none. NoSuchItem."""
        return self.catalogue.thumbnail(self.item(item_id).id)

    def vector(self, item_id: int) -> np.ndarray:
        """Return a copy of an item's vector, (D,) float32. NoSuchItem."""
        vector: np.ndarray = self.vectors_of(np.array([self.item(item_id).id], np.int64))[0]
        return vector

    def vectors_of(self, ids: np.ndarray) -> np.ndarray:
        """Return a copy of the vectors of items, (n, D) float32. The ids are of live items."""
        rows = ChecksummedRows(self.vectors.rows)
        vectors: np.ndarray = rows.take(ids)
        self._verify(rows, ids)
        return vectors

    def _verify(self, rows: ChecksummedRows, ids: np.ndarray) -> None:
        """Compare the checksums of the rows that an answer used with the committed ones."""
        new = rows.unverified(ids)
        if self.vectors.sample and len(new):  # no sample if the index is older than checksums
            self.vectors.check(rows.checksums(new), self.catalogue.checksums(new.tolist()))
            rows.set_verified(new)

    def _items(self, ids: list[int]) -> dict[int, Item]:
        items = self.catalogue.items_by_id(ids)
        if len(items) != len(ids):
            raise DamagedCatalogue("items are missing")
        return items


def _chosen(found: Neighbors, positions: np.ndarray) -> Neighbors:
    """Return the neighbors at these positions, in their order."""
    return found._replace(ids=found.ids[positions], scores=found.scores[positions])


def read_vectors(
    catalogue: CatalogueReader,
    key: StateKey,
    rows: FileRows,
    signature: Signature,
    searcher: Searcher,
    settings: Mapping[str, Value],
) -> CommittedVectors:
    """Return the committed vectors of the state that a catalogue reader sees, whose settings these
    are."""
    text = settings.get(CALIBRATION)
    live = rows.row_map.have_rows(rows.num_rows)
    deleted = catalogue.deleted_ids()
    if deleted and not 0 <= deleted[0] <= deleted[-1] < rows.num_rows:
        raise DamagedCatalogue("the removed items include ids that were never assigned")
    live[deleted] = False
    sample: dict[int, int] = {}
    if catalogue.has_checksums():
        ids = np.flatnonzero(live)
        sample = catalogue.checksums(ids[spread(len(ids), SAMPLE_SIZE)].tolist())
        if not sample:
            # If the index is older than checksums, only the items added since have one.
            have_rows = rows.row_map.have_rows(rows.num_rows)
            first = catalogue.first_checksums(SAMPLE_SIZE)
            sample = {item_id: crc for item_id, crc in first.items() if have_rows[item_id]}
    return CommittedVectors(
        key=key,
        rows=rows,
        live=live,
        searcher=searcher,
        signature=signature,
        sample=sample,
        allowed=AllowedIds(rows.num_rows),
        calibration=None if text is None else Calibration.from_json(str(text)),
    )


def content_checksum(rows: FileRows, ids: np.ndarray) -> int:
    """Return a checksum of the vectors of some of these items, which identifies their content."""
    some = ids[spread(len(ids), NUM_COMPARED)] if len(ids) else ids
    return zlib.crc32(rows.take(some).tobytes())


def spread(num_rows: int, count: int) -> np.ndarray:
    """Return up to `count` ids below num_rows, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).round().astype(np.int64))
