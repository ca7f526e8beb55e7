"""`featkit index`: embeddings to an index that can be searched."""

import json
from pathlib import Path

from featkit.cli.console import ProgressReporter, stdout


def index(embeddings: Path, /, *, out: Path, quiet: bool = False, json_: bool = False) -> None:
    """Put the vectors of EMBEDDINGS into an index folder, made new or added to; equal keys are replaced.

    The model is copied into the index, so the folder is all that search and serving need.

    Example: featkit index emb/ --out photos.index

    Parameters
    ----------
    embeddings
        A folder that `featkit embed` wrote.
    out
        The index folder.
    quiet
        Show no progress.
    json_
        Print the result as JSON.
    """
    from featkit.embeddings import Embeddings
    from featkit.errors import InputError
    from featkit.index import Index

    folder = Embeddings.open(embeddings)
    if not folder.complete:
        missing = len(folder.missing_shards())
        raise InputError(
            f"{embeddings} lacks {missing:,} of its {folder.plan.num_shards:,} shards; finish `featkit embed` first."
        )
    opened = Index.open(out, writable=True) if out.exists() else Index.create(out, model=folder.model_path)
    with opened as target, ProgressReporter("indexing", total=len(folder), unit="items", quiet=quiet or json_) as progress:
        report = target.add_embeddings(folder, on_progress=progress)
        count = len(target)
    if json_:
        counts = {"added": report.num_added, "replaced": report.num_replaced, "skipped": report.num_without_embedding}
        print(json.dumps({"out": str(out), "items": count, **counts}))
        return
    skipped = f", {report.num_without_embedding:,} without an embedding left out" if report.num_without_embedding else ""
    replaced = f", {report.num_replaced:,} of them replaced" if report.num_replaced else ""
    stdout().print(f"{report.num_added:,} items added{replaced}{skipped}; {out} holds {count:,}.")
    stdout().print(f"Next: featkit search {out} query.jpg, or featkit demo {out}")
