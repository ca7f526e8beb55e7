"""The batch job: read → decode → infer → write, bounded in memory, ordered, and able to go on after
any stop.

Each worker takes the next few items, decodes them and runs the model on them by itself, with a
session call that uses one thread. So no core ever waits for another stage, whatever decoding and
inference cost: the work is conserved by construction. Measured on two cores with a ViT-S/14 at 224,
calls of one thread side by side also beat one session with two threads, by a tenth: they share no
barriers, and each stays in its core's cache. Batches are cut by position in the shard, and a shard
is written whole or not at all; a restart therefore repeats the same batches and writes the same
bytes, whatever the number of workers, and even where a vector depended on its batch.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featkit.atomic import TEMPORARY_MARK, explain_os_errors, remove_partials
from featkit.backends import Cancel, Cancelled, Run
from featkit.changes import ShardCheck, as_text, check_shards, metadata_of
from featkit.embedder import Embedder
from featkit.embeddings import (
    LOCK_FILE,
    MODEL_FILE,
    PLAN_FILE,
    SHARDS,
    SHOWN_FAILURES,
    STAMPS,
    Embeddings,
    Plan,
    Row,
    column_name,
    common_kind,
)
from featkit.errors import InputError, Interrupted
from featkit.images import ImageLimits, thumbnail_jpeg
from featkit.images.room import DEEP, PLAIN, MemoryBudget
from featkit.lock import WriterLock
from featkit.modelfile import copy_model_file
from featkit.resources import spare_memory, usable_cpus, workers_that_fit
from featkit.sources import Source, has_keys, keys_sha256
from featkit.sources.rows import image_column
from featkit.stamps import digest_of, stamp_of
from featkit.wording import counted

# Rows finished or under way beyond the last one taken: work for the workers while a shard is
# written, and 10 kB each.
ROWS_AHEAD = 256
# The model of memory by which `workers_for` chooses. The job itself grew by 80 MB beyond the open
# model, with rows, shards and pyarrow; tensors of the model alive at once are counted generously.
RESERVED_BYTES = 96 * 2**20
TYPICAL_PIXELS = 24_000_000
LIVE_TENSORS, ATTENTION_HEADS = 16, 32
# How long to wait for workers after Ctrl-C. Inference ends at the next operator; decoding of a
# giant image may not.
STOP_WAIT_S = 0.7


@dataclass(kw_only=True)
class EmbedReport:
    """What a run of the job came to. Counts are of the whole folder; `seconds` and
    `num_embedded_now` of this run."""

    num_items: int
    num_done: int = 0
    num_failed: int = 0
    num_embedded_now: int = 0
    num_changed: int = 0  # of them, those whose file has changed since an earlier run
    num_retried: int = 0  # of them, those that had failed and were tried again
    backend: str = ""  # what ran, in words
    num_workers: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first few: key and why

    def note(self, rows: Sequence[Row]) -> None:
        """Count rows that are new."""
        self.num_done += len(rows)
        self.num_failed += sum(row.error is not None for row in rows)


def embed_source(
    source: Source,
    embedder: Embedder,
    out: Path,
    *,
    shard_size: int = 1024,
    workers: int | None = None,
    retry: bool = False,
    rehash: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> EmbedReport:
    """Embed every item of `source` into the embeddings folder `out`, which is begun or gone on
    with.

    Items of finished shards are embedded again if their file has changed by size or time, or could
    not be read before.
    retry: also those that failed for another reason. rehash: also those whose file has other bytes
    of the same size and time.
    embedder: made with threads=1 where there is a choice, else a session of one thread is opened
    beside it, for `workers` (by default as many as processors, or fewer where memory is limited:
    `workers_for`) to call at once. on_progress is called with items done and failed so far. A
    folder that is there goes on with the engine and precision that it was begun with, where the
    embedder leaves them open. InputError when `out` was begun with another source, model, run or
    shard size; EnvironmentProblem when it cannot be written or another process is at it;
    Interrupted on Ctrl-C, with all finished shards kept.
    """
    if shard_size < 1:
        raise InputError(f"A shard of {shard_size} items is none; use 1 or more.")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} threads cannot work; use 1 or more.")
    _check_place(out)
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(out / LOCK_FILE)
    try:
        embedder = _run_as_begun(embedder, out)
        folder = begin_or_continue(source, embedder, out, shard_size=shard_size)
        num_workers = workers or workers_for(embedder)
        checked = EmbedReport(num_items=len(source))

        def on_checked(check: ShardCheck) -> None:
            checked.num_done += check.num_rows
            checked.num_failed += len(check.failed)
            if rehash:  # else it takes no longer than a look at each file
                on_progress(checked.num_done, checked.num_failed)

        checks = check_shards(
            source,
            folder,
            retry=retry,
            rehash=rehash,
            num_workers=num_workers,
            on_checked=on_checked,
        )
        return _embed_missing(
            source, embedder.with_threads(1), folder, checks, num_workers, on_progress
        )
    except KeyboardInterrupt:
        kept = Embeddings.open(out).num_rows if (out / PLAN_FILE).exists() else 0
        raise Interrupted(
            f"Stopped by Ctrl-C with {kept:,} of {counted(len(source), 'item')} in {out}; the same"
            " command goes on from there."
        ) from None
    finally:
        lock.release()


def begin_or_continue(
    source: Source, embedder: Embedder, out: Path, *, shard_size: int
) -> Embeddings:
    """The embeddings folder of this work: begun anew, or found as an earlier run left it.

    The plan comes first, so that a folder with anything in it says what it is. InputError when what
    is there is other work, naming what differs.
    """
    plan = Plan(
        source=as_text(source.name),
        num_items=len(source),
        keys_sha256=keys_sha256(source),
        model_name=embedder.manifest.name,
        fingerprint=embedder.fingerprint,
        geometry=embedder.geometry,
        width=embedder.width,
        run=str(embedder.run),
        shard_size=shard_size,
        max_bytes=embedder.limits.max_bytes,
        max_pixels=embedder.limits.max_pixels,
        column=image_column(source),
        skipped=dict(sorted(source.skipped.items())),
    )
    with explain_os_errors(out):
        remove_partials(out)
        if (out / PLAN_FILE).exists():
            folder = Embeddings.open(out)
            # perhaps as an earlier version called them
            if has_keys(source, folder.plan.keys_sha256):
                plan = dataclasses.replace(plan, keys_sha256=folder.plan.keys_sha256)
            _refuse_other_work(folder, plan, source)
        else:
            folder = Embeddings.create(
                out, dataclasses.replace(plan, columns=_metadata_columns(source))
            )
        for part in (SHARDS, STAMPS):
            (out / part).mkdir(exist_ok=True)
            remove_partials(out / part)
        if not folder.model_path.exists():
            copy_model_file(embedder.model_path, folder.model_path)
    return folder


def _run_as_begun(embedder: Embedder, out: Path) -> Embedder:
    """The embedder, run as the folder `out` was begun if there is one. InputError when another run
    was asked for."""
    if not (out / PLAN_FILE).exists():
        return embedder
    plan = Embeddings.open(out).plan
    begun = Run.parse(plan.run)
    if plan.fingerprint != embedder.fingerprint or begun == embedder.run:
        return embedder  # of another model it is refused later, with words for that
    if not embedder.leaves_open(begun):
        raise InputError(
            f"{out} was begun with {begun}, not {embedder.run}; go on with --backend"
            f" {begun.backend} --precision {begun.precision}, or choose another --out."
        )
    return embedder.with_run(begun)


def _check_place(out: Path) -> None:
    """InputError when `out` is a file, or a folder with anything in it that is not of this job."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder with --out.")
    above = next((folder for folder in out.absolute().parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(
            f"{out} cannot be made: {above} is a file; name another folder with --out."
        )
    if out.is_dir() and not (out / PLAN_FILE).exists():
        others = [
            file.name
            for file in out.iterdir()
            if file.name != LOCK_FILE and TEMPORARY_MARK not in file.name
        ]
        if others:
            raise InputError(
                f"{out} is no embeddings folder and holds {min(others)}; choose a new or an empty"
                " --out."
            )


def _mended(folder: Embeddings, source: Source) -> str:
    """A sentence about an archive or a folder that could not be read when the work was begun, and
    has items of its own now."""
    keys = {source.key(number) for number in range(len(source))}
    try:
        mended = [key for key, _ in folder.failures()[1] if key not in keys]
    except InputError:  # a damaged shard, which another run would write again
        return ""
    found = next(
        (key for key in mended if any(other.startswith(key.rstrip("/") + "/") for other in keys)),
        None,
    )
    return "" if found is None else f" {found} could not be read then, and now its images can be."


def _refuse_other_work(folder: Embeddings, plan: Plan, source: Source) -> None:
    """InputError unless the folder was begun for this very plan."""
    old, out = folder.plan, folder.path
    if old.fingerprint != plan.fingerprint:
        raise InputError(
            f"{out} was begun with another model, {old.model_name} ({old.fingerprint[:12]}), not"
            f" {plan.model_name} ({plan.fingerprint[:12]}); go on with --model {out / MODEL_FILE},"
            " or choose another --out."
        )
    if not _same_place(old.source, plan.source):
        raise InputError(
            f"{out} was begun with the source {old.source}, not {plan.source}; choose another"
            " --out."
        )
    if (old.num_items, old.keys_sha256) != (plan.num_items, plan.keys_sha256):
        mended = _mended(folder, source)
        raise InputError(
            f"{plan.source} has changed since {out} was begun: it had"
            f" {counted(old.num_items, 'image')} and has {plan.num_items:,}, some of them added,"
            f" removed or renamed.{mended} Embed it as it is now into another --out and add that to"
            " the same index. To finish this folder instead, undo the change, or repeat its"
            " --include and --exclude."
        )
    if old.column and old.column != plan.column:
        raise InputError(
            f"{out} was begun with images from the column {old.column}, not {plan.column}; go on"
            f" with --column {old.column}, or choose another --out."
        )
    for name, option in (
        ("shard_size", "--shard-size"),
        ("max_pixels", "--max-pixels"),
        ("max_bytes", "--max-bytes"),
    ):
        before, now = getattr(old, name), getattr(plan, name)
        if before != now:
            raise InputError(
                f"{out} was begun with {option} {before}, not {now}; say so again, or choose"
                " another --out."
            )
    if old.geometry != plan.geometry or old.width != plan.width:
        raise InputError(
            f"{out} was begun with another geometry or width of vectors; choose another --out."
        )


@dataclass(frozen=True)
class _ShardWork:
    """A shard to write: the turns that make it, or the part of it that is made again, and what was
    found of the rest."""

    shard: int
    turns: list[range]
    check: ShardCheck | None  # None for a shard that is new or damaged


def _plan_work(
    folder: Embeddings, checks: Sequence[ShardCheck], batch_size: int
) -> list[_ShardWork]:
    """The shards to write, in order. Turns are cut by position, whatever a shard lacks, so batches
    are always the same."""
    checked = {check.shard: check for check in checks}
    work = []
    for shard in range(folder.plan.num_shards):
        items = folder.shard_range(shard)
        turns = [
            range(start, min(start + batch_size, items.stop))
            for start in range(items.start, items.stop, batch_size)
        ]
        check = checked.get(shard)
        if check is not None:
            turns = [turn for turn in turns if not check.redo.isdisjoint(turn)]
        if turns:
            work.append(_ShardWork(shard, turns, check))
    return work


def _embed_missing(
    source: Source,
    embedder: Embedder,
    folder: Embeddings,
    checks: Sequence[ShardCheck],
    num_workers: int,
    on_progress: Callable[[int, int], None],
) -> EmbedReport:
    """Make the shards that are not there yet and the rows that are to be made again, in order."""
    started = time.perf_counter()
    work = _plan_work(folder, checks, embedder.batch_size)
    again = {
        item for todo in work if todo.check is not None for turn in todo.turns for item in turn
    }
    report = EmbedReport(
        num_items=len(folder),
        num_done=sum(check.num_rows for check in checks) - len(again),
        num_failed=sum(len(check.failed - again) for check in checks),
        num_changed=sum(len(check.changed) for check in checks),
        num_retried=sum(len(check.retried) for check in checks),
        backend=embedder.backend_name,
        num_workers=num_workers,
    )
    failures = _first_failures(folder, checks, again)
    on_progress(report.num_done, report.num_failed)
    workers = Workers(source, embedder, num_workers)
    try:
        made = workers.run([turn for todo in work for turn in todo.turns])
        for todo in work:
            rows: dict[int, Row] = {}
            for turn in todo.turns:
                new = next(made)
                rows.update(zip(turn, new, strict=True))
                report.note(new)
                for item, row in zip(turn, new, strict=True):
                    if row.error is not None and len(failures) < 2 * SHOWN_FAILURES:
                        failures[item] = (row.key, row.error)
                on_progress(report.num_done, report.num_failed)
            _write(folder, todo, rows)
            report.num_embedded_now += len(rows) if todo.check is None else len(todo.check.redo)
    finally:
        workers.stop()
    report.failures = [failures[item] for item in sorted(failures)[:SHOWN_FAILURES]]
    report.seconds = time.perf_counter() - started
    return report


def _first_failures(
    folder: Embeddings, checks: Sequence[ShardCheck], again: set[int]
) -> dict[int, tuple[str, str]]:
    """Key and why of the first rows without an embedding, by item, of those that are not made
    again."""
    found: dict[int, tuple[str, str]] = {}
    for check in checks:
        if (failed := sorted(check.failed - again)) and len(found) < SHOWN_FAILURES:
            table, start = (
                folder.shard_table(check.shard, ["key", "error"]),
                folder.shard_range(check.shard).start,
            )
            for item in failed[: SHOWN_FAILURES - len(found)]:
                found[item] = (
                    table["key"][item - start].as_py(),
                    table["error"][item - start].as_py(),
                )
    return found


def _write(folder: Embeddings, todo: _ShardWork, rows: dict[int, Row]) -> None:
    """Write a shard and its stamps, in the order that leaves no stamp of an image that the shard
    does not hold."""
    if todo.check is None:
        ordered = [rows[item] for item in folder.shard_range(todo.shard)]
        # A damaged shard goes first: after a stop here there must be none, or the new stamps would
        # be taken for its own.
        folder.shard_path(todo.shard).unlink(missing_ok=True)
        folder.write_stamps(todo.shard, [row.stamp for row in ordered])
        folder.write_shard(todo.shard, ordered)
        return
    items = folder.shard_range(todo.shard)
    before = zip(items, folder.read_rows(todo.shard), todo.check.stamps, strict=True)
    merged = [
        (
            dataclasses.replace(rows[item], key=old.key)
            if item in rows
            else dataclasses.replace(old, stamp=stamp)
        )
        for item, old, stamp in before
    ]
    folder.write_shard(todo.shard, merged)
    folder.write_stamps(todo.shard, [row.stamp for row in merged])


def workers_for(embedder: Embedder) -> int:
    """Threads that this machine has processors for, or fewer if its memory would not hold what so
    many take.

    A thread is taken to decode a photograph of 24 million pixels whole, which most are not: JPEGs
    are decoded at a fraction of their size. Larger images wait for each other (`MemoryBudget`),
    so the number of threads is never wrong, only slow.
    """
    manifest = embedder.manifest
    tokens = manifest.geometry.height * manifest.geometry.width // manifest.patch**2 + 1
    floats = (
        embedder.batch_size * tokens * (LIVE_TENSORS * manifest.width + ATTENTION_HEADS * tokens)
    )
    return workers_that_fit(
        usable_cpus(), worker_bytes=TYPICAL_PIXELS * PLAIN + 4 * floats, reserved=RESERVED_BYTES
    )


def memory_for_images(
    limits: ImageLimits, *, side_by_side: int
) -> Callable[[], AbstractContextManager[None]]:
    """What to decode each image within, so that together they do not take more memory than there
    is.

    On most machines as many of the largest as may be side by side fit in memory, and then nobody
    waits for anybody.
    """
    spare = spare_memory() - RESERVED_BYTES
    return (
        MemoryBudget(spare).for_one_image
        if side_by_side * limits.max_pixels * DEEP > spare
        else nullcontext
    )


class Workers:
    """Threads that embed, and the turns that they are given ahead of what has been taken from them.

    Daemon threads rather than an executor's: an interpreter waits for those at its end, however
    long one decodes.
    """

    def __init__(self, source: Source, embedder: Embedder, count: int) -> None:
        self.source, self.embedder, self.count = source, embedder, count
        self._cancel = Cancel()
        self._within_memory = memory_for_images(embedder.limits, side_by_side=count)
        self._waiting: queue.SimpleQueue[tuple[range, Future[list[Row]]] | None] = (
            queue.SimpleQueue()
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"featkit-embed-{n}", daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, turns: Sequence[range]) -> Iterator[list[Row]]:
        """Rows of the turns, in order. No more than a few turns a worker are held at once."""
        size = self.embedder.batch_size
        ahead: deque[Future[list[Row]]] = deque()
        most = max(4 * self.count, ROWS_AHEAD // size)
        for turn in turns:
            future: Future[list[Row]] = Future()
            self._waiting.put((turn, future))
            ahead.append(future)
            if len(ahead) > most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def stop(self) -> None:
        """End the workers, in the middle of what they do if need be.

        Those that are in a native call that never returns are left behind, and so is whoever asks
        that call to end.
        """
        canceller = threading.Thread(target=self._cancel.set, name="featkit-cancel", daemon=True)
        canceller.start()
        for _ in self._threads:
            self._waiting.put(None)
        deadline = time.monotonic() + STOP_WAIT_S
        for thread in (canceller, *self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (task := self._waiting.get()) is not None:
            numbers, future = task
            try:
                future.set_result(self._turn(numbers))
            except Cancelled:
                return
            except BaseException as error:
                future.set_exception(error)

    def _turn(self, numbers: range) -> list[Row]:
        """Decode and embed a few items; one that cannot be read becomes a row that says why."""
        rows: list[Row] = []
        images: list[np.ndarray] = []
        for number in numbers:
            if self._cancel.is_set:
                raise Cancelled
            row, image = self._read(number)
            rows.append(row)
            if image is not None:
                images.append(image)
        if not images:
            return rows
        vectors = iter(self.embedder.infer(np.stack(images), cancel=self._cancel))
        return [
            row if row.error is not None else dataclasses.replace(row, embedding=next(vectors))
            for row in rows
        ]

    def _read(self, number: int) -> tuple[Row, np.ndarray | None]:
        """The row of an item without its embedding, and its image at the model's size."""
        with self._within_memory():
            return self._read_now(number)

    def _read_now(self, number: int) -> tuple[Row, np.ndarray | None]:
        key = self.source.key(number)
        row = Row(key=key)
        try:
            # before its bytes are read
            row = dataclasses.replace(row, stamp=stamp_of(self.source.file(number)))
            row = dataclasses.replace(row, metadata=metadata_of(self.source, number))
            data = self.source.read(number)
            row = dataclasses.replace(row, stamp=row.stamp._replace(digest=digest_of(data)))
            decoded = self.embedder.decode(data, name=key)
        except InputError as error:
            return dataclasses.replace(row, error=as_text(str(error))), None
        row = dataclasses.replace(
            row,
            height=decoded.height,
            width=decoded.width,
            thumbnail=thumbnail_jpeg(decoded.pixels),
        )
        return row, self.embedder.geometry.apply(decoded.pixels)


def _metadata_columns(source: Source) -> dict[str, str]:
    """Name and type of every column that the source's metadata needs, so that all shards have the
    same.

    Asks for the metadata of every item, once, when a folder is begun: no later item may bring a
    column that earlier shards lack. An item whose metadata cannot be read will be a row with an
    error.
    """
    kinds: dict[str, str] = {}
    for number in range(len(source)):
        try:
            values = metadata_of(source, number)
        except InputError:
            continue
        for name, value in values.items():
            column = column_name(name)
            kinds[column] = common_kind(kinds.get(column), value)
    return dict(sorted(kinds.items()))


def _same_place(one: str, other: str) -> bool:
    """Whether two names of a source mean the same: `photos`, `./photos/` and its absolute path do."""
    return one == other or Path(one).absolute().resolve() == Path(other).absolute().resolve()
