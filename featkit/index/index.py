"""Index: a folder that lives, is added to and removed from, and is searched, by programs and by every command.

photos.index/catalogue.sqlite    the truth: items, thumbnails, settings
photos.index/vectors.f32         row `id` is the item's vector
photos.index/model.onnx          the model, so that the folder is all a server needs
photos.index/writer.lock         held by the one writer
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from featkit.atomic import explain_os_errors, replace_folder
from featkit.embedder import Embedder
from featkit.embeddings import COLUMNS, Embeddings, vectors_of
from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.images import Picture
from featkit.index.catalogue import Catalogue, Item, NewItem, Value
from featkit.index.searcher import Snapshot, search_exact
from featkit.index.vectors import Vectors
from featkit.modelfile import read_manifest

CATALOGUE_FILE, VECTORS_FILE, MODEL_FILE, LOCK_FILE = "catalogue.sqlite", "vectors.f32", "model.onnx", "writer.lock"
UNIT_TOLERANCE = 1e-3  # of a vector's length


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result: `score` is the cosine with the query; the rest is the item's."""

    id: int
    key: str
    score: float
    source: str = ""
    width: int | None = None
    height: int | None = None
    metadata: dict[str, Value] = field(default_factory=dict)


@dataclass(kw_only=True)
class AddReport:
    """What adding an embeddings folder came to."""

    num_added: int = 0
    num_replaced: int = 0
    num_without_embedding: int = 0


class Index:
    """An index folder that is open. Reads are safe from several threads; one process writes at a time.

    Example:
        with Index.open("photos.index") as index:
            for hit in index.search("cat.jpg", k=5):
                print(hit.score, hit.key)
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path, self.writable = path, writable
        self._lock_file: IO[str] | None = None
        self._catalogue = Catalogue.open(path / CATALOGUE_FILE, writable=writable)
        self.fingerprint: str = self._catalogue.setting("fingerprint")
        self.width: int = self._catalogue.setting("width")
        self._vectors = Vectors(path / VECTORS_FILE, width=self.width)
        self._snapshot: tuple[tuple[int, int], Snapshot] | None = None
        self._embedder: Embedder | None = None
        self._guard = threading.RLock()
        num_rows = self._catalogue.setting("num_rows")
        self._vectors.check_length(num_rows)

    @classmethod
    def create(cls, path: str | Path, *, model: str | Path) -> Index:
        """Make an empty index for the vectors of one model file, which is copied in, and open it for writing.

        InputError when the folder is there already or the model is no model file; EnvironmentProblem when it cannot be
        written. The folder is there whole or not at all.
        """
        folder = Path(path)
        manifest = read_manifest(Path(model))
        if folder.exists():
            raise InputError(f"{folder} is there already; add to it with Index.open, or choose another place.")
        with replace_folder(folder) as temporary:
            shutil.copyfile(model, temporary / MODEL_FILE)
            (temporary / VECTORS_FILE).touch()
            settings = {"fingerprint": manifest.fingerprint, "width": manifest.width, "metric": "cosine"}
            Catalogue.create(temporary / CATALOGUE_FILE, settings)
        return cls.open(folder, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> Index:
        """InputError when it is missing, none of featkit's, newer than this featkit, or damaged.

        writable: take the writer's lock; EnvironmentProblem, naming the holder, when another process has it.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; make an index with `featkit index emb/ --out {folder}`.")
        if not (folder / CATALOGUE_FILE).is_file():
            raise InputError(f"{folder} is not an index: it has no {CATALOGUE_FILE}; make one with `featkit index`.")
        lock = _take_lock(folder) if writable else None
        try:
            index = cls(folder, writable=writable)
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        index._lock_file = lock
        if writable:
            index._vectors.cut(index._catalogue.setting("num_rows"))
        return index

    def close(self) -> None:
        """Release the files and the lock; safe to call twice."""
        self._catalogue.close()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return self._catalogue.count()

    @property
    def model_path(self) -> Path:
        """The copy of the model that made the vectors."""
        return self.path / MODEL_FILE

    @property
    def embedder(self) -> Embedder:
        """Embeds queries with the index's own model; made at first use."""
        with self._guard:
            if self._embedder is None:
                self._embedder = Embedder(self.model_path)
            return self._embedder

    # -- change ----------------------------------------------------------------------------------------------------

    def add(
        self,
        keys: Sequence[str],
        vectors: np.ndarray,
        *,
        source: str = "",
        widths: Sequence[int | None] | None = None,
        heights: Sequence[int | None] | None = None,
        thumbnails: Sequence[bytes | None] | None = None,
        metadata: Sequence[Mapping[str, Value]] | None = None,
    ) -> list[int]:
        """Add items with unit vectors (n, D) float32, in one transaction; returns their ids.

        A key that is there already is replaced. InputError for vectors of another width or not of unit length.
        """
        count = len(keys)
        absent: Sequence[None] = [None] * count
        items = [
            NewItem(key=key, source=source, width=width, height=height, thumbnail=thumbnail, metadata=columns)
            for key, width, height, thumbnail, columns in zip(
                keys, widths or absent, heights or absent, thumbnails or absent, metadata or [{}] * count, strict=True
            )
        ]
        first_id, _ = self._add(items, vectors)
        return list(range(first_id, first_id + count))

    def add_embeddings(
        self, folder: Embeddings, *, on_progress: Callable[[int, int], None] = lambda _done, _failed: None
    ) -> AddReport:
        """Add all items of an embeddings folder that have an embedding, one transaction a shard.

        InputError when the folder is of another model. Interrupted on Ctrl-C, with the shards added so far kept.
        """
        if folder.plan.fingerprint != self.fingerprint:
            ours = read_manifest(self.model_path).name
            raise InputError(
                f"{folder.path} holds vectors of {folder.plan.model_name} ({folder.plan.fingerprint[:12]}), but {self.path} "
                f"is an index of {ours} ({self.fingerprint[:12]}); their vectors cannot meet: embed again with the same model."
            )
        report, done = AddReport(), 0
        try:
            for table in folder.tables():
                embedded = table.filter(table["embedding"].is_valid())
                _, replaced = self._add(_new_items(embedded.to_pylist(), folder.plan.source), vectors_of(embedded))
                report.num_added += embedded.num_rows
                report.num_replaced += replaced
                report.num_without_embedding += table.num_rows - embedded.num_rows
                done += table.num_rows
                on_progress(done, report.num_without_embedding)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped with {report.num_added:,} items added to {self.path}; run it again to add all."
            ) from None
        return report

    def remove(self, keys: Iterable[str]) -> int:
        """Remove items by key, in one transaction; returns how many there were."""
        self._check_writable()
        return self._catalogue.remove(keys)

    def _add(self, items: Sequence[NewItem], vectors: np.ndarray) -> tuple[int, int]:
        """(first id, number replaced). Vectors reach the disk before the commit that makes them count."""
        self._check_writable()
        if vectors.shape != (len(items), self.width):
            raise InputError(f"{len(items)} items need vectors ({len(items)}, {self.width}), not {vectors.shape}.")
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.all(np.abs(lengths - 1) < UNIT_TOLERANCE):
            raise InputError("An index takes unit vectors; divide each by its length first.")
        with self._guard:
            first_id: int = self._catalogue.setting("num_rows")
            self._vectors.append(vectors, at_row=first_id)
            return first_id, self._catalogue.add(items, first_id=first_id)

    def _check_writable(self) -> None:
        if not self.writable:
            raise InputError(f"{self.path} was opened for reading; use Index.open(path, writable=True).")

    # -- search ----------------------------------------------------------------------------------------------------

    def query(self, vectors: np.ndarray, *, k: int = 10) -> list[list[Hit]]:
        """The k nearest items of each vector (n, D), best first, of one committed state. InputError for another width."""
        vectors = np.atleast_2d(vectors)
        if vectors.shape[1] != self.width:
            raise InputError(f"{self.path} holds vectors of {self.width} numbers, not {vectors.shape[1]}.")
        if k < 1:
            raise InputError(f"k is {k}; ask for at least 1 result.")
        scores, ids = search_exact(self._current(), vectors, k=k)
        items = self._catalogue.items(np.unique(ids).tolist())
        return [
            [_hit(items[number], score) for number, score in zip(row_ids, row_scores, strict=True)]
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]

    def search(self, picture: Picture, *, k: int = 10) -> list[Hit]:
        """The k items nearest to a picture: a path, bytes, a Pillow image or an array. InputError when it cannot be read."""
        return self.query(self.embedder.embed(picture), k=k)[0]

    def search_item(self, number: int, *, k: int = 10) -> list[Hit]:
        """The k items nearest to an item of the index, itself first."""
        return self.query(self.vector(number)[None], k=k)[0]

    def item(self, number: int) -> Item:
        """An item by id. InputError for an id that is not there."""
        found = self._catalogue.items([number]).get(number)
        if found is None or number in self._current().deleted:
            raise InputError(f"{self.path} has no item {number}.")
        return found

    def item_by_key(self, key: str) -> Item | None:
        """An item by key, or None."""
        return self._catalogue.by_key(key)

    def items(self, offset: int = 0, limit: int = 100) -> list[Item]:
        """A page of items, by id."""
        return self._catalogue.page(offset, limit)

    def thumbnail(self, number: int) -> bytes | None:
        """An item's thumbnail (JPEG), or None."""
        return self._catalogue.thumbnail(number)

    def vector(self, number: int) -> np.ndarray:
        """An item's vector (D,) float32. InputError for an id that is not there."""
        self.item(number)
        return np.array(self._current().rows[number])

    def _current(self) -> Snapshot:
        """The newest committed state; mapped again only after somebody committed."""
        with self._guard:
            version = self._catalogue.version()
            if self._snapshot is None or self._snapshot[0] != version:
                num_rows, deleted = self._catalogue.committed()
                self._snapshot = (version, Snapshot(self._vectors.rows(num_rows), deleted))
            return self._snapshot[1]


def _hit(item: Item, score: float) -> Hit:
    return Hit(
        id=item.id,
        key=item.key,
        score=score,
        source=item.source,
        width=item.width,
        height=item.height,
        metadata=item.metadata,
    )


def _new_items(rows: Sequence[Mapping[str, object]], source: str) -> list[NewItem]:
    """Rows of an embeddings shard as items; columns beside the fixed ones are metadata."""
    return [
        NewItem(
            key=str(row["key"]),
            source=source,
            width=row["width"],  # type: ignore[arg-type]  # the shard's schema says int32
            height=row["height"],  # type: ignore[arg-type]
            thumbnail=row["thumbnail"],  # type: ignore[arg-type]  # and binary
            metadata={
                name: value for name, value in row.items() if name not in COLUMNS and isinstance(value, str | int | float)
            },
        )
        for row in rows
    ]


def _take_lock(folder: Path) -> IO[str]:
    """The writer's lock, released by the system when this process ends. EnvironmentProblem naming who has it."""
    with explain_os_errors(folder / LOCK_FILE):
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise EnvironmentProblem(f"{folder} is being written by {holder}; wait until it is done.") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
