"""The batch job: read → decode → infer → write, bounded in memory, ordered, and able to go on after any stop.

Each worker takes the next few items, decodes them and runs the model on them by itself, with a session call that uses one
thread. So no core ever waits for another stage, whatever decoding and inference cost: the work is conserved by construction.
Batches are cut by position in the shard, and a shard is written whole or not at all; a restart therefore repeats the same
batches and writes the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featkit.atomic import explain_os_errors, remove_partials, replace_file
from featkit.embedder import Embedder
from featkit.embeddings import PLAN_FILE, SHARDS, Embeddings, Plan, Row
from featkit.errors import InputError, Interrupted
from featkit.images import thumbnail_jpeg
from featkit.resources import usable_cpus
from featkit.sources import Source

# Items of one worker's turn: enough for the model to be efficient on one thread, few enough to stop within a second.
TURN = 8
SHOWN_FAILURES = 20


@dataclass(kw_only=True)
class EmbedReport:
    """What a run of the job came to. Counts are of the whole folder; `seconds` and `num_embedded_now` of this run."""

    num_items: int
    num_failed: int = 0
    num_embedded_now: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first few: key and why


def embed_source(
    source: Source,
    embedder: Embedder,
    out: Path,
    *,
    shard_size: int = 1024,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> EmbedReport:
    """Embed every item of `source` into the embeddings folder `out`, which is begun or gone on with.

    embedder: made with threads=1, since `workers` (by default all processors this process may use) call it at once.
    on_progress is called with items done and failed so far. InputError when `out` was begun with another source, model or
    shard size; EnvironmentProblem when it cannot be written; Interrupted on Ctrl-C, with all finished shards kept.
    """
    folder = begin_or_continue(source, embedder, out, shard_size=shard_size)
    report = EmbedReport(num_items=len(folder))
    started = time.perf_counter()
    missing = folder.missing_shards()
    for shard in sorted(set(range(folder.plan.num_shards)) - set(missing)):
        _count_failures(report, folder, shard)
    done = report.num_items - sum(len(folder.shard_range(shard)) for shard in missing)
    on_progress(done, report.num_failed)
    job = Job(source, embedder, workers or usable_cpus())
    try:
        rows: list[Row] = []
        unwritten = deque(missing)
        for turn in job.run(folder, missing):
            rows += turn
            done += len(turn)
            report.num_failed += _note_failures(report, turn)
            on_progress(done, report.num_failed)
            if len(rows) == len(folder.shard_range(unwritten[0])):
                folder.write_shard(unwritten.popleft(), rows)
                report.num_embedded_now += len(rows)
                rows = []
    except KeyboardInterrupt:
        kept = len(folder) - sum(len(folder.shard_range(shard)) for shard in folder.missing_shards())
        raise Interrupted(
            f"stopped with {kept:,} of {len(folder):,} items in {out}; the same command goes on from there."
        ) from None
    finally:
        job.stop()
    report.seconds = time.perf_counter() - started
    return report


def begin_or_continue(source: Source, embedder: Embedder, out: Path, *, shard_size: int) -> Embeddings:
    """The embeddings folder of this work: begun anew, or found as an earlier run left it.

    InputError when what is there is other work, naming what differs.
    """
    if shard_size < 1:
        raise InputError(f"The shard size is {shard_size}; it must be at least 1.")
    plan = Plan(
        source=source.name,
        num_items=len(source),
        keys_sha256=_keys_sha256(source),
        model_name=embedder.manifest.name,
        fingerprint=embedder.fingerprint,
        geometry=embedder.geometry.to_dict(),
        width=embedder.width,
        shard_size=shard_size,
    )
    if (out / PLAN_FILE).exists():
        return _continue(plan, out)
    with explain_os_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is there already and is no embeddings folder; choose another --out.")
        (out / SHARDS).mkdir(parents=True, exist_ok=True)
    folder = Embeddings(out, plan)
    with replace_file(folder.model_path) as temporary:
        shutil.copyfile(embedder.model_path, temporary)
    return Embeddings.create(out, plan)


def _continue(plan: Plan, out: Path) -> Embeddings:
    folder = Embeddings.open(out)
    differences = {
        "fingerprint": f"the model {folder.plan.model_name}, now it is {plan.model_name}",
        "width": f"vectors of {folder.plan.width}, now they have {plan.width}",
        "num_items": f"{folder.plan.num_items:,} items, now there are {plan.num_items:,}",
        "keys_sha256": "other pictures than the source holds now",
        "shard_size": f"shards of {folder.plan.shard_size}, now they would be of {plan.shard_size}",
    }
    for name, difference in differences.items():
        if getattr(folder.plan, name) != getattr(plan, name):
            raise InputError(f"{out} was begun with {difference}; choose another --out, or remove it to begin again.")
    with explain_os_errors(out):
        remove_partials(out)
        (out / SHARDS).mkdir(exist_ok=True)
        remove_partials(out / SHARDS)
    return folder


class Job:
    """The workers, and the turns that they are given ahead of what has been written."""

    def __init__(self, source: Source, embedder: Embedder, workers: int) -> None:
        self.source, self.embedder, self.workers = source, embedder, workers
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="featkit-embed")

    def run(self, folder: Embeddings, shards: list[int]) -> Iterator[list[Row]]:
        """Rows of the shards, turn by turn, in order. No more than a few turns a worker are held at once."""
        turns = (
            range(start, min(start + TURN, items.stop))
            for items in map(folder.shard_range, shards)
            for start in range(items.start, items.stop, TURN)
        )
        ahead: deque[Future[list[Row]]] = deque()
        for turn in turns:
            ahead.append(self._pool.submit(self._turn, turn))
            if len(ahead) > 4 * self.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def stop(self) -> None:
        """Let the workers end after the picture they are at."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _turn(self, numbers: range) -> list[Row]:
        """Decode and embed a few items; one that cannot be read becomes a row that says why."""
        rows: list[Row] = []
        images: list[np.ndarray] = []
        for number in numbers:
            if self._stopped.is_set():
                return []
            row, image = self._read(number)
            rows.append(row)
            if image is not None:
                images.append(image)
        if not images:
            return rows
        vectors = iter(self.embedder.infer(np.stack(images)))
        return [row if row.error is not None else _with_embedding(row, next(vectors)) for row in rows]

    def _read(self, number: int) -> tuple[Row, np.ndarray | None]:
        key, metadata = self.source.key(number), {}
        try:
            metadata = self.source.metadata(number)
            decoded = self.embedder.decode(self.source.read(number), name=key)
        except InputError as error:
            return Row(key=key, error=str(error), metadata=metadata), None
        row = Row(
            key=key,
            width=decoded.width,
            height=decoded.height,
            thumbnail=thumbnail_jpeg(decoded.pixels),
            metadata=metadata,
        )
        return row, self.embedder.geometry.apply(decoded.pixels)


def _with_embedding(row: Row, vector: np.ndarray) -> Row:
    return Row(
        key=row.key,
        width=row.width,
        height=row.height,
        thumbnail=row.thumbnail,
        embedding=vector,
        metadata=row.metadata,
    )


def _note_failures(report: EmbedReport, rows: list[Row]) -> int:
    failed = [(row.key, row.error) for row in rows if row.error is not None]
    report.failures += failed[: max(0, SHOWN_FAILURES - len(report.failures))]
    return len(failed)


def _count_failures(report: EmbedReport, folder: Embeddings, shard: int) -> None:
    """Take over the failures of a shard that an earlier run wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder.shard_path(shard), columns=["key", "error"])
    failed = table.filter(table["error"].is_valid())
    report.num_failed += failed.num_rows
    pairs = list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
    report.failures += pairs[: max(0, SHOWN_FAILURES - len(report.failures))]


def _keys_sha256(source: Source) -> str:
    digest = hashlib.sha256()
    for number in range(len(source)):
        digest.update(source.key(number).encode() + b"\n")
    return digest.hexdigest()
