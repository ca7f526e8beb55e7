"""`featkit compact`: make the searches of a large index fast."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_json, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.cli.promising import (
    BuildOn,
    Memory,
    Recall,
    check_build_on,
    in_words,
    promise_from,
    report_failed_build,
    shown,
)
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.index import Index
    from featkit.index.reclaiming import DeadRows


def compact(
    index: Path,
    /,
    *,
    memory: Memory = None,
    recall: Recall = None,
    allow_low_recall: Annotated[bool, Parameter(negative="")] = False,
    reclaim: Annotated[bool, Parameter(negative="")] = False,
    build_on: BuildOn = "auto",
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Build short codes of INDEX, so that searches no longer read every vector.

    Exact search is fast enough below 50,000 images. The codes take about a fifth of the vectors'
    bytes, or less if --memory says so. The index can be searched and written meanwhile; images that
    are added later are searched exactly until the next `featkit compact`. If the command is
    stopped, run it again to continue.

    The vectors of removed images are dropped from the disk if they are more than a fifth, or with
    --reclaim. From then on, earlier versions of featkit refuse the index.

    With --memory or --recall, `featkit sync` and `featkit index` build the codes again when the
    index has changed by a fifth.

    Example: featkit compact photos.index --recall 0.95

    Example: featkit compact photos.index --memory 500MB

    Parameters
    ----------
    index
        A folder from `featkit index` or `featkit sync`.
    allow_low_recall
        Use the codes even if they do not reach the recall.
    reclaim
        Only reclaim the space of removed images, however few they are; build nothing.
    """
    need_extra("cpu", "faiss")
    from featkit.index import Index
    from featkit.index.approximate.building import compact as build
    from featkit.index.approximate.codes import FINE_GRAPH
    from featkit.index.approximate.planning import Promise
    from featkit.index.approximate.upkeep import give_promise, promise_of

    check_build_on(build_on)
    given = promise_from(memory, recall)
    if reclaim and (given is not None or allow_low_recall or build_on != "auto"):
        raise InputError("--reclaim builds nothing; leave out --memory, --recall and the like.")
    with Index.open(index) as opened:
        report_failed_build(index)
        dead = _reclaimed(opened, is_forced=reclaim, quiet=quiet or json_)
    if reclaim:
        if json_:
            print_json(_in_json(dead))
        elif dead.num_dead == 0:
            stdout().print(f"{index} has no removed images.")
        return
    with Index.open(index) as opened, shown(opened, quiet=quiet or json_) as show:
        promise = given or promise_of(opened) or Promise()
        plan = promise.plan(len(opened), opened.width)
        generation = build(
            opened,
            kind=plan.kind or FINE_GRAPH,
            target=promise.recall,
            allow_low_recall=allow_low_recall,
            build_on=build_on,
            on_progress=show.on_progress,
            on_step=show.on_step,
        )
        if given is not None:
            give_promise(opened, given)
    if json_:
        print_json(asdict(generation) | _in_json(dead))
    else:
        stdout().print(in_words(generation, str(index)))


def _reclaimed(index: Index, *, is_forced: bool, quiet: bool) -> DeadRows:
    """Reclaim dead rows if they are many, or if forced; return those that are gone."""
    from featkit.index.reclaiming import DeadRows, reclaim

    dead = DeadRows.of(index)
    if not (dead.num_dead and (is_forced or dead.are_many)):
        return dataclasses.replace(dead, num_dead=0)
    total = dead.num_rows - dead.num_dead
    with ProgressReporter("reclaiming", total=total, unit="vectors", quiet=quiet) as progress:
        dead = reclaim(index, on_progress=lambda done, _total: progress(done, 0))
    if not quiet:
        stdout().print(
            f"Dropped the vectors of {counted(dead.num_dead, 'removed image')}"
            f" ({dead.num_bytes / 1e6:,.1f} MB) from {index.path}."
        )
    return dead


def _in_json(dead: DeadRows) -> dict[str, int]:
    return {"reclaimed_vectors": dead.num_dead, "reclaimed_bytes": dead.num_bytes}
