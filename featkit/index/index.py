"""Index: images as vectors in a folder that lives: one process adds and removes, many search."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import pyarrow as pa

from featkit.atomic import replace_folder
from featkit.backends import BF16, OPENVINO, Run, possible_runs, reference_run
from featkit.embeddings import COLUMNS, Embeddings, vectors_of
from featkit.errors import EnvironmentProblem, FeatkitError, InputError, Interrupted
from featkit.images import DEFAULT_LIMITS, ImageLike, ImageLimits
from featkit.index import tables
from featkit.index.arguments import new_items, text_keys, unit_vectors, whole_number
from featkit.index.catalogue import Catalogue
from featkit.index.proofs import Proof, meet, read_proofs, write_proofs
from featkit.index.searcher import Found, exact_search
from featkit.index.state import State, sample_checksums, spread
from featkit.index.tables import Item, NewItem, Value
from featkit.index.vectors import (
    Rows,
    Signature,
    VectorFile,
    VectorWriter,
    WitnessedRows,
    checksums,
    signature_at,
)
from featkit.lock import WriterLock
from featkit.modelfile import Manifest, copy_model_file, read_manifest
from featkit.sources.keys import twins
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.embedder import Embedder

CATALOGUE_FILE, VECTORS_FILE, MODEL_FILE, LOCK_FILE = (
    "catalogue.sqlite",
    "vectors.f32",
    "model.onnx",
    "writer.lock",
)
METRIC = "cosine"
UNIT_TOLERANCE = 1e-3  # of a vector's length; half-precision vectors stay within

# A read during which the files are replaced is done again after these pauses.
PAUSES_S = (0.0, 0.01, 0.03, 0.1, 0.2)
# Vectors of an index from before checksums that get one, evenly spread.
NUM_CHECKSUMS_FOR_OLD = 1024

Result = TypeVar("Result")


class NoSuchItem(InputError):
    """The index has no item of this id or key, or no longer."""

    def __init__(self, index: Path, item: int | str) -> None:
        self.index, self.item = index, item
        super().__init__(f"{index} has no item {item!r}.")


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
    """What became of an embeddings folder's rows; num_replaced are among num_added, num_unchanged
    are not.

    num_kept are among num_without_embedding: the index holds them from a time when their files
    could be read.
    """

    num_added: int = 0
    num_replaced: int = 0
    num_unchanged: int = 0
    num_without_embedding: int = 0
    num_kept: int = 0

    def __add__(self, other: AddReport) -> AddReport:
        return AddReport(
            **{name: value + getattr(other, name) for name, value in vars(self).items()}
        )


class Index:
    """An index folder, open. Any number of threads and processes may read; one at a time opens it
    with writable=True.

    An index that was made again, moved or restored at the same path under an open one is noticed at
    the next call: if it is of the same model, the answers are those of the new index from then on;
    if not, each call raises InputError. No answer mixes the two.

    Example:
        with Index.open("photos.index") as index:
            for hit in index.search("cat.jpg", k=5):
                print(hit.score, hit.key)
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Use `Index.open` or `Index.create`."""
        self.path = path
        self.model_path = path / MODEL_FILE
        self._vectors_path = path.absolute() / VECTORS_FILE  # whatever the working folder becomes
        self._lock = WriterLock(path / LOCK_FILE) if writable else None
        self._writer: VectorWriter | None = None
        self._process = os.getpid()
        self._guard = threading.RLock()  # of writing from several threads
        self._state_lock = threading.Lock()  # of the members below
        self._state: State | None = None
        self._embedder_lock = threading.Lock()
        self._embedder: Embedder | None = None
        self._reading = threading.local()
        self._read_settings: tuple[str, int, Run] | None = None
        self.proofs: list[Proof] = []
        try:
            self._catalogue = Catalogue(path / CATALOGUE_FILE)
            self._read(lambda _connection, _state: None)
            if writable:
                self._open_writer()
        except BaseException:
            self.close()
            raise

    def _open_writer(self) -> None:
        self._catalogue.take_token()
        self._writer = VectorWriter(self._vectors_path, width=self.width)
        with self._catalogue.excluding_writers() as connection:
            state = self._state_of(connection)
            self._check_writer(self._writer, state)
            self._writer.cut(state.rows.num_rows)
        if state.rows.num_rows and not state.sample:
            ids = spread(state.rows.num_rows, NUM_CHECKSUMS_FOR_OLD)
            with self._catalogue.writing() as connection:
                found = checksums(self._state_of(connection).rows.take(ids))
                tables.set_checksums(connection, dict(zip(ids.tolist(), found, strict=True)))

    @property
    def id(self) -> str:
        """Random and unlike any other index's; a copy has the same. Empty for one from before ids,
        until it is written."""
        return self._read(lambda _connection, state: state.key.index_id)

    def in_one_state(self, work: Callable[[], Result]) -> Result:
        """Return work(), with all that it reads from this index taken from one committed state.

        `work` may be called more than once, when the index is replaced meanwhile; it must not write
        to the index.
        """
        return self._read(lambda _connection, _state: work())

    @classmethod
    def create(cls, path: str | Path, *, model: str | Path, run: Run | None = None) -> Index:
        """A new index without items, for vectors of a model file, which is copied in; open for
        writing.

        run: the engine and precision that the vectors are made with, which images searched with
        are then run with too; by default ONNX Runtime in the file's own precision. InputError when
        something is at `path` already or `model` is no model file; EnvironmentProblem when the
        folder cannot be written. The folder is there whole or not at all.
        """
        folder, manifest = Path(path), read_manifest(Path(model))
        if folder.exists():
            raise InputError(
                f"{folder} is there already; choose another place, or remove it to begin again."
            )
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
        """An index that is there. Opened for writing it is held until `close`; no other process can
        write meanwhile.

        InputError when it is missing, no index, damaged, or of a newer format; EnvironmentProblem
        when it cannot be read, or when `writable` and another process writes it.
        """
        folder = Path(path)
        try:
            if not folder.exists():
                raise InputError(f"{folder} does not exist; make an index with `featkit index`.")
            if not (folder / CATALOGUE_FILE).is_file():
                raise InputError(
                    f"{folder} is not a featkit index: it has no {CATALOGUE_FILE}; name one that"
                    " `featkit index` wrote."
                )
        except PermissionError as error:
            raise EnvironmentProblem(
                f"{folder} cannot be read: {error.strerror}; ask its owner."
            ) from error
        return cls(folder, writable=writable)

    def close(self) -> None:
        """Release the files and, if held, the right to write. Does nothing the second time."""
        with self._guard:
            with self._state_lock:
                self._state = None
            if hasattr(self, "_catalogue"):
                # the next writer finds out by itself that this one is gone
                with suppress(FeatkitError):
                    self._catalogue.drop_token()
                self._catalogue.close()
            if self._writer is not None:
                self._writer.close()
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Items, without the removed ones."""
        return self._read(lambda _connection, state: int(np.count_nonzero(state.live)))

    # Changing it ----------------------------------------------------------------------------------

    def add(
        self,
        keys: Iterable[str],
        vectors: np.ndarray,
        *,
        source: str = "",
        widths: Iterable[int | None] | None = None,
        heights: Iterable[int | None] | None = None,
        thumbnails: Iterable[bytes | None] | None = None,
        metadata: Iterable[Mapping[str, Value | None] | None] | None = None,
    ) -> list[int]:
        """Add items with their vectors (n, D) of unit length, in one transaction, and return their
        ids, ascending.

        An existing key is replaced: its old item is removed and the new one has a new id; of a key
        given twice in one call, the last counts. widths and heights are of the upright originals,
        thumbnails JPEG bytes. metadata is text, numbers and booleans by name; they come back as
        they are, NaN included, and None is the same as no value. A name has booleans in all items
        or in none. InputError, and nothing is added, for vectors that are not this model's and for
        what cannot be stored; EnvironmentProblem on a full disk.
        """
        names = text_keys(keys, call="add(")
        checked = self._checked(vectors, names)
        items = new_items(
            names,
            source=source,
            widths=widths,
            heights=heights,
            thumbnails=thumbnails,
            metadata=metadata,
        )
        return self._add(items, checked)[0]

    def add_embeddings(
        self,
        folder: Embeddings,
        on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
        *,
        apart: Collection[str] | None = None,
    ) -> AddReport:
        """Add what an embeddings folder holds, one transaction a shard, and say what became of it.

        An item that is there already with the same vector, thumbnail and metadata stays as it is,
        under its id. So does one whose file can no longer be read, which may be for a while only;
        `remove` takes it out. An item whose key is there in another spelling (NFC and NFD, `./x`)
        is that item, unless the folder holds both keys, or `apart` has that spelling: the keys of
        images that are there, for a folder that holds a part of them. on_progress is called with
        the rows done and those among them that have no embedding. InputError when another model
        made the embeddings, or another precision without a proof; Interrupted on Ctrl-C, with all
        finished shards kept.
        """
        self._refuse_other_model(folder)
        self._refuse_other_run(folder)
        report = AddReport()
        done = 0
        try:
            if apart is None:
                apart = twins(
                    lambda: (
                        key for table in folder.tables(["key"]) for key in table["key"].to_pylist()
                    )
                )
            for table in folder.tables():
                report += self._add_table(folder.plan.source, table, apart=apart)
                done += table.num_rows
                on_progress(done, report.num_without_embedding)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped with {counted(report.num_added, 'image')} added to {self.path}; "
                "the same command goes on from there."
            ) from None
        return report

    def remove(self, keys: Iterable[str]) -> int:
        """Remove items by key, in one transaction, and return how many there were; unknown keys are
        passed over.

        InputError, and nothing is removed, for a single text in place of a list, or for a key that
        is not text.
        """
        names = text_keys(keys, call="remove(")
        with self._guard:
            self._writable()
            with self._catalogue.writing() as connection:
                return tables.remove_items(connection, names)

    def _add(
        self, items: Sequence[NewItem], vectors: np.ndarray, *, apart: Collection[str] = ()
    ) -> tuple[list[int], int]:
        """Vectors first and flushed, then the transaction that makes them count. Ids, and how many
        items were replaced."""
        with self._guard:
            writer = self._writable()
            if not items:
                return [], 0
            try:
                with self._catalogue.writing() as connection:
                    state = self._state_of(connection)
                    self._check_writer(writer, state)
                    first = state.rows.num_rows
                    num_replaced = tables.insert_items(
                        connection, first, items, checksums(vectors), apart=apart
                    )
                    writer.write(first, vectors)
            except BaseException:
                # Ctrl-C may come just after the commit, so what to cut is asked of the catalogue,
                # not concluded from here. What cannot be cut now, the next writer cuts: another
                # writer may be at work already.
                with suppress(FeatkitError), self._catalogue.excluding_writers() as connection:
                    writer.cut(tables.num_rows(connection))
                raise
            return list(range(first, first + len(items))), num_replaced

    def _check_writer(self, writer: VectorWriter, state: State) -> None:
        """InputError when the vectors file at the path is not the one that was opened for writing."""
        if not writer.is_at(state.signature):
            raise InputError(
                f"{writer.path} was replaced after {self.path} was opened for writing; open it"
                " again."
            )

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
            ids, num_replaced = self._add(
                [items[number] for number in new], vectors[new], apart=apart
            )
        failed = table.filter(table["embedding"].is_null())["key"].to_pylist()
        num_kept = len(
            self._read(
                lambda connection, _state: tables.stored_keys(connection, failed, apart=apart)
            )
        )
        return AddReport(
            num_added=len(ids),
            num_replaced=num_replaced,
            num_unchanged=len(items) - len(new),
            num_without_embedding=table.num_rows - embedded.num_rows,
            num_kept=num_kept,
        )

    def _not_there(
        self, items: Sequence[NewItem], vectors: np.ndarray, *, apart: Collection[str]
    ) -> list[int]:
        """Positions of the items that the index does not hold just so."""

        def differing(connection: Connection, state: State) -> list[int]:
            stored = tables.stored_keys(connection, [item.key for item in items], apart=apart)
            by_key = tables.items_by_key(connection, list(stored.values()))
            existing = {key: by_key[name] for key, name in stored.items()}
            old_ids = np.array([item.id for item in existing.values()], np.int64)
            old_vectors = dict(zip(existing, state.rows.take(old_ids), strict=True))
            return [
                position
                for position, item in enumerate(items)
                if (old := existing.get(item.key)) is None
                or not _same(old, item)
                or not np.array_equal(old_vectors[item.key], vectors[position])
                or tables.thumbnail(connection, old.id) != item.thumbnail
            ]

        return self._read(differing)

    def _writable(self) -> VectorWriter:
        if self._writer is None:
            raise ValueError(f"{self.path} is open for reading only; open it with writable=True")
        if self._writer.is_closed:
            raise ValueError(f"{self.path} has been closed")
        if self._process != os.getpid():  # SQLite's locks and this writer's token are the parent's
            raise ValueError(
                f"{self.path} was opened for writing by the parent process; open it in this one"
            )
        return self._writer

    def _refuse_other_model(self, folder: Embeddings) -> None:
        """InputError unless the vectors are this model's, or one of the two models is proven equal
        to the other."""
        if folder.plan.fingerprint == self.fingerprint or self.accepts_model(
            read_manifest(folder.model_path)
        ):
            return
        raise InputError(
            f"{folder.path} was embedded by {folder.plan.model_name}"
            f" ({folder.plan.fingerprint[:12]}) and {self.path} is of {self.model_name}"
            f" ({self.fingerprint[:12]}); embed the images with the index's model, or make"
            " another index."
        )

    def _refuse_other_run(self, folder: Embeddings) -> None:
        """InputError unless the vectors were computed as this index's were, or in a way proven to
        give the same."""
        run = Run.parse(folder.plan.run)
        if not self.accepts(run):
            coarse = run if run.precision == BF16 else self.run
            raise InputError(
                f"{folder.path} was embedded by {run} and {self.path} by {self.run}; prove that"
                f" these meet with `featkit verify {self.path} photos/ --backend {coarse.backend}"
                f" --precision {coarse.precision}`, or embed with --backend {self.run.backend}"
                f" --precision {self.run.precision}."
            )

    def accepts_model(self, manifest: Manifest) -> bool:
        """Whether vectors of this model file may meet the index's: it is the same, or one is proven
        equal to the other."""
        if manifest.fingerprint == self.fingerprint or self.fingerprint in manifest.proven_equal_to:
            return True
        return manifest.fingerprint in read_manifest(self.model_path).proven_equal_to

    def accepts(self, run: Run) -> bool:
        """Whether vectors made by this run of the model may meet the index's: in its precision, or
        proven equal to it."""
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
                tables.set_setting(connection, "proofs", write_proofs(proofs))
            self.proofs = proofs

    # Searching it ---------------------------------------------------------------------------------

    def query(self, vectors: np.ndarray, *, k: int = 10) -> list[list[Hit]]:
        """The k items nearest to each of (n, D) float32 vectors of unit length: by score, of equal
        ones the older first.

        Fewer than k where the index has fewer. InputError for vectors that are not this model's or
        k below 1.
        """
        queries = self._checked(vectors, None)
        k = whole_number(k, "k", least=1)
        return self._read(lambda connection, state: self._query(connection, state, queries, k))

    def search(self, image: ImageLike, *, k: int = 10) -> list[Hit]:
        """The k items nearest to an image: a path, bytes, a Pillow image or an array. InputError
        when it cannot be read."""
        k = whole_number(k, "k", least=1)
        vectors = self.embedder.embed(image)
        if len(vectors) != 1:
            raise InputError(
                f"{len(vectors):,} images were given to search with; it takes one at a time."
            )
        return self.query(vectors, k=k)[0]

    def search_item(self, item_id: int, *, k: int = 10) -> list[Hit]:
        """The k items nearest to one of the index, itself among them. NoSuchItem (an InputError)
        when it has no such item."""
        k = whole_number(k, "k", least=1)

        def search(connection: Connection, state: State) -> list[Hit]:
            return self._query(
                connection, state, self._vector(connection, state, item_id)[None], k
            )[0]

        return self._read(search)

    def _query(
        self, connection: Connection, state: State, queries: np.ndarray, k: int
    ) -> list[list[Hit]]:
        rows = WitnessedRows(state.rows)
        found = exact_search(queries, rows, k=k, allowed=state.live)
        ids = np.unique(np.concatenate([one.ids for one in found])).tolist() if found else []
        if state.sample:  # or it is from before there were checksums
            state.check(rows.checksums, tables.checksums(connection, ids))
        items = tables.items_by_id(connection, ids)
        if len(items) != len(ids):
            raise tables.Damaged("items are missing")
        return [_hits(items, one) for one in found]

    @property
    def embedder(self) -> Embedder:
        """The Embedder of the model that is copied in, made at the first call. Errors as for
        `open_embedder`."""
        with self._embedder_lock:
            if self._embedder is None or not self.accepts(self._embedder.run):
                self._embedder = self.open_embedder()
            return self._embedder

    def open_embedder(
        self,
        model: Path | None = None,
        *,
        threads: int | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> Embedder:
        """An Embedder whose vectors meet the index's: in its precision, or in one that a proof
        allows and that is faster.

        model: another file of the same model; by default the one that is copied in.
        EnvironmentProblem when nothing that is installed here does that.
        """
        from featkit.embedder import Embedder

        path = model or self.model_path
        if model is None and (manifest := read_manifest(path)).fingerprint != self.fingerprint:
            raise InputError(
                f"{path} is {manifest.name} ({manifest.fingerprint[:12]}), and the vectors of"
                f" {self.path} are by {self.model_name} ({self.fingerprint[:12]}); restore the"
                " whole index from one copy."
            )
        if not possible_runs(read_manifest(path), accepts=self.accepts):
            raise EnvironmentProblem(
                f"{self.path} was made by {self.run}, which does not run here; install"
                f" featkit[{OPENVINO}] on a processor that computes in {self.run.precision}, or"
                " embed the images again."
            )
        return Embedder(path, threads=threads, limits=limits, accepts=self.accepts)

    # Reading it -----------------------------------------------------------------------------------

    def item(self, item_id: int) -> Item:
        """NoSuchItem (an InputError) when there is no such item, or no longer."""
        return self._read(lambda connection, _state: self._found(connection, item_id))

    def item_by_key(self, key: str) -> Item:
        """NoSuchItem (an InputError) when there is no such item, or no longer."""
        (name,) = text_keys([key], call="item_by_key(")
        found = self._read(lambda connection, _state: tables.items_by_key(connection, [name]))
        if name not in found:
            raise NoSuchItem(self.path, name)
        return found[name]

    def items(self, offset: int = 0, limit: int = 100) -> list[Item]:
        """Items in the order they were added, from the offset-th on."""
        offset, limit = (
            whole_number(offset, "offset", least=0),
            whole_number(limit, "limit", least=0),
        )
        offset, limit = min(offset, tables.MAX_INTEGER), min(limit, tables.MAX_INTEGER)
        return self._read(
            lambda connection, _: tables.items_in_order(connection, offset=offset, limit=limit)
        )

    def sample(self, limit: int = 100, *, seed: int = 0) -> list[Item]:
        """Up to `limit` different items in random order, the same for the same seed and state; all
        where there are no more."""

        def sample(connection: Connection, state: State) -> list[Item]:
            live = np.flatnonzero(state.live)
            places = random.Random(seed).sample(range(len(live)), min(limit, len(live)))
            ids = live[places].tolist()
            items = tables.items_by_id(connection, ids)
            if len(items) != len(ids):
                raise tables.Damaged("items are missing")
            return [items[item_id] for item_id in ids]

        return self._read(sample)

    def thumbnail(self, item_id: int) -> bytes | None:
        """JPEG bytes, or None where the item has none. NoSuchItem (an InputError) when there is no
        such item, or no longer."""

        def thumbnail(connection: Connection, _state: State) -> bytes | None:
            return tables.thumbnail(connection, self._found(connection, item_id).id)

        return self._read(thumbnail)

    def vector(self, item_id: int) -> np.ndarray:
        """An item's vector (D,) float32, a copy. NoSuchItem (an InputError) when there is no such
        item, or no longer."""
        return self._read(lambda connection, state: self._vector(connection, state, item_id))

    def _vector(self, connection: Connection, state: State, item_id: int) -> np.ndarray:
        found = self._found(connection, item_id).id
        rows = WitnessedRows(state.rows)
        vector: np.ndarray = rows.take(np.array([found], np.int64))[0]
        if state.sample:
            state.check(rows.checksums, tables.checksums(connection, [found]))
        return vector

    def _found(self, connection: Connection, item_id: int) -> Item:
        number = whole_number(item_id, "The id")
        found = (
            tables.items_by_id(connection, [number]) if 0 <= number <= tables.MAX_INTEGER else {}
        )
        if number not in found:
            raise NoSuchItem(self.path, number)
        return found[number]

    # Reading one state ----------------------------------------------------------------------------

    def _read(self, work: Callable[[Connection, State], Result]) -> Result:
        """Return work(connection, state) for the index that is at the path now; all of it is of one
        committed state.

        When the files change meanwhile in another way than by a commit, the result is thrown away
        and `work` called again.
        """
        held: tuple[Connection, State] | None = getattr(self._reading, "held", None)
        if held is not None:
            return work(*held)
        for pause_s in PAUSES_S:
            if pause_s:
                time.sleep(pause_s)
            before = self._signatures()
            try:
                with self._catalogue.reading() as connection:
                    state = self._state_of(connection)
                    self._reading.held = (connection, state)
                    try:
                        result = work(connection, state)
                    finally:
                        self._reading.held = None
                self._check_still(state, before)
                return result
            except FeatkitError:
                if before == self._signatures() or pause_s == PAUSES_S[-1]:
                    raise
        raise AssertionError("unreachable")

    def _signatures(self) -> tuple[Signature | None, Signature | None]:
        """Of the catalogue and the vectors file at the path now."""
        signatures: list[Signature | None] = []
        for ask in (self._catalogue.signature, lambda: signature_at(self._vectors_path)):
            try:
                signatures.append(ask())
            except FeatkitError:
                signatures.append(None)
        return signatures[0], signatures[1]

    def _check_still(self, state: State, before: tuple[Signature | None, Signature | None]) -> None:
        """InputError when the files were replaced or overwritten since `before`, unlike by a
        writer's commits."""
        after = self._signatures()
        if after == before and after[1] == state.signature:
            return
        for old, new in zip(before, after, strict=True):
            if old is None or new is None or not old.same_file(new):
                raise InputError(f"{self.path} is being replaced; try again when that has ended.")
        state.check_sample()
        self._catalogue.check_still(state.key)

    def _state_of(self, connection: Connection) -> State:
        """The state that a connection sees: the one at hand, or read again when something was
        committed or replaced since."""
        key = tables.state_key(connection)
        if not key.index_id:  # from before there were ids: the file stands in for it
            key = key._replace(commit=str(self._catalogue.signature()))
        signature = signature_at(self._vectors_path)
        state = self._state
        if state is not None and (state.key, state.signature) == (key, signature):
            return state
        self._follow(connection)
        file = (
            state.rows.file if state is not None and state.signature.same_file(signature) else None
        )
        file = file or VectorFile(self._vectors_path, width=self.width)
        signature = file.signature()
        num_rows = tables.num_rows(connection)
        file.check_length(num_rows)
        if state is not None and state.key == key:
            live, sample = state.live, state.sample
        else:
            live = np.ones(num_rows, bool)
            deleted = tables.deleted_ids(connection)
            if deleted and not 0 <= deleted[0] <= deleted[-1] < num_rows:
                raise tables.Damaged("removed items have ids that were never given")
            live[deleted] = False
            sample = {}
            if tables.has_checksums(connection):
                sample = sample_checksums(connection, num_rows)
        new = State(key, Rows(file, num_rows), live, signature, sample)
        new.check_sample()
        with self._state_lock:
            if (
                self._state is None
                or self._state.key.changes <= key.changes
                or self._state.key.index_id != key.index_id
            ):
                self._state = new
        return new

    def _follow(self, connection: Connection) -> None:
        """Take over the settings. InputError when they are of another model than this index was
        opened with."""
        settings = tables.settings(connection)
        try:
            fingerprint, model_name = str(settings["fingerprint"]), str(settings["model_name"])
            read = (fingerprint, int(settings["width"]), _run(settings, self.path))
        except (KeyError, ValueError, TypeError) as error:
            raise tables.Damaged(f"a setting is missing or wrong: {error}") from error
        if self._read_settings is None:
            self._read_settings = read
            self.fingerprint, self.width, self.run = read
            self.model_name = model_name
        elif self._read_settings != read:
            raise InputError(
                f"{self.path} was replaced by an index of {model_name} ({fingerprint[:12]},"
                f" {read[2]}) after it was opened as one of {self.model_name}"
                f" ({self.fingerprint[:12]}, {self.run}); open it again."
            )
        self.proofs = read_proofs(str(settings.get("proofs", "[]")))

    def _checked(self, vectors: Any, keys: Sequence[str] | None) -> np.ndarray:
        """(n, D) float32, C-contiguous. InputError, naming the first bad one, unless all are finite
        and of unit length."""
        return unit_vectors(
            vectors, width=self.width, keys=keys, tolerance=UNIT_TOLERANCE, index=self.path
        )


def _run(settings: Mapping[str, Value], path: Path) -> Run:
    """What made the vectors; an index from before this was kept is of ONNX Runtime in float32."""
    try:
        return Run.parse(str(settings.get("run", "onnxruntime fp32")))
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}; update featkit.") from error


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
    """Whether an item says of an image what a new one would."""
    metadata = {name: value for name, value in new.metadata.items() if value is not None}
    return (old.source, old.width, old.height) == (new.source, new.width, new.height) and (
        # NaN is not NaN
        old.metadata == metadata
        or repr(sorted(old.metadata.items())) == repr(sorted(metadata.items()))
    )
