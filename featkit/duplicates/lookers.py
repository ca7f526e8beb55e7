"""Processes that look at pairs of images, one for each processor.

    python -m featkit.duplicates.lookers

A process reads tasks from its standard input and writes their results to its standard output, until
the input ends. Threads would not do: a look is many short calls into numpy and Pillow, and two
threads would take turns at Python's lock, so that they are slower than one.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeAlias

from featkit.duplicates.look import agreements
from featkit.duplicates.views import Look
from featkit.errors import EnvironmentProblem, InputError
from featkit.resources import usable_cpus, workers_that_fit

LOOKS_KEPT = 2048  # at 22 kB each
LOOKER_BYTES = 400 * 2**20  # with what the last looks have computed, and its libraries
PAIRS_PER_TASK, PAIRS_PER_RUN = 64, 2048
FEW_PAIRS = 500  # for each process; fewer take less time than it takes to start

# Which of two indexes, and the id of an item.
Key: TypeAlias = tuple[int, int]
ThumbnailsOf: TypeAlias = Callable[[Sequence[Key]], Mapping[Key, bytes | None]]


class PairToLookAt(NamedTuple):
    """Two images, and which agreement is enough for them."""

    first: Key
    second: Key
    enough: float


class Task(NamedTuple):
    """Pairs to look at. thumbnails: those that the looker does not have. forgotten: those that it
    no longer needs.
    """

    pairs: Sequence[PairToLookAt]
    thumbnails: Mapping[Key, bytes | None]
    forgotten: Sequence[Key]


class Looker(Protocol):
    """Looks at pairs, here or in another process."""

    kept: OrderedDict[Key, None]  # the images that it has, the last used one at the end

    def look(self, task: Task) -> list[float | None]:
        """Return the agreement of each pair, None if one has no thumbnail that can be decoded."""
        ...

    def close(self) -> None:
        """End it, even in the middle of a task."""
        ...


class OwnLooker:
    """Looks at pairs in this process."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Key, None] = OrderedDict()
        self._looks: dict[Key, Look | None] = {}

    def look(self, task: Task) -> list[float | None]:
        """Return the agreement of each pair, None if one has no thumbnail that can be decoded."""
        for key, jpeg in task.thumbnails.items():
            self._looks[key] = _look_of(jpeg)
        views = [(self._looks[pair.first], self._looks[pair.second]) for pair in task.pairs]
        agreed = iter(
            agreements(
                [
                    (first, second, pair.enough)
                    for pair, (first, second) in zip(task.pairs, views, strict=True)
                    if first is not None and second is not None
                ]
            )
        )
        result = [None if None in each else next(agreed) for each in views]
        for key in task.forgotten:
            self._looks.pop(key, None)
        return result

    def close(self) -> None:
        """Do nothing."""


class OtherLooker:
    """Looks at pairs in a process of its own. OSError if that cannot be started."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Key, None] = OrderedDict()
        package = str(Path(__file__).parents[2])
        search_path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            # -P: no module of the working directory is taken for one of Python's own
            [sys.executable, "-P", "-m", __name__],
            env={
                **os.environ,
                "PYTHONPATH": search_path,
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the process that waits
        )

    def look(self, task: Task) -> list[float | None]:
        """Return the agreement of each pair, None if one has no thumbnail that can be decoded.

        EnvironmentProblem if the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(task, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            result: list[float | None] = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
            self._process.kill()  # unless it has ended
            code = self._process.wait()
            raise EnvironmentProblem(
                f"A process that compares images ended with the exit code {code}, perhaps because"
                " memory ran out; run the same command again, and it continues."
            ) from error
        return result

    def close(self) -> None:
        """End the process, even in the middle of a task."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # what was not sent
                stream.close()


class Lookers:
    """Lookers: as many as processors and memory allow, or one in this process for few pairs."""

    def __init__(self, num_pairs: int) -> None:
        wanted = min(usable_cpus(), num_pairs // FEW_PAIRS)
        count = workers_that_fit(wanted, worker_bytes=LOOKER_BYTES)
        self._all: list[Looker] = []
        if count > 1:
            with suppress(OSError):  # no more processes: the others do the work
                for _ in range(count):
                    self._all.append(OtherLooker())
        if not self._all:
            self._all = [OwnLooker()]
        self._pool = ThreadPoolExecutor(len(self._all), thread_name_prefix="featkit-look")
        self.pairs_at_once = len(self._all) * PAIRS_PER_RUN

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for looker in self._all:
            looker.close()
        self._pool.shutdown(cancel_futures=True)

    def look(
        self, pairs: Sequence[PairToLookAt], thumbnails_of: ThumbnailsOf
    ) -> list[float | None]:
        """Return the agreement of each pair, None if one has no thumbnail that can be decoded.

        EnvironmentProblem if a process has ended; raises what `thumbnails_of` raises.
        """

        def run(looker: Looker, part: Sequence[PairToLookAt]) -> list[float | None]:
            return [
                agreement
                for start in range(0, len(part), PAIRS_PER_TASK)
                for agreement in looker.look(
                    _task(looker, part[start : start + PAIRS_PER_TASK], thumbnails_of)
                )
            ]

        # Each gets pairs that follow each other, which have images in common.
        size = max(1, -(-len(pairs) // len(self._all)))
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        return [each for part in self._pool.map(run, self._all, parts) for each in part]


def _look_of(jpeg: bytes | None) -> Look | None:
    try:
        return Look.of(jpeg) if jpeg else None
    except InputError:
        return None


def _task(looker: Looker, pairs: Sequence[PairToLookAt], thumbnails_of: ThumbnailsOf) -> Task:
    """Return a task for a looker, with the thumbnails that it does not have."""
    keys = {key: None for pair in pairs for key in (pair.first, pair.second)}
    thumbnails = thumbnails_of([key for key in keys if key not in looker.kept])
    for key in keys:
        looker.kept[key] = None
        looker.kept.move_to_end(key)
    forgotten = [looker.kept.popitem(last=False)[0] for _ in range(len(looker.kept) - LOOKS_KEPT)]
    return Task(pairs, thumbnails, forgotten)


def main() -> None:
    """Do tasks until the input ends."""
    looker = OwnLooker()
    with suppress(EOFError):
        while True:
            task: Task = pickle.load(sys.stdin.buffer)
            pickle.dump(looker.look(task), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
