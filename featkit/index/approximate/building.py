"""Build the codes of an index while it is read and written, and put them in place.

They are built from a snapshot: committed vectors never change. What is written meanwhile is
scanned until the next build. A build that was stopped continues from the last part that it saved.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featkit.atomic import replace_file
from featkit.errors import FeatkitError, InputError, Interrupted
from featkit.index.approximate.codes import (
    FINE_GRAPH,
    LISTS,
    ROWS_PER_ADD,
    Codes,
    Kind,
    add,
    begin,
    finish,
    num_trained_on,
)
from featkit.index.approximate.generation import (
    FOLDER,
    INT64,
    SETTING,
    Generation,
    OpenGeneration,
    checksum,
    codes_path,
    ids_path,
)
from featkit.index.approximate.graph import EF_CONSTRUCTION, ENTRY_STEP, LINKS
from featkit.index.approximate.on_gpu import BuildOn, Gpu, GpuProblem, choose_gpu
from featkit.index.approximate.partial import PARTIAL, PARTIAL_RECORD, Partial
from featkit.index.approximate.tuning import truth_of, tune
from featkit.index.builders import LOCK_FILE, excluding_builders
from featkit.index.index import Index
from featkit.index.index_types import APPROXIMATE, INDEX_TYPE
from featkit.index.state import content_checksum
from featkit.index.stored_rows import FileRows
from featkit.wording import counted, first_line

SAVE_EVERY_S = 300.0
NUM_LEFT_OUT = 1000
LEFT_OUT_SHARE = 0.02
SEED = 0

Progress = Callable[[int, int], None]


class LowRecall(FeatkitError):
    """Codes do not reach the recall that was asked for. generation: what they reach."""

    def __init__(self, index: Path, generation: Generation) -> None:
        self.generation = generation
        measured = generation.measured
        other = " build with --build-on cpu," if generation.built_on == "gpu" else ""
        super().__init__(
            f"Searching {index} by {generation.kind.about} reaches a recall@10 of"
            f" {measured.recall_at_10:.3f} (at least {measured.low:.3f}) in {measured.p50_ms:.1f}"
            f" ms, but {generation.target:g} was asked for. Searches stay as they were; ask for"
            f" less with --recall, allow more with --memory,{other} or take it with"
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
    kind: Kind = FINE_GRAPH,
    target: float = 0.95,
    allow_low_recall: bool = False,
    build_on: BuildOn = "auto",
    on_progress: Progress = lambda _done, _total: None,
    on_step: Callable[[str], None] = lambda _step: None,
) -> Generation:
    """Build the codes of an index, measure them, and search by them from now on.

    The index is open for reading; another process may write it meanwhile. kind: what to build;
    `planning.plan_search` chooses. target: the recall@10 that searches are tuned to, by the lower
    end of its 95 % interval. build_on: `auto` is a GPU if it can build, otherwise the CPU. Codes
    built on a CPU have the same bytes each time, those built on a GPU have not. on_progress: called
    with the number of vectors added and their total; on_step: with what is done, in words.

    LowRecall if the target is not reached, unless allow_low_recall; InputError for fewer than 2
    items, a wrong target, or an index that was replaced meanwhile; EnvironmentProblem if another
    process builds, on a full disk, or if `gpu` was asked for and cannot build; Interrupted on
    Ctrl-C. After LowRecall and Interrupted, another call continues with what was built.
    """
    if not 0 < target <= 1:
        raise InputError(f"The recall is {target:g}; it must be above 0 and at most 1.")
    with excluding_builders(index.path):
        try:
            compact_on = partial(
                _compact, index, kind, target, allow_low_recall, on_progress, on_step
            )
            try:
                return compact_on(
                    choose_gpu(
                        build_on, links=kind is not LISTS, num_rows=len(index), width=index.width
                    )
                )
            except GpuProblem as problem:
                if build_on == "gpu":
                    raise
                on_step(f"{first_line(problem)}: building on the CPU")
                return compact_on(None)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped by Ctrl-C; {index.path} is unchanged, and the same command continues."
            ) from None


def _compact(
    index: Index,
    kind: Kind,
    target: float,
    allow_low_recall: bool,
    on_progress: Progress,
    on_step: Callable[[str], None],
    gpu: Gpu | None,
) -> Generation:
    started = time.perf_counter()
    snapshot = Snapshot.of(index)
    if len(snapshot.ids) < 2:
        raise InputError(f"{index.path} has {counted(len(snapshot.ids), 'image')}; add more first.")
    left_out, ids = _split(snapshot.ids)
    content = content_checksum(snapshot.rows, ids)
    name = f"{snapshot.rows.num_rows:010}-{_digest(kind, snapshot, ids, content, gpu)}"
    in_use = _current(index)
    _remove_files(index.path, keep=(name, in_use.name if in_use else None))
    path = codes_path(index.path, name)
    if not _is_built(index.path, name, in_use):
        on_step(f"building {kind.about}{' on the GPU' if gpu else ''}")
        _build(index.path, kind, snapshot, ids, name, gpu, on_progress)
    codes = Codes.open(path)
    on_step("measuring the recall")
    truth = truth_of(snapshot.rows, ids, snapshot.rows.take(left_out))
    effort, num_candidates, measured = tune(
        codes, kind, ids, snapshot.rows, truth, target=target, on_step=on_step
    )
    generation = Generation(
        name=name,
        kind_name=kind.name,
        num_items=len(ids),
        until=snapshot.rows.num_rows,
        ids_crc32=zlib.crc32(ids.astype(INT64).tobytes()),
        num_bytes=path.stat().st_size,
        crc32=checksum(path),
        effort=effort,
        num_candidates=num_candidates,
        target=target,
        built=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=round(time.perf_counter() - started, 1),
        measured=measured,
        built_on="gpu" if gpu else "cpu",
    )
    if measured.low < target and not allow_low_recall:
        raise LowRecall(index.path, generation)
    OpenGeneration(index.path, generation)  # as readers will open it
    now = Snapshot.of(index).rows
    if now.num_rows < snapshot.rows.num_rows or content_checksum(now, ids) != content:
        raise InputError(
            f"{index.path} was replaced by another copy meanwhile; run the command again."
        )
    index.publish(snapshot.index_id, {SETTING: generation.to_json(), INDEX_TYPE: APPROXIMATE})
    _remove_files(index.path, keep=(name,))
    return generation


def _current(index: Index) -> Generation | None:
    """Return what searches use, if it can be read."""
    text = index.read(lambda state: state.catalogue.settings().get(SETTING))
    try:
        return None if text is None else Generation.from_json(str(text))
    except InputError:
        return None


def _is_built(path: Path, name: str, in_use: Generation | None) -> bool:
    """Return whether files of this name are there: those in use, undamaged, or those of a build
    that was stopped while it was measured."""
    files = (codes_path(path, name), ids_path(path, name))
    if not all(file.is_file() for file in files):
        return False
    if in_use is None or in_use.name != name:
        return True
    return checksum(files[0]) == in_use.crc32 and checksum(files[1]) == in_use.ids_crc32


def _split(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids to measure by, which get no codes, and the others; both ascending."""
    count = max(1, min(NUM_LEFT_OUT, int(LEFT_OUT_SHARE * len(ids))))
    is_left_out = np.zeros(len(ids), bool)
    is_left_out[np.random.default_rng(SEED).choice(len(ids), count, replace=False)] = True
    return ids[is_left_out], ids[~is_left_out]


def _build(
    path: Path,
    kind: Kind,
    snapshot: Snapshot,
    ids: np.ndarray,
    name: str,
    gpu: Gpu | None,
    on_progress: Progress,
) -> None:
    """Build the codes of these items and write their files."""
    saving = Partial(path / FOLDER, name)
    index, num_done = saving.read()
    saved = time.monotonic()
    rows_per_add = ROWS_PER_ADD if gpu is None or kind is LISTS else len(ids)

    def batches() -> Iterator[np.ndarray]:
        for start in range(num_done, len(ids), rows_per_add):
            yield snapshot.rows.take(ids[start : start + rows_per_add])

    def on_added(index: Any) -> None:
        nonlocal saved
        on_progress(index.ntotal, len(ids))
        if time.monotonic() > saved + SAVE_EVERY_S and index.ntotal < len(ids):
            saving.write(index)
            saved = time.monotonic()

    on_progress(num_done, len(ids))
    sample = snapshot.rows.take(_sample(ids, num_trained_on(kind, len(ids))))
    if index is None:
        index = begin(kind, sample, num_rows=len(ids), gpu=gpu)
    add(index, batches(), on_added, gpu=gpu)
    finished = finish(kind, index, sample, lambda positions: snapshot.rows.take(ids[positions]))
    with replace_file(ids_path(path, name)) as temporary:
        temporary.write_bytes(ids.astype(INT64).tobytes())
    with replace_file(codes_path(path, name)) as temporary:
        finished.write(temporary)
    saving.remove()


def _sample(ids: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(SEED).choice(ids, count, replace=False))


def _digest(kind: Kind, snapshot: Snapshot, ids: np.ndarray, content: int, gpu: Gpu | None) -> str:
    """Return what distinguishes this build from others, as 16 hexadecimal digits."""
    parts = [kind.name, snapshot.index_id, zlib.crc32(ids.tobytes()), content, snapshot.rows.width]
    device = ["gpu"] if gpu else []
    text = " ".join(map(str, [*parts, LINKS, EF_CONSTRUCTION, ENTRY_STEP, ROWS_PER_ADD, *device]))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _remove_files(path: Path, *, keep: Iterable[str | None]) -> None:
    """Remove all files but those of these generations, of a build that can be continued, and the
    lock. Who has them open can still read them."""
    kept = {PARTIAL, PARTIAL_RECORD, LOCK_FILE}
    for name in filter(None, keep):
        kept |= {codes_path(path, name).name, ids_path(path, name).name}
    for file in (path / FOLDER).iterdir():
        if file.name not in kept:
            file.unlink(missing_ok=True)
