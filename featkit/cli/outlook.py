"""The plan that commands show on stderr before long work, and their refusal of what cannot fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from featkit.wording import counted, duration

if TYPE_CHECKING:
    from featkit.embedder import Embedder
    from featkit.forecast import Outlook
    from featkit.index import Index
    from featkit.index.approximate.planning import Promise, SearchPlan
    from featkit.sources import Source


def before_embed(out: Path, source: Source, embedder: Embedder, *, quiet: bool) -> None:
    """Show what embedding images into a folder will cost. Raises what `outlook` raises."""
    from featkit.forecast import outlook, sample_if_long

    sampled = sample_if_long(source, lambda: embedder)
    ahead = outlook(
        out,
        len(source),
        embedder.width,
        sampled=sampled,
        disk_bytes=None if sampled is None else sampled.embeddings_bytes,
    )
    if sampled is not None and not quiet:
        _show(ahead, "to embed", None)


def before_sync(
    path: Path,
    model: Path | None,
    promise: Promise | None,
    source: Source,
    index: Index | None,
    num_after: int,
    *,
    quiet: bool,
) -> None:
    """Show what embedding images into an index will cost, and how it is searched afterwards. Raises
    what `outlook` raises.
    """
    from featkit.embedder import Embedder
    from featkit.forecast import outlook, sample_if_long
    from featkit.index.approximate.upkeep import promise_of
    from featkit.modelfile import read_manifest
    from featkit.models import default_model_path

    if index is not None:
        promise = promise or promise_of(index)
        width = index.width
    else:
        model = model or default_model_path()
        width = read_manifest(model).width
    sampled = sample_if_long(
        source,
        lambda: Embedder(model, threads=1) if index is None else index.open_embedder(threads=1),
    )
    ahead = outlook(
        path,
        len(source),
        width,
        sampled=sampled,
        disk_bytes=None if sampled is None else sampled.index_bytes,
        num_after=num_after,
        promise=promise,
    )
    if sampled is not None and not quiet:
        _show(ahead, "to embed", promise)


def before_index(
    path: Path,
    num_rows: int,
    num_bytes: int,
    width: int,
    index: Index | None,
    promise: Promise | None,
    *,
    quiet: bool,
) -> None:
    """Show what adding rows to an index will cost at least, and how it is searched afterwards, if
    it surely grows. num_bytes: of the rows in the files they come from. Raises what `outlook`
    raises.
    """
    from featkit.forecast import CATALOGUE_BYTES, MANY, outlook
    from featkit.index.approximate.upkeep import promise_of

    num_added = num_rows - (0 if index is None else len(index))  # others may be there already
    if num_added <= 0:
        return
    if index is not None:
        promise = promise or promise_of(index)
    ahead = outlook(
        path,
        num_added,
        width,
        disk_bytes=num_added * (max(num_bytes // num_rows, 4 * width) + CATALOGUE_BYTES),
        num_after=num_rows,
        promise=promise,
    )
    if num_added >= MANY and not quiet:
        _show(ahead, "to add", promise)


def _show(ahead: Outlook, what: str, promise: Promise | None) -> None:
    minutes = "" if ahead.seconds is None else f"about {duration(ahead.seconds)}, "
    print(
        f"{counted(ahead.num_images, 'image')} {what}: {minutes}about"
        f" {decimal(ahead.disk_bytes)} of disk ({decimal(ahead.free_bytes)} free).",
        file=sys.stderr,
    )
    if ahead.search is not None:
        print(_search(ahead.search, promise), file=sys.stderr, flush=True)


def _search(plan: SearchPlan, promise: Promise | None) -> str:
    """Return how the index will be searched, and why."""
    milliseconds = "less than 1 ms" if plan.search_ms < 1 else f"about {plan.search_ms:,.0f} ms"
    if plan.kind is not None:
        return (
            f"Search among {plan.num_items:,}: {plan.kind.about}, {milliseconds} a query and"
            f" {decimal(plan.num_bytes)} of memory, built in about {duration(plan.build_seconds)}."
            f" {plan.reasons[0]}"
        )
    from featkit.index.approximate.planning import EXACT_BELOW

    wish = " --recall 0.95 makes it faster." if promise is None else f" {plan.reasons[0]}"
    return (
        f"Search among {plan.num_items:,}: exact, {milliseconds} a query."
        f"{wish if plan.num_items >= EXACT_BELOW else ''}"
    )
