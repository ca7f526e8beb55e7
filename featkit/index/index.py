"""Index: a folder of images as vectors, which one process changes and many search."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, overload

import numpy as np
import pyarrow as pa

from featkit.atomic import replace_folder
from featkit.backends import OPENVINO, Run, possible_runs, reference_run
from featkit.embeddings import COLUMNS, Embeddings, vectors_of
from featkit.errors import EnvironmentProblem, FeatkitError, InputError, Interrupted
from featkit.folders import CATALOGUE_FILE, VECTORS_FILE, is_index
from featkit.images import DEFAULT_LIMITS, ImageLike, ImageLimits
from featkit.index.arguments import new_items, one_query, text_keys, unit_vectors, whole_number
from featkit.index.catalogue import Catalogue
from featkit.index.compatibility import MODEL_FILE, Proof, write_proofs
from featkit.index.reading import IndexReader
from featkit.index.records import AddReport, Hit, Item, NewItem, Value
from featkit.index.refining import Refinement, combined
from featkit.index.state import NO_REFINEMENT, IndexState
from featkit.index.table_writer import CatalogueWriter
from featkit.index.tables import CatalogueReader
from featkit.index.writing import IndexWriter
from featkit.modelfile import Manifest, copy_model_file, read_manifest
from featkit.sources.keys import twins
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.embedder import Embedder
    from featkit.index.approximate.background import BackgroundUpkeep

METRIC = "cosine"

Result = TypeVar("Result")


class Index:
    """An open index folder.

    Any number of threads and processes may read an index; one process at a time opens it with
    writable=True.

    An open index notices when the folder at its path is replaced, moved or restored. If the new
    index is of the same model, later calls answer from it; otherwise they raise InputError. No
    answer mixes the two.

    Example:
        with Index.open("photos.index") as index:
            for hit in index.search("cat.jpg", k=5):
                print(hit.score, hit.key)
    """

    def __init__(
        self, path: Path, *, writable: bool, check_sample: bool = True, background: bool = True
    ) -> None:
        """Use `Index.open` or `Index.create`."""
        self.path = path
        self.model_path = path / MODEL_FILE
        self._catalogue = Catalogue(path / CATALOGUE_FILE)
        self._reader = IndexReader(path, self._catalogue, check_sample=check_sample)
        self._writer: IndexWriter | None = None
        self._upkeep: BackgroundUpkeep | None = None
        self._embedder: Embedder | None = None
        self._embedder_lock = threading.Lock()
        try:
            if writable:
                self._writer = IndexWriter(path, self._catalogue, self._reader)
                if background:
                    from featkit.index.approximate.background import BackgroundUpkeep

                    self._upkeep = BackgroundUpkeep(self)
                    self._writer.on_commit = self._upkeep.after_commit
            else:
                self._reader.read(lambda _state: None)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        model: str | Path,
        run: Run | None = None,
        background: bool = True,
    ) -> Index:
        """Create an index without items for the vectors of a model file, and open it for writing.

        The model file is copied into the folder, which appears complete or not at all.

        run: the engine and precision that make the vectors; images to search with are embedded in
        the same way. By default ONNX Runtime in the file's own precision. background: as for
        `open`. InputError if `path` exists or `model` is not a model file; EnvironmentProblem if
        the folder cannot be written.
        """
        folder, manifest = Path(path), read_manifest(Path(model))
        if folder.exists():
            raise InputError(f"{folder} already exists; choose another path, or remove it first.")
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
        return cls(folder, writable=True, background=background)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        writable: bool = False,
        check_sample: bool = True,
        background: bool = True,
    ) -> Index:
        """Open an existing index. No other process can write it while it is open for writing.

        check_sample: refuse an index if one of a few sampled vectors is damaged. Only programs that
        look for damage turn it off. background: if the index was promised a memory or recall, and
        the writer's changes make a build due, start it in a process of its own.

        InputError if it is missing, damaged, not an index, or has a newer format;
        EnvironmentProblem if it cannot be read, or if `writable` and another process writes it.
        """
        folder = Path(path)
        try:
            if not folder.exists():
                raise InputError(f"{folder} does not exist; make an index with `featkit index`.")
            if not is_index(folder):
                raise InputError(
                    f"{folder} is not a featkit index: it has no {CATALOGUE_FILE}; name one that"
                    " `featkit index` wrote."
                )
        except PermissionError as error:
            raise EnvironmentProblem(
                f"{folder} cannot be read: {error.strerror}; ask its owner."
            ) from error
        return cls(folder, writable=writable, check_sample=check_sample, background=background)

    def close(self) -> None:
        """Release the files and the right to write. Does nothing the second time."""
        if self._upkeep is not None:
            self._upkeep.close()
        self._reader.forget()
        if self._writer is not None:
            self._writer.close()
        self._catalogue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            content = f"{counted(len(self), 'item')} of {self.model_name}"
        except ValueError:
            content = "closed"
        except FeatkitError:
            content = "unreadable"
        return f"<Index {self.path}: {content}>"

    def __len__(self) -> int:
        """Return the number of items, without removed ones."""
        return self.read(len)

    def __contains__(self, key: object) -> bool:
        """Return whether the index has an item with this key."""
        return self.read(lambda state: key in state)

    @property
    def id(self) -> str:
        """The index's random id, which copies share. Empty until an old index is first written."""
        return self.read(lambda state: state.id)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that made the vectors."""
        return self._reader.compatibility.fingerprint

    @property
    def model_name(self) -> str:
        """The name of the model that made the vectors."""
        return self._reader.compatibility.model_name

    @property
    def width(self) -> int:
        """The dimensions of a vector."""
        return self._reader.compatibility.width

    @property
    def run(self) -> Run:
        """The engine and precision that made the vectors."""
        return self._reader.compatibility.run

    # Searching ------------------------------------------------------------------------------------

    @overload
    def search(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        weights: Sequence[float] | None = ...,
        k: int = ...,
        where: str | None = ...,
        refine: Refinement = ...,
    ) -> list[Hit]: ...
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
        image: ImageLike | Sequence[ImageLike] | None = None,
        *,
        weights: Sequence[float] | None = None,
        item: int | None = None,
        vectors: np.ndarray | None = None,
        k: int = 10,
        where: str | None = None,
        refine: Refinement = NO_REFINEMENT,
    ) -> list[Hit] | list[list[Hit]]:
        """Return the k items nearest to an image, to an item, or to each of several vectors.

        Give exactly one of these:

        image: a path, bytes, a Pillow image or an array; or a list of them, with `weights`.
        item: the id of an item, which is usually its own first hit.
        vectors: (n, D) float32 of unit length. The result is then one list of hits per vector.

        weights: one for each image, which makes one query of all. A positive weight leads towards
        an image, a negative one away from it.

        where: a filter, such as "label = 'cat' and width >= 640"; only items that match are hits.

        refine: a least score, query expansion, re-ranking or diversity.

        Hits are sorted by score, and equal scores by age, oldest first. There are fewer than k only
        if fewer items match, or reach the least score. InputError if the query cannot be used or k
        is below 1; NoSuchItem, an InputError, if there is no such item; FilterError, an InputError,
        for a wrong filter.
        """
        one_query(image=image, item=item, vectors=vectors)
        k = whole_number(k, "k", least=1)
        if item is not None:
            return self.read(lambda state: state.search(item=item, k=k, where=where, refine=refine))
        if vectors is not None:
            return self.read(
                lambda state: state.search(vectors=vectors, k=k, where=where, refine=refine)
            )
        assert image is not None
        self.read(lambda state: state.count(where))  # refuses a wrong filter before the work
        query = self.embedder.embed(image)
        if weights is not None:
            query = combined(query, weights)[None]
        if len(query) != 1:
            raise InputError(
                f"search takes one image at a time; {len(query):,} images were given. With weights,"
                " they are one query."
            )
        return self.read(
            lambda state: state.search(vectors=query, k=k, where=where, refine=refine)
        )[0]

    @property
    def embedder(self) -> Embedder:
        """The Embedder of the index's own model, opened at first use as by `open_embedder`."""
        with self._embedder_lock:
            # A proof that allowed the embedder's run may have been dropped since.
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
        """Open an Embedder whose vectors may be compared with those of the index.

        It uses the index's precision, or a faster one that was proven compatible. model: another
        file of the same model; by default the index's own. EnvironmentProblem if no installed
        engine can do this.
        """
        from featkit.embedder import Embedder

        path = model or self.model_path
        manifest = read_manifest(path)
        if model is None and manifest.fingerprint != self.fingerprint:
            raise InputError(
                f"{path} is {manifest.name} ({manifest.fingerprint[:12]}), but the vectors of"
                f" {self.path} are of {self.model_name} ({self.fingerprint[:12]}); restore the"
                " whole index from one copy."
            )
        if not possible_runs(manifest, accepts=self.accepts):
            raise EnvironmentProblem(
                f"{self.path} was made by {self.run}, which does not run here; install"
                f" featkit[{OPENVINO}] on a processor that computes in {self.run.precision}, or"
                " embed the images again."
            )
        return Embedder(path, threads=threads, limits=limits, accepts=self.accepts)

    # Reading --------------------------------------------------------------------------------------

    def read(self, work: Callable[[IndexState], Result]) -> Result:
        """Return work(state), where all that `work` reads comes from one committed state.

        `work` is called again if the index is replaced meanwhile. It must not write to the index.

        Example:
            total, items = index.read(lambda state: (len(state), state.items(limit=20)))
        """
        return self._reader.read(work)

    def item(self, item_id: int) -> Item:
        """Return an item by id. NoSuchItem, an InputError, if it does not exist or was removed."""
        return self.read(lambda state: state.item(item_id))

    def item_by_key(self, key: str) -> Item:
        """Return an item by key. NoSuchItem, an InputError, if it does not exist or was removed."""
        return self.read(lambda state: state.item_by_key(key))

    def items(self, offset: int = 0, limit: int = 100, *, where: str | None = None) -> list[Item]:
        """Return items in the order they were added, after skipping the first `offset`.

        where: a filter as for `search`; only the items that match it count. FilterError, an
        InputError, if it is wrong.
        """
        return self.read(lambda state: state.items(offset, limit, where=where))

    def count(self, where: str | None = None) -> int:
        """Return the number of items, or of those that match a filter as for `search`."""
        return self.read(lambda state: state.count(where))

    def sample(self, limit: int = 100, *, seed: int = 0, where: str | None = None) -> list[Item]:
        """Return up to `limit` different items in random order, of those that match a filter.

        The result is the same for the same seed and committed state.
        """
        return self.read(lambda state: state.sample(limit, seed=seed, where=where))

    def thumbnail(self, item_id: int) -> bytes | None:
        """Return the JPEG bytes of an item's thumbnail, or None if it has none.

        NoSuchItem, an InputError, if the item does not exist or was removed.
        """
        return self.read(lambda state: state.thumbnail(item_id))

    def vector(self, item_id: int) -> np.ndarray:
        """Return a copy of an item's vector, (D,) float32.

        NoSuchItem, an InputError, if the item does not exist or was removed.
        """
        return self.read(lambda state: state.vector(item_id))

    # Writing --------------------------------------------------------------------------------------

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
        """Add items with their vectors (n, D) in one transaction, and return their ids, ascending.

        An item with an existing key replaces the old one under a new id. If a key is given twice,
        the last one counts. widths and heights are those of the upright originals; thumbnails are
        JPEG bytes. Metadata values are text, numbers and booleans. They are returned as they were
        given, NaN included, and None means no value. A name has booleans in all items or in none.

        InputError, and nothing is added, for vectors that do not have D dimensions and unit length,
        and for values that cannot be stored. EnvironmentProblem on a full disk.
        """
        texts = text_keys(keys, call="add(")
        checked = unit_vectors(vectors, width=self.width, keys=texts, index=self.path)
        items = new_items(
            texts,
            source=source,
            widths=widths,
            heights=heights,
            thumbnails=thumbnails,
            metadata=metadata,
        )
        return self.writer().add(items, checked)[0]

    def add_embeddings(
        self,
        folder: Embeddings,
        on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
        *,
        apart: Collection[str] | None = None,
    ) -> AddReport:
        """Add the rows of an embeddings folder, one transaction per shard, and count the outcomes.

        An item keeps its id if its vector, thumbnail and metadata are unchanged. An item whose
        image can no longer be read stays as well, since the cause may be temporary; `remove`
        deletes it. A key in another spelling (NFC and NFD, `./x`) is the same item, unless the
        folder has both keys or `apart` has the stored one. apart: the keys of all existing images,
        if the folder holds only some of them.

        on_progress is called with the number of rows done and how many of them have no embedding.
        InputError if the folder was made by another model, or in a precision that needs a proof;
        Interrupted on Ctrl-C, after which finished shards stay added.
        """
        writer = self.writer()
        self._reader.compatibility.check_embeddings(folder)
        if apart is None:
            apart = twins(
                lambda: (
                    key for table in folder.tables(["key"]) for key in table["key"].to_pylist()
                )
            )
        report = AddReport()
        num_done = 0
        try:
            for table in folder.tables():
                report += self._add_table(writer, folder.plan.source, table, apart=apart)
                num_done += table.num_rows
                on_progress(num_done, report.num_without_embedding)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped with {counted(report.num_added, 'image')} added to {self.path}; run the"
                " same command again to continue."
            ) from None
        return report

    def _add_table(
        self, writer: IndexWriter, source: str, table: pa.Table, *, apart: Collection[str]
    ) -> AddReport:
        embedded = table.filter(table["embedding"].is_valid())
        failed_keys = table.filter(table["embedding"].is_null())["key"].to_pylist()
        items = _items_of(embedded, source)
        vectors = unit_vectors(
            vectors_of(embedded),
            width=self.width,
            keys=[item.key for item in items],
            index=self.path,
        )
        num_added, num_replaced = writer.add_changed(items, vectors, apart=apart)
        kept = self.read(lambda state: state.catalogue.stored_keys(failed_keys, apart=apart))
        return AddReport(
            num_added=num_added,
            num_replaced=num_replaced,
            num_unchanged=len(items) - num_added,
            num_without_embedding=len(failed_keys),
            num_kept=len(kept),
        )

    def remove(self, keys: Iterable[str] = (), *, where: str | None = None) -> int:
        """Remove items by key, or all that match a filter, and return how many there were.

        One transaction removes them. Unknown keys are ignored. InputError, and nothing is removed,
        for a single text instead of a list, a key that is not text, or a wrong filter.
        """
        return self.writer().remove(text_keys(keys, call="remove("), where=where)

    @contextmanager
    def publishing(self, index_id: str) -> Iterator[CatalogueWriter]:
        """Yield a writer within a transaction, for featkit's own modules.

        The index need not be open for writing. InputError if the index at the path is not the one
        with this id any more.
        """
        with self._catalogue.publishing(index_id) as writer:
            yield writer

    @contextmanager
    def excluding_writers(self) -> Iterator[CatalogueReader]:
        """Yield a reader while nobody can write, for featkit's own modules."""
        with self._catalogue.excluding_writers() as catalogue:
            yield catalogue

    def state_seen_by(self, catalogue: CatalogueReader) -> IndexState:
        """Return the state that a catalogue reader or writer sees, for featkit's own modules."""
        return self._reader.state_seen_by(catalogue)

    def publish(self, index_id: str, settings: Mapping[str, Value]) -> None:
        """Store settings in a transaction of their own, as `publishing` does."""
        with self._catalogue.publishing(index_id) as writer:
            for name, value in settings.items():
                writer.set_setting(name, value)

    def writer(self) -> IndexWriter:
        """Return the writer, for featkit's own modules. ValueError if the index is read-only."""
        if self._writer is None:
            raise ValueError(f"{self.path} is open for reading only; open it with writable=True")
        return self._writer

    # Compatibility --------------------------------------------------------------------------------

    @property
    def proofs(self) -> list[Proof]:
        """The proofs that other engines and precisions give the same vectors."""
        return list(self._reader.compatibility.proofs)

    def accepts(self, run: Run) -> bool:
        """Return whether vectors that `run` makes may be compared with those of the index."""
        return self._reader.compatibility.accepts_run(run)

    def accepts_model(self, manifest: Manifest) -> bool:
        """Return whether vectors of a model file may be compared with those of the index.

        They may if it is the same model, or if one of the two is proven equal to the other.
        """
        return self._reader.compatibility.accepts_model(manifest)

    def keep_proof(self, proof: Proof) -> None:
        """Store a proof, replacing an older one for the same run."""
        self._keep_proofs([*(old for old in self.proofs if old.run != proof.run), proof])

    def drop_proof(self, run: Run) -> None:
        """Remove the proof for a run, if there is one, since it no longer holds."""
        self._keep_proofs([old for old in self.proofs if old.run != run])

    def _keep_proofs(self, proofs: list[Proof]) -> None:
        self.writer().set_setting("proofs", write_proofs(proofs))
        self.read(lambda _state: None)  # takes over the new setting

    # Names of earlier versions, to be removed in the next release ---------------------------------

    def query(self, vectors: np.ndarray, *, k: int = 10) -> list[list[Hit]]:
        """Use `search(vectors=...)`."""
        _warn_renamed("query(vectors)", "search(vectors=vectors)")
        return self.search(vectors=vectors, k=k)

    def search_item(self, item_id: int, *, k: int = 10) -> list[Hit]:
        """Use `search(item=...)`."""
        _warn_renamed("search_item(id)", "search(item=id)")
        return self.search(item=item_id, k=k)

    def in_one_state(self, work: Callable[[], Result]) -> Result:
        """Use `read`."""
        _warn_renamed("in_one_state(work)", "read(work)")
        return self.read(lambda _state: work())


def _items_of(table: pa.Table, source: str) -> list[NewItem]:
    """Return the rows of a shard as items."""
    names = [name for name in table.column_names if name not in COLUMNS]
    return [
        NewItem(
            key=row["key"],
            source=source,
            width=row["width"],
            height=row["height"],
            thumbnail=row["thumbnail"],
            metadata={name: row[name] for name in names if row[name] is not None},
        )
        for row in table.drop_columns(["embedding", "error"]).to_pylist()
    ]


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(
        f"Index.{old} is now Index.{new}; the old name goes away in the next release",
        DeprecationWarning,
        stacklevel=3,
    )
