"""`featkit index`: build a searchable index from embeddings, or add them to one."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import ProgressReporter, print_json, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.embeddings import Embeddings


def index(embeddings: Path, /, *, out: Path, quiet: Quiet = False, json_: AsJson = False) -> None:
    """Add the images of EMBEDDINGS to an index, which is created if it does not exist.

    An existing index must have been made with the same model. An image that is already in it is
    replaced if it has changed, and kept if its file can no longer be read. If the command is
    stopped, run it again to resume.

    Example: featkit index emb/ --out photos.index

    Parameters
    ----------
    embeddings
        A folder from `featkit embed`.
    out
        The index folder to create or add to.
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
        ) as opened,
        ProgressReporter("indexing", total=len(folder), quiet=quiet or json_) as progress,
    ):
        report = opened.add_embeddings(folder, on_progress=progress)
        num_items = len(opened)
    if missing:
        print(
            f"featkit: {embeddings} is not finished: {missing:,} of"
            f" {counted(folder.plan.num_shards, 'shard')} are missing. Finish it with `featkit"
            " embed`, then run this command again.",
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
    summary = f"{counted(report.num_added, 'image')} added"
    if report.num_replaced:
        summary += f" ({report.num_replaced:,} replacing an older version)"
    if report.num_unchanged:
        summary += f", {report.num_unchanged:,} unchanged"
    if report.num_without_embedding:
        summary += f", {report.num_without_embedding:,} without an embedding"
    stdout().print(f"{summary}; {out} holds {counted(num_items, 'image')}.")
    if report.num_kept:
        stdout().print(
            f"Kept {counted(report.num_kept, 'image')} whose file can no longer be read;"
            " `featkit remove` takes them out of the index."
        )
    stdout().print(f"Next: featkit search {typed(out)} query.jpg, or featkit demo {typed(out)}")


def _refuse_empty(folder: "Embeddings") -> None:
    """Raise InputError for a folder without any vector, since its index could not be searched."""
    from featkit.embeddings import nothing_embedded

    if folder.num_rows == 0:
        raise InputError(
            f"{folder.path} has no finished shard yet; finish it with `featkit embed`, then run"
            " this command again."
        )
    num_failed, failures = folder.failures()
    if num_failed == folder.num_rows:
        raise InputError(
            f"{folder.path} holds no vectors. {nothing_embedded(num_failed, failures[0][1])}"
        )
