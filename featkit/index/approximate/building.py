"""Build a graph over an index while it is read and written, and put it in place.

The graph is built from a snapshot: committed vectors never change. What is written meanwhile is
scanned until the next build. A build that was stopped continues from the last part that it saved.
"""

from __future__ import annotations

import json
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from featkit.atomic import explain_os_errors, replace_file, write_text
from featkit.errors import FeatkitError, InputError, Interrupted
from featkit.index.approximate.generation import (
    FOLDER,
    INT64,
    SETTING,
    Generation,
    OpenGeneration,
    graph_path,
    ids_path,
)
from featkit.index.approximate.graph import (
    CODES,
    EF_CONSTRUCTION,
    LINKS,
    NUM_TRAINED_ON,
    ROWS_PER_ADD,
    Graph,
    build,
    read_partial,
    write_graph,
)
from featkit.index.approximate.tuning import truth_of, tune
from featkit.index.index import Index
from featkit.index.index_types import GRAPH, INDEX_TYPE
from featkit.index.state import spread
from featkit.index.vectors import FileRows
from featkit.lock import WriterLock
from featkit.wording import counted

LOCK_FILE = "builder.lock"
PARTIAL, PARTIAL_RECORD = "building.faiss", "building.json"
SAVE_EVERY_S = 300.0
NUM_LEFT_OUT = 1000
LEFT_OUT_SHARE = 0.02
NUM_COMPARED = 1000  # vectors that identify the content of a build that is continued
SEED = 0

Progress = Callable[[int, int], None]


class LowRecall(FeatkitError):
    """A graph does not reach the recall that was asked for. measured: what it reaches."""

    def __init__(self, index: Path, generation: Generation) -> None:
        self.generation = generation
        measured = generation.measured
        super().__init__(
            f"Searching {index} by a graph reaches a recall@10 of {measured.recall_at_10:.3f} (at"
            f" least {measured.low:.3f}) in {measured.p50_ms:.1f} ms, but {generation.target:g} was"
            " asked for. The index is unchanged; ask for less with --recall, or take it with"
            " --allow-low-recall."
        )


@dataclass(frozen=True)
class Snapshot:
    """The committed vectors of a moment, and the ids of its live items, ascending."""

    index_id: str
    rows: FileRows
    ids: np.ndarray

    @classmethod
    def of(cls, index: Index) -> Snapshot:
        """Take one of an open index."""
        vectors = index.read(lambda state: state.vectors)
        return cls(vectors.key.index_id, vectors.rows, np.flatnonzero(vectors.live))


def compact(
    index: Index,
    *,
    target: float = 0.95,
    allow_low_recall: bool = False,
    on_progress: Progress = lambda _done, _total: None,
    on_step: Callable[[str], None] = lambda _step: None,
) -> Generation:
    """Build a graph over an index, measure it, and search by it from now on.

    The index is open for reading; another process may write it meanwhile. target: the recall@10
    that searches are tuned to, by the lower end of its 95 % interval. on_progress: called with the
    number of vectors added and their total; on_step: with what is done, in words.

    LowRecall if the target is not reached, unless allow_low_recall; InputError for fewer than 2
    items or a wrong target; EnvironmentProblem if another process builds a graph, or on a full
    disk; Interrupted on Ctrl-C, after which another call continues.
    """
    if not 0 < target <= 1:
        raise InputError(f"The recall is {target:g}; it must be above 0 and at most 1.")
    folder = index.path / FOLDER
    with explain_os_errors(folder):
        folder.mkdir(exist_ok=True)
    lock = WriterLock(folder / LOCK_FILE)
    try:
        return _compact(index, target, allow_low_recall, on_progress, on_step)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped by Ctrl-C; {index.path} is unchanged, and the same command continues."
        ) from None
    finally:
        lock.release()


def _compact(
    index: Index,
    target: float,
    allow_low_recall: bool,
    on_progress: Progress,
    on_step: Callable[[str], None],
) -> Generation:
    started = time.perf_counter()
    snapshot = Snapshot.of(index)
    if len(snapshot.ids) < 2:
        raise InputError(f"{index.path} has {counted(len(snapshot.ids), 'image')}; add more first.")
    left_out, ids = _split(snapshot.ids)
    name = f"{snapshot.rows.num_rows:010}-{secrets.token_hex(4)}"
    on_step("building the graph")
    _build(index.path, snapshot, ids, name, on_progress)
    graph = Graph.open(graph_path(index.path, name))
    on_step("measuring its recall")
    truth = truth_of(snapshot.rows, ids, snapshot.rows.take(left_out))
    ef, num_candidates, measured = tune(
        graph, ids, snapshot.rows, truth, target=target, on_step=on_step
    )
    generation = Generation(
        name=name,
        num_items=len(ids),
        until=snapshot.rows.num_rows,
        ids_crc32=zlib.crc32(ids.astype(INT64).tobytes()),
        num_bytes=graph_path(index.path, name).stat().st_size,
        ef=ef,
        num_candidates=num_candidates,
        target=target,
        built=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=round(time.perf_counter() - started, 1),
        measured=measured,
    )
    if measured.low < target and not allow_low_recall:
        _remove_files(index.path, keep=current_name(index))
        raise LowRecall(index.path, generation)
    OpenGeneration(index.path, generation)  # as readers will open it
    index.publish(snapshot.index_id, {SETTING: generation.to_json(), INDEX_TYPE: GRAPH})
    _remove_files(index.path, keep=name)
    return generation


def current_name(index: Index) -> str | None:
    """Return the name of the generation that searches use, if there is one."""
    text = index.read(lambda state: state.catalogue.settings().get(SETTING))
    return None if text is None else Generation.from_json(str(text)).name


def _split(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids to measure by, which stay out of the graph, and the others; both ascending."""
    count = max(1, min(NUM_LEFT_OUT, int(LEFT_OUT_SHARE * len(ids))))
    is_left_out = np.zeros(len(ids), bool)
    is_left_out[np.random.default_rng(SEED).choice(len(ids), count, replace=False)] = True
    return ids[is_left_out], ids[~is_left_out]


def _build(
    path: Path, snapshot: Snapshot, ids: np.ndarray, name: str, on_progress: Progress
) -> None:
    """Build the graph of these items and write its files."""
    partial = _Partial(path / FOLDER, _digest(snapshot, ids))
    graph, num_done = partial.read()
    saved = time.monotonic()

    def batches() -> Iterator[np.ndarray]:
        for start in range(num_done, len(ids), ROWS_PER_ADD):
            yield snapshot.rows.take(ids[start : start + ROWS_PER_ADD])

    def on_added(graph: Any) -> None:
        nonlocal saved
        on_progress(graph.ntotal, len(ids))
        if time.monotonic() > saved + SAVE_EVERY_S and graph.ntotal < len(ids):
            partial.write(graph)
            saved = time.monotonic()

    on_progress(num_done, len(ids))
    sample = snapshot.rows.take(_sample(ids)) if graph is None else None
    graph = build(sample, batches(), graph=graph, width=snapshot.rows.width, on_added=on_added)
    with replace_file(ids_path(path, name)) as temporary:
        temporary.write_bytes(ids.astype(INT64).tobytes())
    with replace_file(graph_path(path, name)) as temporary:
        write_graph(graph, temporary)
    partial.remove()


def _sample(ids: np.ndarray) -> np.ndarray:
    count = min(NUM_TRAINED_ON, len(ids))
    return np.sort(np.random.default_rng(SEED).choice(ids, count, replace=False))


def _digest(snapshot: Snapshot, ids: np.ndarray) -> str:
    """Return what distinguishes this build from others."""
    some = ids[spread(len(ids), NUM_COMPARED)]
    content = zlib.crc32(snapshot.rows.take(some).tobytes())
    parts = [snapshot.index_id, zlib.crc32(ids.tobytes()), content, snapshot.rows.width]
    return " ".join(map(str, [*parts, LINKS, CODES, EF_CONSTRUCTION, ROWS_PER_ADD]))


class _Partial:
    """The part of a graph that an interrupted build has saved."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._graph, self._record = folder / PARTIAL, folder / PARTIAL_RECORD
        self._digest = digest

    def read(self) -> tuple[Any | None, int]:
        """Return the saved graph and how many vectors it has; (None, 0) without one of ours."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            if record["build"] != self._digest:
                return None, 0
            graph = read_partial(self._graph)
            return (graph, graph.ntotal) if graph.ntotal == record["vectors"] else (None, 0)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None, 0

    def write(self, graph: Any) -> None:
        """Save a graph. The record comes last, and names the build and the number of vectors."""
        self._record.unlink(missing_ok=True)
        with replace_file(self._graph) as temporary:
            write_graph(graph, temporary)
        write_text(self._record, json.dumps({"build": self._digest, "vectors": int(graph.ntotal)}))

    def remove(self) -> None:
        """Remove what was saved."""
        for file in (self._record, self._graph):
            file.unlink(missing_ok=True)


def _remove_files(path: Path, *, keep: str | None) -> None:
    """Remove the files of all generations but one. Who has them open can still read them."""
    for file in (path / FOLDER).iterdir():
        if file.suffix in (".faiss", ".ids") and file.stem not in (keep, PARTIAL.split(".")[0]):
            file.unlink(missing_ok=True)
