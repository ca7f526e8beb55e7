"""`featkit compact`: make the searches of a large index fast."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featkit.cli.console import print_json, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.cli.promising import Memory, Recall, in_words, promise_from, shown
from featkit.extras import need_extra


def compact(
    index: Path,
    /,
    *,
    memory: Memory = None,
    recall: Recall = None,
    allow_low_recall: Annotated[bool, Parameter(negative="")] = False,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Build short codes of INDEX, so that searches no longer read every vector.

    Exact search is fast enough below 50,000 images. The codes take about a fifth of the vectors'
    bytes, or less if --memory says so. The index can be searched and written meanwhile; images that
    are added later are searched exactly until the next `featkit compact`. If the command is
    stopped, run it again to continue.

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
    """
    need_extra("cpu", "faiss")
    from featkit.index import Index
    from featkit.index.approximate.building import compact as build
    from featkit.index.approximate.codes import FINE_GRAPH
    from featkit.index.approximate.planning import Promise
    from featkit.index.approximate.upkeep import give_promise, promise_of

    given = promise_from(memory, recall)
    with Index.open(index) as opened, shown(opened, quiet=quiet or json_) as show:
        promise = given or promise_of(opened) or Promise()
        plan = promise.plan(len(opened), opened.width)
        generation = build(
            opened,
            kind=plan.kind or FINE_GRAPH,
            target=promise.recall,
            allow_low_recall=allow_low_recall,
            on_progress=show.on_progress,
            on_step=show.on_step,
        )
        if given is not None:
            give_promise(opened, given)
    if json_:
        print_json(asdict(generation))
    else:
        stdout().print(in_words(generation, str(index)))
