"""`featkit compact`: make the searches of a large index fast."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_json, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.extras import need_extra
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.index.approximate.generation import Generation


def compact(
    index: Path,
    /,
    *,
    recall: float = 0.95,
    allow_low_recall: Annotated[bool, Parameter(negative="")] = False,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Build a graph over INDEX, so that searches no longer read every vector.

    Exact search is fast enough below 50,000 images. The graph takes about a fifth of the vectors'
    bytes. The index can be searched and written meanwhile; images that are added later are searched
    exactly until the next `featkit compact`. If the command is stopped, run it again to continue.

    Example: featkit compact photos.index --recall 0.95

    Parameters
    ----------
    index
        A folder from `featkit index` or `featkit sync`.
    recall
        The share of the ten nearest images that searches must find, measured on images that are
        left out of the graph. Searches are tuned to it, and the index stays as it is if it is not
        reached.
    allow_low_recall
        Use the graph even if it does not reach the recall.
    """
    need_extra("cpu", "faiss")
    from featkit.index import Index
    from featkit.index.approximate.building import compact as build

    silent = quiet or json_

    def on_step(step: str) -> None:
        if not silent:
            stdout().print(f"{step} ...")

    with (
        Index.open(index) as opened,
        ProgressReporter("adding", total=len(opened), unit="vectors", quiet=silent) as progress,
    ):
        generation = build(
            opened,
            target=recall,
            allow_low_recall=allow_low_recall,
            on_progress=lambda done, _total: progress(done, 0),
            on_step=on_step,
        )
    if json_:
        print_json(asdict(generation))
    else:
        stdout().print(_in_words(generation, index))


def _in_words(generation: Generation, index: Path) -> str:
    measured = generation.measured
    return (
        f"{index} is searched by a graph of {counted(generation.num_items, 'image')}"
        f" ({generation.num_bytes / 1e6:,.1f} MB), built in {generation.seconds:,.0f} s."
        f" recall@10 {measured.recall_at_10:.3f} (at least {measured.low:.3f}), recall@1"
        f" {measured.recall_at_1:.3f}; one search takes {measured.p50_ms:.2f} ms (p99"
        f" {measured.p99_ms:.2f} ms)."
    )
