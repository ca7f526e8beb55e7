"""The batches of a loader, whose workers may be killed: by the system, by a crash in a library, by
somebody."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from featkit.errors import EnvironmentProblem, InputError

T = TypeVar("T")
DEATH_WAIT_S = 2.0  # from an error that a dying worker causes until its process has an exit code
INPUT_ERROR = "featkit.errors.InputError: "
ADVICE = {
    signal.SIGKILL: (
        "most often by the system, when memory runs out; lower --workers or run.cache_bytes"
    ),
    signal.SIGBUS: (
        "most often because shared memory is too small; lower --workers, or give /dev/shm more"
        " room, in Docker with --shm-size=8g"
    ),
}
CRASHED = (
    "most often by a crash in a library that decodes images; lower --workers, or update Pillow"
)


class WorkerLost(EnvironmentProblem):
    """A process that reads images has ended. It is raised between two steps, when the state of
    the run is whole."""


def batches_of(loader: Iterable[T]) -> Generator[T]:
    """Yield a loader's batches; closing it ends the loader's workers, whoever still holds what was
    raised meanwhile.

    InputError for one that a worker raises, without the traceback that it carries as text;
    WorkerLost when a worker has died.
    """
    with _deaths_seen_by_the_loader_alone() as begun:
        batches = begun(loader)
        workers = batches._workers if isinstance(batches, _MultiProcessingDataLoaderIter) else []
        try:
            yield from batches
        except InputError as error:
            raise InputError(str(error).rpartition(INPUT_ERROR)[2].removesuffix("\\n")) from None
        except Exception as error:
            is_certain = isinstance(
                error, ConnectionError | EOFError
            ) or "exited unexpectedly" in str(error)
            sentence = _death_among(workers, is_certain=is_certain) if workers else None
            if sentence is None:
                raise
            raise WorkerLost(sentence) from error
        finally:
            # By hand: what was raised in the iterator holds it, and its workers would stay for as
            # long.
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()


@contextlib.contextmanager
def _deaths_seen_by_the_loader_alone() -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """Yield `iter` of a loader, which then notices a dead worker when it waits for a batch, not in
    the middle of a step.

    torch raises from a handler of SIGCHLD, wherever the main thread is: weights half updated could
    not be checkpointed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield iter
        return
    before = signal.getsignal(signal.SIGCHLD)

    def begin(loader: Iterable[T]) -> Iterator[T]:
        batches = iter(loader)  # torch sets its handler here, for once and all
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    try:
        yield begin
    finally:
        signal.signal(signal.SIGCHLD, before)


def _death_among(workers: Sequence[object], *, is_certain: bool) -> str | None:
    """What to say of the first worker that has died; None when all live on. One that ended well has
    died if that is certain."""
    deadline = time.monotonic() + DEATH_WAIT_S
    while True:
        for worker in workers:
            pid, code = getattr(worker, "pid", None), getattr(worker, "exitcode", None)
            if code is not None and code < 0:
                number = signal.Signals(-code)
                return (
                    f"A data worker (process {pid}) was killed by {number.name},"
                    f" {ADVICE.get(number, CRASHED)}."
                )
            if code or (code == 0 and is_certain):
                return (
                    f"A data worker (process {pid}) ended with exit code {code}; lower --workers."
                )
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)
