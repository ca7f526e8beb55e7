"""The cost of embedding a source and searching it on this machine, from a measured sample; in short
for commands that are about to start."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.index.approximate.planning import Promise, SearchPlan, plan_search
from featkit.pipeline import EmbedOptions, EmbedReport, embed_source
from featkit.resources import usable_cpus, usable_memory
from featkit.sources import Source, evenly, subset
from featkit.wording import counted

NUM_SAMPLED = 128
NUM_RUNS = 8  # of neighboring images
CATALOGUE_BYTES = 400  # of an item in catalogue.sqlite: key, metadata, checksum, indexes
# A command that embeds at least MANY images first tries FEW of them.
MANY, FEW = 1000, 32
EXACT = Promise(recall=1.0)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The costs of a source of `num_images`, from `num_sampled` of them, `num_failed` unreadable.

    source_bytes: of all images, about. images_per_s, embed_seconds: measured with `num_workers`
    workers, by the engine `backend`. embeddings_bytes, index_bytes: of the two folders, thumbnails
    included; free_bytes: of the disk at the folder they would go to. search: how the index would
    be searched.
    """

    num_images: int
    num_sampled: int
    num_failed: int
    source_bytes: int
    backend: str
    num_workers: int
    images_per_s: float
    embed_seconds: float
    embeddings_bytes: int
    index_bytes: int
    free_bytes: int
    memory_bytes: int
    search: SearchPlan

    @property
    def fits(self) -> bool:
        """Both folders fit on the disk."""
        return self.embeddings_bytes + self.index_bytes <= self.free_bytes


def forecast(
    source: Source,
    embedder: Embedder,
    *,
    out: Path,
    memory: int | None = None,
    recall: float = 0.95,
    num_sampled: int = NUM_SAMPLED,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> Forecast:
    """Embed a sample of a source, in runs spread evenly over it, and return what all will cost.

    embedder: with one thread, since workers run side by side. out: a folder on the disk that the
    index will be on. memory, recall: see `plan_search`. InputError for an empty source, one of
    which no sampled image can be read, or if nothing fits in this memory.
    """
    if len(source) == 0:
        raise InputError(f"{source.name} has no images.")
    sample = subset(source, runs(len(source), most=num_sampled))
    num_bytes = _bytes_of(sample)
    with tempfile.TemporaryDirectory() as folder:
        embeddings = Path(folder) / "embeddings"
        started = time.perf_counter()
        report = embed_source(sample, embedder, embeddings, EmbedOptions(), on_progress=on_progress)
        seconds = time.perf_counter() - started
        written = sum(file.stat().st_size for file in embeddings.rglob("*.parquet"))
    _refuse_unreadable(report, source)
    share = len(source) / len(sample)
    num_images = round(share * (len(sample) - report.num_failed))
    embeddings_bytes = round(share * written)
    return Forecast(
        num_images=len(source),
        num_sampled=len(sample),
        num_failed=report.num_failed,
        source_bytes=round(share * num_bytes),
        backend=report.backend,
        num_workers=report.num_workers,
        images_per_s=len(sample) / seconds,
        embed_seconds=share * seconds,
        embeddings_bytes=embeddings_bytes,
        index_bytes=embeddings_bytes + num_images * CATALOGUE_BYTES,
        free_bytes=shutil.disk_usage(_existing(out)).free,
        memory_bytes=usable_memory(),
        search=plan_search(
            num_images, embedder.width, memory=memory, recall=recall, processors=usable_cpus()
        ),
    )


def runs(count: int, *, most: int) -> list[int]:
    """Return at most `most` of `range(count)`, in runs spread evenly.

    Single images far from each other would take longer than others: each is in another group of
    rows of a Parquet file, of which all have to be read.
    """
    if count <= most:
        return list(range(count))
    length = max(1, most // NUM_RUNS)
    starts = evenly(count - length + 1, most=most // length)
    return sorted({start + i for start in starts for i in range(length)})


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The costs of work that is about to start on `num_images`.

    seconds: to embed them, None if none are embedded or too few to be sampled. disk_bytes: that
    they add; without a sample, those of vectors and keys alone. search: of the index afterwards,
    None without one.
    """

    num_images: int
    seconds: float | None
    disk_bytes: int
    free_bytes: int
    search: SearchPlan | None


def outlook(
    out: Path,
    num_images: int,
    width: int,
    *,
    sampled: Forecast | None = None,
    disk_bytes: int | None = None,
    num_after: int = 0,
    promise: Promise | None = None,
) -> Outlook:
    """Return what adding images to a folder will cost. `sampled` has the costs of embedding them.

    disk_bytes: what they add, if that is known. num_after: images of the index afterwards, 0
    without an index. promise: of the index, None for exact search.

    EnvironmentProblem if the disk of `out` has no room, InputError if no search keeps the promise.
    """
    if disk_bytes is None:
        disk_bytes = num_images * (4 * width + CATALOGUE_BYTES)
    free_bytes = shutil.disk_usage(_existing(out)).free
    if disk_bytes > free_bytes:
        raise EnvironmentProblem(
            f"{out} needs about {decimal(disk_bytes)} more for {counted(num_images, 'image')}, and"
            f" its disk has {decimal(free_bytes)} left; free some space, or choose another disk."
        )
    search = None
    if num_after:
        search = (promise or EXACT).plan(num_after, width)
    return Outlook(
        num_images=num_images,
        seconds=None if sampled is None else sampled.embed_seconds,
        disk_bytes=disk_bytes,
        free_bytes=free_bytes,
        search=search,
    )


def sample_if_long(source: Source, open_embedder: Callable[[], Embedder]) -> Forecast | None:
    """Return the costs of embedding a source from a few of its images, or None if it has so few
    that the sample would delay it, or if none of the few can be read.
    """
    if len(source) < MANY:
        return None
    try:
        return forecast(source, open_embedder(), out=Path(), num_sampled=FEW)
    except InputError:  # the work itself reports what cannot be read
        return None


def _bytes_of(source: Source) -> int:
    """Return the bytes of a source's readable images."""
    total = 0
    for number in range(len(source)):
        with suppress(FeatkitError, OSError):  # embedding counts and reports them
            total += len(source.read(number))
    return total


def _refuse_unreadable(report: EmbedReport, source: Source) -> None:
    if report.num_failed == report.num_items:
        key, reason = report.failures[0]
        raise InputError(
            f"None of {report.num_items:,} sampled images of {source.name} can be read; the first"
            f" is {key}: {reason}"
        )


def _existing(path: Path) -> Path:
    """Return the nearest folder that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path
