"""The memory and recall that an index promises: flags of several commands, and what they do."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, stdout
from featkit.errors import InputError
from featkit.lock import AlreadyLocked
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.index import Index
    from featkit.index.approximate.generation import Generation
    from featkit.index.approximate.planning import Promise, SearchPlan

Memory: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="Memory that each process which searches may keep, such as 2GB. The index then stays"
        " within it as it grows, if its size allows. The default is as much as is useful.",
    ),
]
Recall: TypeAlias = Annotated[
    float | None,
    Parameter(
        help="The share of the ten nearest images that searches must find, measured on images that"
        " are left out; above 50,000 images, the index then builds what makes them fast. 1 is exact"
        " search. The default is 0.95.",
    ),
]
BuildOn: TypeAlias = Annotated[
    Literal["auto", "cpu", "gpu"],
    Parameter(
        help="Where the codes of a large index are built: auto takes an NVIDIA GPU if FAISS can use"
        " one (faiss-gpu-cuvs). The index is the same kind of files and is searched on any machine,"
        " but only a CPU builds the same bytes each time.",
    ),
]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str) -> int:
    """Return the number of bytes of a text such as 2GB, 500 MB or 1.5GiB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise InputError(f"{text} is not a size of memory; write it like 2GB, 500MB or 1.5GiB.")
    units = BINARY_UNITS if match[3] else UNITS
    return int(float(match[1]) * units[match[2].upper()])


def promise_from(memory: str | None, recall: float | None) -> Promise | None:
    """Return the promise that the flags give, if one of them is there."""
    if memory is None and recall is None:
        return None
    from featkit.index.approximate.planning import Promise

    return Promise(
        memory=None if memory is None else parse_bytes(memory),
        recall=0.95 if recall is None else recall,
    )


def check_build_on(build_on: BuildOn) -> None:
    """Check that a GPU which was asked for is there, before hours of other work.

    EnvironmentProblem that says what to install or to check if it is not.
    """
    if build_on == "gpu":
        from featkit.index.approximate.on_gpu import check_gpu

        check_gpu(links=False)


class Shown(NamedTuple):
    """The functions that a build calls to show its progress."""

    on_progress: Callable[[int, int], None]
    on_step: Callable[[str], None]


@contextmanager
def shown(index: Index, *, quiet: bool) -> Iterator[Shown]:
    """Show the progress of building the codes of an index."""

    def on_step(step: str) -> None:
        if not quiet:
            stdout().print(f"{step} ...")

    with ProgressReporter("adding", total=len(index), unit="vectors", quiet=quiet) as progress:
        yield Shown(lambda done, _total: progress(done, 0), on_step)


def keep_promise(
    index: Index, promise: Promise | None, *, build_on: BuildOn = "auto", quiet: bool
) -> None:
    """Give an index a new promise, if there is one, and build what its promise asks for."""
    from featkit.index.approximate import upkeep

    report_failed_build(index.path)
    if promise is not None:
        promise.plan(len(index), index.width)  # InputError if it cannot be kept
        upkeep.give_promise(index, promise)

    def show_plan(plan: SearchPlan) -> None:
        if not quiet:
            stdout().print(plan.in_words())

    try:
        with shown(index, quiet=quiet) as show:
            generation = upkeep.keep_promise(
                index,
                build_on=build_on,
                on_plan=show_plan,
                on_progress=show.on_progress,
                on_step=show.on_step,
            )
    except AlreadyLocked as error:  # that build is as good
        if not quiet:
            stdout().print(str(error).partition(";")[0] + "; searches will use what it builds.")
        return
    if generation is not None and not quiet:
        stdout().print(in_words(generation, str(index.path)))


def report_failed_build(index: Path) -> None:
    """Print why the last build in the background failed, if it did."""
    from featkit.index.approximate.background import Failure

    if (failure := Failure.of(index)) is not None:
        print(
            f"featkit: {index} could not be brought up to date in the background"
            f" ({failure.when}): {failure.error}",
            file=sys.stderr,
        )


def in_words(generation: Generation, index: str) -> str:
    """Return what was built and how it answers."""
    measured = generation.measured
    where = " on a GPU" if generation.built_on == "gpu" else ""
    return (
        f"{index} is searched by {generation.kind.about}, of"
        f" {counted(generation.num_items, 'image')} ({generation.num_bytes / 1e6:,.1f} MB), built"
        f"{where} in {generation.seconds:,.0f} s. recall@10 {measured.recall_at_10:.3f} (at least"
        f" {measured.low:.3f}), recall@1 {measured.recall_at_1:.3f}; one search takes"
        f" {measured.p50_ms:.2f} ms (p99 {measured.p99_ms:.2f} ms)."
    )
