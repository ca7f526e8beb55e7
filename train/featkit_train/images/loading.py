"""Batches from a loader whose workers may be killed or crash."""

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
DEATH_WAIT_S = 2.0  # wait for a dying process to get its exit code
INPUT_ERROR = "featkit.errors.InputError: "
ADVICE = {  # by name, since Windows has neither signal
    "SIGKILL": (
        "most often by the system because memory ran out; lower --workers or run.cache_bytes"
    ),
    "SIGBUS": (
        "most often because shared memory is too small; lower --workers, or enlarge /dev/shm, in"
        " Docker with --shm-size=8g"
    ),
}
CRASHED = (
    "most often by a crash in a library that decodes images; lower --workers, or update Pillow"
)


class WorkerLost(EnvironmentProblem):
    """A loader's worker process has died. Raised between two steps, when the run's state is
    consistent."""


def batches_of(loader: Iterable[T]) -> Generator[T]:
    """Yield a loader's batches; closing the generator ends the loader's workers.

    InputError if a worker raises one, without the traceback that torch adds to its text. WorkerLost
    if a worker dies.
    """
    with _without_child_signals() as iterate:
        batches = iterate(loader)
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
            # Delete explicitly: a raised exception keeps the iterator and its workers alive.
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()


@contextlib.contextmanager
def _without_child_signals() -> Iterator[Callable[[Iterable[T]], Iterator[T]]]:
    """Yield an `iter` for loaders that notices a dead worker only while it waits for a batch.

    torch raises from its SIGCHLD handler wherever the main thread happens to be. In the middle of
    an optimizer step that would leave weights half updated, and no checkpoint could be written.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "SIGCHLD"):
        yield iter
        return
    before = signal.getsignal(signal.SIGCHLD)

    def iterate(loader: Iterable[T]) -> Iterator[T]:
        batches = iter(loader)  # torch installs its handler here, once
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    try:
        yield iterate
    finally:
        signal.signal(signal.SIGCHLD, before)


def _death_among(workers: Sequence[object], *, is_certain: bool) -> str | None:
    """Describe the first dead worker; None if all are alive.

    is_certain: a worker has died, so one with exit code 0 counts, too.
    """
    deadline = time.monotonic() + DEATH_WAIT_S
    while True:
        for worker in workers:
            pid, code = getattr(worker, "pid", None), getattr(worker, "exitcode", None)
            if code is not None and code < 0:
                killer = signal.Signals(-code)
                return (
                    f"A data worker (process {pid}) was killed by {killer.name},"
                    f" {ADVICE.get(killer.name, CRASHED)}."
                )
            if code or (code == 0 and is_certain):
                return (
                    f"A data worker (process {pid}) ended with exit code {code}; lower --workers."
                )
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)
