"""Index: pictures as vectors in a folder that lives: one process adds and removes, many search."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from featkit.atomic import replace_folder
from featkit.backends import BF16, OPENVINO, Run, possible_runs, reference_run
from featkit.embeddings import COLUMNS, Embeddings, vectors_of
from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.images import DEFAULT_LIMITS, ImageLimits, Picture
from featkit.index import catalogue
from featkit.index.catalogue import Catalogue, Item, NewItem, Value
from featkit.index.proofs import Proof, meet, read_proofs, write_proofs
from featkit.index.searcher import Found, exact_search
from featkit.index.vectors import VectorWriter, map_vectors
from featkit.lock import WriterLock
from featkit.modelfile import Manifest, copy_model_file, read_manifest
from featkit.sources.keys import twins

if TYPE_CHECKING:
    from featkit.embedder import Embedder

CATALOGUE_FILE, VECTORS_FILE, MODEL_FILE, LOCK_FILE = "catalogue.sqlite", "vectors.f32", "model.onnx", "writer.lock"
METRIC = "cosine"
UNIT_TOLERANCE = 1e-3  # of a vector's length; half-precision vectors stay within


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An item that a search found. `score` is the cosine with the query: 1 for the same direction."""

    id: int
    key: str
    score: float
    width: int | None
    height: int | None
    metadata: dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class AddReport:
    """What became of an embeddings folder's rows; num_replaced are among num_added, num_unchanged are not."""

    num_added: int = 0
    num_replaced: int = 0
    num_unchanged: int = 0
    num_without_embedding: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class State:
    """One committed state: vectors (N, D) mapped from the file, and which of the N ids are live, (N,) bool."""

    changes: int
    vectors: np.ndarray
    live: np.ndarray


class Index:
    """An index folder, open. Any number of threads and processes may read; one at a time opens it with writable=True.

    Example:
        with Index.open("photos.index") as index:
            for hit in index.search("cat.jpg", k=5):
                print(hit.score, hit.key)
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Use `Index.open` or `Index.create`."""
        self.path = path
        self.model_path = path / MODEL_FILE
        self._lock = WriterLock(path / LOCK_FILE) if writable else None
        self._writer: VectorWriter | None = None
        self._guard = threading.RLock()  # of the members below, and of writing from several threads
        self._state: State | None = None
        self._embedder: Embedder | None = None
        try:
            self._catalogue = Catalogue(path / CATALOGUE_FILE)
            self.fingerprint = str(self._catalogue.settings["fingerprint"])
            self.model_name = str(self._catalogue.settings["model_name"])
            self.width = int(self._catalogue.settings["width"])
            self.run = _run(self._catalogue)
            self.proofs = read_proofs(str(self._catalogue.settings.get("proofs", "[]")))
            with self._catalogue.reading() as connection:
                num_rows = len(self._state_of(connection).vectors)
            if writable:
                self._writer = VectorWriter(path / VECTORS_FILE, num_rows=num_rows, width=self.width)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: str | Path, *, model: str | Path, run: Run | None = None) -> Index:
        """A new index without items, for vectors of a model file, which is copied in; open for writing.

        run: the engine and precision that the vectors are made with, which pictures searched with are then run with too; by
        default ONNX Runtime in the file's own precision. InputError when something is at `path` already or `model` is no
        model file; EnvironmentProblem when the folder cannot be written. The folder is there whole or not at all.
        """
        folder, manifest = Path(path), read_manifest(Path(model))
        if folder.exists():
            raise InputError(f"{folder} is there already; choose another place, or remove it to begin again.")
        with replace_folder(folder) as temporary:
            copy_model_file(Path(model), temporary / MODEL_FILE)
            (temporary / VECTORS_FILE).touch()
            settings: dict[str, Value] = {
                "fingerprint": manifest.fingerprint,
                "model_name": manifest.name,
                "width": manifest.width,
                "metric": METRIC,
                "run": str(run or reference_run(manifest)),
            }
            Catalogue.create(temporary / CATALOGUE_FILE, settings)
        return cls(folder, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> Index:
        """An index that is there. Opened for writing it is held until `close`; no other process can write meanwhile.

        InputError when it is missing, no index, damaged, or of a newer format; EnvironmentProblem when it cannot be read,
        or when `writable` and another process writes it.
        """
        folder = Path(path)
        try:
            if not folder.exists():
                raise InputError(f"{folder} does not exist; make an index with `featkit index`.")
            if not (folder / CATALOGUE_FILE).is_file():
                raise InputError(
                    f"{folder} is not a featkit index: it has no {CATALOGUE_FILE}; name one that `featkit index` wrote."
                )
        except PermissionError as error:
            raise EnvironmentProblem(f"{folder} cannot be read: {error.strerror}; ask its owner.") from error
        return cls(folder, writable=writable)

    def close(self) -> None:
        """Release the files and, if held, the right to write. Does nothing the second time."""
        with self._guard:
            self._state = None
            if self._writer is not None:
                self._writer.close()
            if hasattr(self, "_catalogue"):
                self._catalogue.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        """Items, without the removed ones."""
        with self._catalogue.reading() as connection:
            return int(np.count_nonzero(self._state_of(connection).live))

    # Changing it -----------------------------------------------------------------------------------------------------

    def add(
        self,
        keys: Sequence[str],
        vectors: np.ndarray,
        *,
        source: str = "",
        widths: Sequence[int | None] | None = None,
        heights: Sequence[int | None] | None = None,
        thumbnails: Sequence[bytes | None] | None = None,
        metadata: Sequence[Mapping[str, Value | None]] | None = None,
    ) -> list[int]:
        """Add items with their vectors (n, D) of unit length, in one transaction, and return their ids, ascending.

        A key that is there already is replaced: its old item is removed and the new one has a new id. widths and heights
        are of the upright originals, thumbnails JPEG bytes, metadata text and numbers by name. InputError, and nothing is
        added, for vectors that are not this model's and for text that cannot be stored; EnvironmentProblem on a full disk.
        """
        columns = (widths, heights, thumbnails, metadata)
        if any(column is not None and len(column) != len(keys) for column in columns) or len(vectors) != len(keys):
            raise ValueError("keys, vectors and what belongs to them differ in number")
        items = [
            NewItem(
                key=key,
                source=source,
                width=widths[number] if widths else None,
                height=heights[number] if heights else None,
                thumbnail=thumbnails[number] if thumbnails else None,
                metadata=metadata[number] if metadata else {},
            )
            for number, key in enumerate(keys)
        ]
        return self._add(items, self._checked(vectors, keys))[0]

    def add_embeddings(
        self,
        folder: Embeddings,
        on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
        *,
        apart: Collection[str] | None = None,
    ) -> AddReport:
        """Add what an embeddings folder holds, one transaction a shard, and say what became of it.

        An item that is there already with the same vector, thumbnail and metadata stays as it is, under its id. An item
        whose key is there in another spelling (NFC and NFD, `./x`) is that item, unless the folder holds both keys, or
        `apart` has that spelling: the keys of pictures that are there, for a folder that holds a part of them.
        on_progress is called with the rows done and those among them that have no embedding. InputError when another model
        made the embeddings, or another precision without a proof; Interrupted on Ctrl-C, with all finished shards kept.
        """
        self._refuse_other_model(folder)
        self._refuse_other_run(folder)
        report = AddReport()
        done = 0
        try:
            if apart is None:
                apart = twins(lambda: (key for table in folder.tables(["key"]) for key in table["key"].to_pylist()))
            for table in folder.tables():
                report += self._add_table(folder.plan.source, table, apart=apart)
                done += table.num_rows
                on_progress(done, report.num_without_embedding)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped with {report.num_added:,} pictures added to {self.path}; the same command goes on from there."
            ) from None
        return report

    def remove(self, keys: Iterable[str]) -> int:
        """Remove items by key, in one transaction, and return how many there were; unknown keys are passed over."""
        with self._guard:
            self._writable()
            with self._catalogue.writing() as connection:
                return catalogue.remove_items(connection, keys)

    def _add(self, items: Sequence[NewItem], vectors: np.ndarray, *, apart: Collection[str] = ()) -> tuple[list[int], int]:
        """Vectors first and flushed, then the transaction that makes them count. Ids, and how many items were replaced."""
        with self._guard:
            writer = self._writable()
            if not items:
                return [], 0
            try:
                with self._catalogue.writing() as connection:
                    first = catalogue.num_rows(connection)
                    num_replaced = catalogue.insert_items(connection, first, items, apart=apart)
                    writer.write(first, vectors)
            except BaseException:
                # Ctrl-C may come just after the commit, so what to cut is asked of the catalogue, not concluded from here.
                with self._catalogue.reading() as connection:
                    writer.cut(catalogue.num_rows(connection))
                raise
            return list(range(first, first + len(items))), num_replaced

    def _add_table(self, source: str, table: pa.Table, *, apart: Collection[str]) -> AddReport:
        embedded = table.filter(table["embedding"].is_valid())
        names = [name for name in embedded.column_names if name not in COLUMNS]
        items = [
            NewItem(
                key=row["key"],
                source=source,
                width=row["width"],
                height=row["height"],
                thumbnail=row["thumbnail"],
                metadata={name: row[name] for name in names if row[name] is not None},
            )
            for row in embedded.drop_columns(["embedding", "error"]).to_pylist()
        ]
        vectors = self._checked(vectors_of(embedded), [item.key for item in items])
        with self._guard:
            new = self._not_there(items, vectors, apart=apart)
            ids, num_replaced = self._add([items[number] for number in new], vectors[new], apart=apart)
        return AddReport(
            num_added=len(ids),
            num_replaced=num_replaced,
            num_unchanged=len(items) - len(new),
            num_without_embedding=table.num_rows - embedded.num_rows,
        )

    def _not_there(self, items: Sequence[NewItem], vectors: np.ndarray, *, apart: Collection[str]) -> list[int]:
        """Positions of the items that the index does not hold just so."""
        with self._catalogue.reading() as connection:
            rows = self._state_of(connection).vectors
            stored = catalogue.stored_keys(connection, [item.key for item in items], apart=apart)
            by_key = catalogue.items_by_key(connection, list(stored.values()))
            there = {key: by_key[name] for key, name in stored.items()}
            return [
                number
                for number, item in enumerate(items)
                if (old := there.get(item.key)) is None
                or not _same(old, item)
                or not np.array_equal(rows[old.id], vectors[number])
                or catalogue.thumbnail(connection, old.id) != item.thumbnail
            ]

    def _writable(self) -> VectorWriter:
        if self._writer is None:
            raise ValueError(f"{self.path} is open for reading only; open it with writable=True")
        return self._writer

    def _refuse_other_model(self, folder: Embeddings) -> None:
        """InputError unless the vectors are this model's, or one of the two models is proven equal to the other."""
        if folder.plan.fingerprint == self.fingerprint or self.accepts_model(read_manifest(folder.model_path)):
            return
        raise InputError(
            f"{folder.path} was embedded by {folder.plan.model_name} ({folder.plan.fingerprint[:12]}) and {self.path} is of "
            f"{self.model_name} ({self.fingerprint[:12]}); embed the pictures with the index's model, or make another index."
        )

    def _refuse_other_run(self, folder: Embeddings) -> None:
        """InputError unless the vectors were computed as this index's were, or in a way proven to give the same."""
        run = Run.parse(folder.plan.run)
        if not self.accepts(run):
            coarse = run if run.precision == BF16 else self.run
            raise InputError(
                f"{folder.path} was embedded by {run} and {self.path} by {self.run}; prove that these meet with `featkit "
                f"verify {self.path} photos/ --backend {coarse.backend} --precision {coarse.precision}`, or embed with "
                f"--backend {self.run.backend} --precision {self.run.precision}."
            )

    def accepts_model(self, manifest: Manifest) -> bool:
        """Whether vectors of this model file may meet the index's: it is the same, or one is proven equal to the other."""
        if manifest.fingerprint == self.fingerprint or self.fingerprint in manifest.proven_equal_to:
            return True
        return manifest.fingerprint in read_manifest(self.model_path).proven_equal_to

    def accepts(self, run: Run) -> bool:
        """Whether vectors made by this run of the model may meet the index's: in its precision, or proven equal to it."""
        return meet(self.run, run, self.proofs)

    def keep_proof(self, proof: Proof) -> None:
        """Write a proof into the settings, in place of an older one of the same run."""
        self._keep_proofs([*(old for old in self.proofs if old.run != proof.run), proof])

    def drop_proof(self, run: Run) -> None:
        """Remove the proof of a run, if there is one: it does not hold any more."""
        self._keep_proofs([old for old in self.proofs if old.run != run])

    def _keep_proofs(self, proofs: list[Proof]) -> None:
        with self._guard:
            self._writable()
            with self._catalogue.writing() as connection:
                catalogue.set_setting(connection, "proofs", write_proofs(proofs))
            self.proofs = proofs

    # Searching it ----------------------------------------------------------------------------------------------------

    def query(self, vectors: np.ndarray, *, k: int = 10) -> list[list[Hit]]:
        """The k items nearest to each of (n, D) float32 vectors of unit length: by score, of equal ones the older first.

        Fewer than k where the index has fewer. InputError for vectors that are not this model's or k below 1.
        """
        queries = self._checked(vectors, None)
        if k < 1:
            raise InputError(f"k is {k}; it must be at least 1.")
        with self._catalogue.reading() as connection:
            state = self._state_of(connection)
            found = exact_search(queries, state.vectors, k=k, allowed=state.live)
            ids = np.unique(np.concatenate([one.ids for one in found])) if found else np.zeros(0, np.int64)
            items = catalogue.items_by_id(connection, ids.tolist())
        return [_hits(items, one) for one in found]

    def search(self, picture: Picture, *, k: int = 10) -> list[Hit]:
        """The k items nearest to a picture: a path, bytes, a Pillow image or an array. InputError when it cannot be read."""
        return self.query(self.embedder.embed(picture), k=k)[0]

    def search_item(self, item_id: int, *, k: int = 10) -> list[Hit]:
        """The k items nearest to one of the index, itself among them. InputError when there is no such item."""
        return self.query(self.vector(item_id)[None], k=k)[0]

    @property
    def embedder(self) -> Embedder:
        """The Embedder of the model that is copied in, made at the first call. Errors as for `open_embedder`."""
        with self._guard:
            if self._embedder is None:
                self._embedder = self.open_embedder()
            return self._embedder

    def open_embedder(
        self, model: Path | None = None, *, threads: int | None = None, limits: ImageLimits = DEFAULT_LIMITS
    ) -> Embedder:
        """An Embedder whose vectors meet the index's: in its precision, or in one that a proof allows and that is faster.

        model: another file of the same model; by default the one that is copied in. EnvironmentProblem when nothing that is
        installed here does that.
        """
        from featkit.embedder import Embedder

        path = model or self.model_path
        if not possible_runs(read_manifest(path), accepts=self.accepts):
            raise EnvironmentProblem(
                f"{self.path} was made by {self.run}, which does not run here; install featkit[{OPENVINO}] on a processor that "
                f"computes in {self.run.precision}, or embed the pictures again."
            )
        return Embedder(path, threads=threads, limits=limits, accepts=self.accepts)

    # Reading it ------------------------------------------------------------------------------------------------------

    def item(self, item_id: int) -> Item:
        """InputError when there is no such item, or no more."""
        with self._catalogue.reading() as connection:
            return self._found(connection, item_id)

    def item_by_key(self, key: str) -> Item:
        """InputError when there is no such item, or no more."""
        with self._catalogue.reading() as connection:
            found = catalogue.items_by_key(connection, [key])
        if key not in found:
            raise InputError(f"{self.path} has no item {key!r}.")
        return found[key]

    def items(self, offset: int = 0, limit: int = 100) -> list[Item]:
        """Items in the order they were added, from the offset-th on."""
        with self._catalogue.reading() as connection:
            return catalogue.items_in_order(connection, offset=offset, limit=limit)

    def sample(self, limit: int = 100, *, seed: int = 0) -> list[Item]:
        """Up to `limit` different items in random order, the same for the same seed and state; all where there are no more."""
        with self._catalogue.reading() as connection:
            live = np.flatnonzero(self._state_of(connection).live)
            places = random.Random(seed).sample(range(len(live)), min(limit, len(live)))
            ids = live[places].tolist()
            items = catalogue.items_by_id(connection, ids)
        return [items[item_id] for item_id in ids]

    def thumbnail(self, item_id: int) -> bytes | None:
        """JPEG bytes, or None where the item has none. InputError when there is no such item, or no more."""
        with self._catalogue.reading() as connection:
            self._found(connection, item_id)
            return catalogue.thumbnail(connection, item_id)

    def vector(self, item_id: int) -> np.ndarray:
        """An item's vector (D,) float32, a copy. InputError when there is no such item, or no more."""
        with self._catalogue.reading() as connection:
            self._found(connection, item_id)
            return np.array(self._state_of(connection).vectors[item_id])

    def _found(self, connection: Connection, item_id: int) -> Item:
        found = catalogue.items_by_id(connection, [item_id]) if 0 <= item_id <= catalogue.MAX_INTEGER else {}
        if item_id not in found:
            raise InputError(f"{self.path} has no item {item_id}.")
        return found[item_id]

    def _state_of(self, connection: Connection) -> State:
        """The state that a connection sees: the one at hand, or read anew when something was committed since."""
        changes = catalogue.num_changes(connection)
        state = self._state
        if state is not None and state.changes == changes:
            return state
        vectors = map_vectors(self.path / VECTORS_FILE, num_rows=catalogue.num_rows(connection), width=self.width)
        live = np.ones(len(vectors), bool)
        live[catalogue.deleted_ids(connection)] = False
        state = State(changes, vectors, live)
        with self._guard:
            if self._state is None or self._state.changes < changes:
                self._state = state
        return state

    def _checked(self, vectors: np.ndarray, keys: Sequence[str] | None) -> np.ndarray:
        """(n, D) float32, C-contiguous. InputError, naming the first bad one, unless all are finite and of unit length."""
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise InputError(f"The vectors are of shape {vectors.shape}; {self.path} takes (n, {self.width}).")
        vectors = np.ascontiguousarray(vectors, np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))  # so said, NaN is bad
        if len(bad):
            name = keys[bad[0]] if keys is not None else f"number {bad[0]}"
            raise InputError(f"The vector of {name} has length {lengths[bad[0]]:.6g}; vectors of an index have length 1.")
        return vectors


def _run(catalogue: Catalogue) -> Run:
    """What made the vectors; an index from before this was kept is of ONNX Runtime in float32."""
    text = str(catalogue.settings.get("run", "onnxruntime fp32"))
    try:
        return Run.parse(text)
    except ValueError as error:
        raise InputError(f"{catalogue.path.parent} cannot be used: {error}; update featkit.") from error


def _hits(items: Mapping[int, Item], found: Found) -> list[Hit]:
    hits: list[Hit] = []
    for item_id, score in zip(found.ids.tolist(), found.scores.tolist(), strict=True):
        item = items[item_id]
        hits.append(
            Hit(
                id=item_id,
                key=item.key,
                score=score,
                width=item.width,
                height=item.height,
                metadata=dict(item.metadata),
            )
        )
    return hits


def _same(old: Item, new: NewItem) -> bool:
    """Whether an item says of a picture what a new one would."""
    metadata = {name: value for name, value in new.metadata.items() if value is not None}
    return (old.source, old.width, old.height, old.metadata) == (new.source, new.width, new.height, metadata)
