"""The batch job: read → decode → infer → write, with bounded memory, in order, and resumable after
any stop.

Batches are cut by position in the shard, and a shard is written whole or not at all. A restart
therefore repeats the same batches and writes the same bytes, with any number of workers, even if a
vector depends on its batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featkit.embedder import Embedder
from featkit.embeddings import ShardRow
from featkit.embeddings.changes import ShardCheck, check_shards
from featkit.embeddings.remaining import RemainingWork
from featkit.embeddings.resuming import begin_or_continue
from featkit.errors import InputError
from featkit.sources import Source, subset
from featkit.workers import Workers, workers_for


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How to embed a source.

    shard_size: items per shard. workers: threads that decode and infer; by default one per
    processor, or fewer if memory is limited (`workers_for`). retry: embed again all items that
    failed. rehash: compare the bytes of all files, to find files with new bytes but the same size
    and modification time.
    """

    shard_size: int = 1024
    workers: int | None = None
    retry: bool = False
    rehash: bool = False

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise InputError(f"The shard size is {self.shard_size}; use 1 or more.")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"The number of threads is {self.workers}; use 1 or more.")


@dataclass(kw_only=True)
class EmbedReport:
    """The result of one run. Counts are of the whole folder, except for `num_embedded_now`; it and
    `seconds` are of this run."""

    num_items: int
    num_done: int = 0
    num_failed: int = 0
    num_embedded_now: int = 0
    num_changed: int = 0  # of those, items whose file has changed since an earlier run
    num_retried: int = 0  # of those, items that had failed and were tried again
    backend: str = ""  # what ran, in words
    num_workers: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)  # key and error of the first few

    def add(self, rows: Sequence[ShardRow]) -> None:
        """Count new rows."""
        self.num_done += len(rows)
        self.num_failed += sum(row.error is not None for row in rows)


def embed_source(
    source: Source,
    embedder: Embedder,
    out: Path,
    options: EmbedOptions = EmbedOptions(),
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
    before: Callable[[Source, Embedder], None] = lambda _source, _embedder: None,
) -> EmbedReport:
    """Embed every item of `source` into the embeddings folder `out`, which is begun or continued.

    Items of finished shards are embedded again if their file has another size or modification time,
    or could not be read before.

    embedder: the workers call one session of one thread in parallel; it is opened here unless the
    embedder was made with threads=1. An existing folder is continued with the engine and precision
    that it was begun with, if the embedder leaves them open. on_progress: called with the number of
    items done and failed so far. before: called with the images that are about to be embedded, if
    there are any, and the embedder; what it raises ends the run.

    InputError if `out` was begun with another source, model, run or shard size. EnvironmentProblem
    if it cannot be written or another process is writing it. Interrupted on Ctrl-C, with all
    finished shards kept.
    """
    with begin_or_continue(source, embedder, out, shard_size=options.shard_size) as begun:
        folder, embedder = begun
        num_workers = options.workers or workers_for(embedder)
        checked = EmbedReport(num_items=len(source))

        def on_checked(check: ShardCheck) -> None:
            checked.num_done += check.num_rows
            checked.num_failed += len(check.failed)
            if options.rehash:  # otherwise checking is as fast as listing the files
                on_progress(checked.num_done, checked.num_failed)

        checks = check_shards(
            source,
            folder,
            retry=options.retry,
            rehash=options.rehash,
            num_workers=num_workers,
            on_checked=on_checked,
        )
        work = RemainingWork(folder, checks, batch_size=embedder.batch_size)
        embedder = embedder.with_threads(1)
        remaining = [item for turn in work.turns for item in turn]
        if remaining:
            before(subset(source, remaining), embedder)
        return _embed_remaining(source, embedder, work, num_workers, on_progress)


def _embed_remaining(
    source: Source,
    embedder: Embedder,
    work: RemainingWork,
    num_workers: int,
    on_progress: Callable[[int, int], None],
) -> EmbedReport:
    """Write the missing shards, and the rows to embed again, in order."""
    started = time.perf_counter()
    report = EmbedReport(
        num_items=work.num_items,
        num_done=work.num_kept,
        num_failed=work.num_kept_failed,
        num_changed=work.num_changed,
        num_retried=work.num_retried,
        backend=embedder.backend_name,
        num_workers=num_workers,
    )
    on_progress(report.num_done, report.num_failed)
    workers = Workers(source, embedder, num_workers)
    try:
        embedded = workers.run(work.turns)
        for shard in work.shards:
            rows: dict[int, ShardRow] = {}
            for turn in shard.turns:
                new = next(embedded)
                report.add(new)
                for item, row in zip(turn, new, strict=True):
                    rows[item] = row
                    work.failures.add(item, row)
                on_progress(report.num_done, report.num_failed)
            shard.write(rows)
            report.num_embedded_now += shard.num_wanted
    finally:
        workers.stop()
    report.failures = work.failures.shown()
    report.seconds = time.perf_counter() - started
    return report
