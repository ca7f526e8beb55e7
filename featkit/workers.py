"""Threads that decode and embed batches, as many as processors and memory allow.

Each worker takes the next few items, decodes them, and runs the model on them itself, in a session
call that uses one thread. So no core ever waits for another stage, whatever decoding and inference
cost. Measured on two cores with a ViT-S/14 at 224, two single-threaded calls in parallel are also
10 % faster than one session with two threads: they share no barriers, and each stays in its core's
cache.
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

import numpy as np

from featkit.backends import Cancel, Cancelled
from featkit.embedder import Embedder
from featkit.embeddings import ShardRow
from featkit.embeddings.columns import Metadata, as_text, metadata_of
from featkit.errors import InputError
from featkit.images import ImageLimits, thumbnail_jpeg
from featkit.images.room import DEEP, PLAIN, MemoryBudget
from featkit.resources import spare_memory, usable_cpus, workers_that_fit
from featkit.sources import Source
from featkit.stamps import NO_STAMP, digest_of, stamp_of

# Rows finished or in progress beyond the last one taken: work for the workers while a shard is
# written, at 10 kB each.
ROWS_AHEAD = 256
# How `workers_for` estimates memory. The job itself grew by 80 MB beyond the open model, for rows,
# shards and pyarrow. The number of tensors that live at the same time is a generous guess.
RESERVED_BYTES = 96 * 2**20
TYPICAL_PIXELS = 24_000_000
LIVE_TENSORS, ATTENTION_HEADS = 16, 32
# How long to wait for workers after Ctrl-C. Inference ends at the next operator; decoding of a
# giant image may take longer.
STOP_WAIT_S = 0.7


def workers_for(embedder: Embedder) -> int:
    """Return one thread per processor, or fewer if memory would not hold what they need.

    Each thread is assumed to decode a photo of 24 million pixels at full size. Most need less,
    since JPEGs are decoded at a fraction of their size. Larger images wait for each other
    (`MemoryBudget`), so too many threads are slow but never fail.
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
    """Return a context manager to decode each image in, so that together they do not need more
    memory than there is.

    On most machines `side_by_side` images of the largest size fit into memory, and none ever waits.
    """
    spare = spare_memory() - RESERVED_BYTES
    return (
        MemoryBudget(spare).for_one_image
        if side_by_side * limits.max_pixels * DEEP > spare
        else nullcontext
    )


class Workers:
    """Threads that embed batches, with a bounded number of finished batches that nobody has taken
    yet.

    digest: of an item's bytes, for its stamp. describe: metadata from its bytes, besides the
    source's own, which counts if both have a field.

    Daemon threads rather than an executor's: the interpreter waits for an executor's at exit,
    however long one of them decodes.
    """

    def __init__(
        self,
        source: Source,
        embedder: Embedder,
        count: int,
        *,
        digest: Callable[[bytes], bytes] = digest_of,
        describe: Callable[[bytes], Metadata] = lambda _data: {},
    ) -> None:
        self.source, self.embedder, self.count = source, embedder, count
        self._digest, self._describe = digest, describe
        self._cancel = Cancel()
        self._within_memory = memory_for_images(embedder.limits, side_by_side=count)
        self._waiting: queue.SimpleQueue[tuple[range, Future[list[ShardRow]]] | None] = (
            queue.SimpleQueue()
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"featkit-embed-{n}", daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, turns: Sequence[range]) -> Iterator[list[ShardRow]]:
        """Yield the rows of each turn (the items of a batch), in order. At most a few turns per
        worker are held at a time."""
        ahead: deque[Future[list[ShardRow]]] = deque()
        max_ahead = max(4 * self.count, ROWS_AHEAD // self.embedder.batch_size)
        for turn in turns:
            future: Future[list[ShardRow]] = Future()
            self._waiting.put((turn, future))
            ahead.append(future)
            if len(ahead) > max_ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def stop(self) -> None:
        """End the workers, in the middle of a batch if need be.

        A worker in a native call that never returns is left behind, and so is the thread that asks
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
            turn, future = task
            try:
                future.set_result(self._embed(turn))
            except Cancelled:
                return
            except BaseException as error:
                future.set_exception(error)

    def _embed(self, items: range) -> list[ShardRow]:
        """Decode and embed a few items; an item that cannot be read becomes a row with an error."""
        rows: list[ShardRow] = []
        images: list[np.ndarray] = []
        for item in items:
            if self._cancel.is_set:
                raise Cancelled
            with self._within_memory():
                row, image = self._read(item)
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

    def _read(self, item: int) -> tuple[ShardRow, np.ndarray | None]:
        """Return an item's row without its embedding, and its image at the model's size."""
        key, stamp = self.source.key(item), NO_STAMP
        metadata: Metadata = {}
        try:
            # The stamp is taken before the bytes are read: if the file changes in between, the next
            # run sees an older stamp and reads it again.
            stamp = stamp_of(self.source.file(item))
            metadata = metadata_of(self.source, item)
            data = self.source.read(item)
            stamp = stamp._replace(digest=self._digest(data))
            decoded = self.embedder.decode(data, name=key)
            metadata = self._describe(data) | metadata
        except InputError as error:
            message = as_text(str(error))
            return ShardRow(key=key, stamp=stamp, metadata=metadata, error=message), None
        row = ShardRow(
            key=key,
            width=decoded.width,
            height=decoded.height,
            thumbnail=thumbnail_jpeg(decoded.pixels),
            stamp=stamp,
            metadata=metadata,
        )
        return row, self.embedder.geometry.apply(decoded.pixels)
