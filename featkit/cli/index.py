"""`featkit index`: embeddings to an index that can be searched."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import ProgressReporter, print_json, stdout
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.embeddings import Embeddings


def index(embeddings: Path, /, *, out: Path, quiet: bool = False, json_: bool = False) -> None:
    """Add the images of EMBEDDINGS to an index: a new one, or one that is there and is of the
    same model.

    An image that the index has already is replaced where it has changed, and kept where its file
    can no longer be read. Stopped at any moment, the same command goes on.

    Example: featkit index emb/ --out photos.index

    Parameters
    ----------
    embeddings
        A folder from `featkit embed`.
    out
        The index folder to make or to add to.
    quiet
        Show no progress.
    json_
        Print the result as JSON.
    """
    need_extra("cpu", "faiss")
    from featkit.backends import Run
    from featkit.embeddings import Embeddings
    from featkit.index import Index

    folder = Embeddings.open(embeddings)
    _refuse_empty(folder)
    missing = len(folder.missing_shards())
    run = Run.parse(folder.plan.run)
    with (
        (
            Index.open(out, writable=True)
            if out.exists()
            else Index.create(out, model=folder.model_path, run=run)
        ) as found,
        ProgressReporter("indexing", total=len(folder), quiet=quiet or json_) as progress,
    ):
        report = found.add_embeddings(folder, on_progress=progress)
        num_items = len(found)
    if missing:
        print(
            f"featkit: {embeddings} is not finished: missing are {missing:,} of"
            f" {counted(folder.plan.num_shards, 'shard')}; finish it with `featkit embed`, then run"
            " this again.",
            file=sys.stderr,
        )
    if json_:
        result = {
            "out": str(out),
            "items": num_items,
            "added": report.num_added,
            "replaced": report.num_replaced,
            "unchanged": report.num_unchanged,
            "without_embedding": report.num_without_embedding,
            "kept": report.num_kept,
            "missing_shards": missing,
        }
        print_json(result)
        return
    said = f"{counted(report.num_added, 'image')} added"
    if report.num_replaced:
        said += f" ({report.num_replaced:,} in place of an older one)"
    if report.num_unchanged:
        said += f", {counted(report.num_unchanged, 'was there', 'were there')}"
    if report.num_without_embedding:
        said += (
            f", {counted(report.num_without_embedding, 'has no embedding', 'have no embedding')}"
        )
    stdout().print(f"{said}; {out} holds {num_items:,}.")
    if report.num_kept:
        stdout().print(
            f"Kept as before: {counted(report.num_kept, 'image')} in {out} whose file can no"
            " longer be read; Index.remove takes such an image out."
        )
    stdout().print(f"Next: featkit search {typed(out)} query.jpg, or featkit demo {typed(out)}")


def _refuse_empty(folder: "Embeddings") -> None:
    """InputError for a folder without a single vector: an index of it could not be searched."""
    from featkit.embeddings import nothing_embedded

    if folder.num_rows == 0:
        raise InputError(
            f"{folder.path} has no finished shard yet. Finish it with `featkit embed`, then run"
            " this again."
        )
    num_failed, failures = folder.failures()
    if num_failed == folder.num_rows:
        raise InputError(
            f"{folder.path} holds no vectors. {nothing_embedded(num_failed, failures[0][1])}"
        )
