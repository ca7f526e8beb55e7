"""`featkit index`: build a searchable index from embeddings, or add them to one."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.calibrate import measure_if_due
from featkit.cli.console import ProgressReporter, print_json, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.cli.outlook import before_index
from featkit.cli.promising import (
    BuildOn,
    Memory,
    Recall,
    check_build_on,
    keep_promise,
    promise_from,
)
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.embeddings import Embeddings
    from featkit.index import AddReport
    from featkit.index.approximate.planning import Promise


def index(
    embeddings: Path,
    /,
    *,
    out: Path,
    model: Path | None = None,
    memory: Memory = None,
    recall: Recall = None,
    build_on: BuildOn = "auto",
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Add the images of EMBEDDINGS to an index, which is created if it does not exist.

    An existing index must have been made with the same model. An image that is already in it is
    replaced if it has changed, and kept if its file can no longer be read. If the command is
    stopped, run it again to resume.

    Example: featkit index emb/ --out photos.index

    Example: featkit index emb/ --out photos.index --memory 2GB --recall 0.95

    Parameters
    ----------
    embeddings
        A folder from `featkit embed`; or a Parquet file from `featkit export-vectors`, or of
        another tool, with the columns key and embedding.
    out
        The index folder to create or add to.
    model
        For a new index of a Parquet file: the model file that made its vectors. The default is
        featkit-tiny, if it is their model.
    """
    need_extra("cpu", "faiss")
    from featkit.backends import Run
    from featkit.embeddings import Embeddings
    from featkit.embeddings.folder import SHARDS
    from featkit.index import Index
    from featkit.sources.base import PARQUET_SUFFIXES, suffix_of

    check_build_on(build_on)
    promise = promise_from(memory, recall)
    if embeddings.is_file() and suffix_of(embeddings.name) in PARQUET_SUFFIXES:
        _index_file(embeddings, out, model, promise, build_on, quiet=quiet, json_=json_)
        return
    if model is not None:
        raise InputError(f"{embeddings} has a model of its own; leave --model out.")
    folder = Embeddings.open(embeddings)
    num_rows = _num_vectors(folder)
    num_bytes = sum(file.stat().st_size for file in (embeddings / SHARDS).iterdir())
    is_new = not out.exists()
    look_ahead = partial(before_index, out, num_rows, num_bytes, folder.plan.width)
    if is_new:
        look_ahead(None, promise, quiet=quiet or json_)
    missing = len(folder.missing_shards())
    run = Run.parse(folder.plan.run)
    with (
        Index.create(out, model=folder.model_path, run=run, background=False)
        if is_new
        else Index.open(out, writable=True, background=False)
    ) as opened:
        if not is_new:
            look_ahead(opened, promise, quiet=quiet or json_)
        with ProgressReporter("indexing", total=len(folder), quiet=quiet or json_) as progress:
            report = opened.add_embeddings(folder, on_progress=progress)
        num_items = len(opened)
        measure_if_due(opened, quiet=quiet or json_)
        keep_promise(opened, promise, build_on=build_on, quiet=quiet or json_)
    if missing:
        print(
            f"featkit: {embeddings} is not finished: {missing:,} of"
            f" {counted(folder.plan.num_shards, 'shard')} are missing. Finish it with `featkit"
            " embed`, then run this command again.",
            file=sys.stderr,
        )
    _print_report(report, out, num_items, missing_shards=missing, json_=json_)


def _index_file(
    file: Path,
    out: Path,
    model: Path | None,
    promise: "Promise | None",
    build_on: BuildOn,
    *,
    quiet: bool,
    json_: bool,
) -> None:
    """Index a Parquet file of vectors."""
    from featkit.backends import Run
    from featkit.index import Index
    from featkit.index.vector_file import VectorFile, read_vectors
    from featkit.modelfile import read_manifest
    from featkit.models import default_model_path

    vectors = VectorFile(file)
    look_ahead = partial(before_index, out, vectors.num_rows, file.stat().st_size)
    is_new = not out.exists()
    if not is_new:
        if model is not None:
            raise InputError(f"{out} has a model of its own; leave --model out.")
        opened = Index.open(out, writable=True, background=False)
    else:
        path = model or default_model_path()
        if vectors.fingerprint not in (None, read_manifest(path).fingerprint) or (
            vectors.fingerprint is None and model is None
        ):
            made_by = vectors.model_name or "an unknown model"
            raise InputError(
                f"{file} has vectors of {made_by}, but {path} is another model; name the file of"
                " their model with --model."
            )
        run = None if vectors.run is None else Run.parse(vectors.run)
        look_ahead(read_manifest(path).width, None, promise, quiet=quiet or json_)
        opened = Index.create(out, model=path, run=run, background=False)
    with opened:
        if not is_new:
            look_ahead(opened.width, opened, promise, quiet=quiet or json_)
        with ProgressReporter("indexing", total=None, quiet=quiet or json_) as progress:
            report = read_vectors(opened, vectors, on_progress=progress)
        num_items = len(opened)
        measure_if_due(opened, quiet=quiet or json_)
        keep_promise(opened, promise, build_on=build_on, quiet=quiet or json_)
    _print_report(report, out, num_items, json_=json_)


def _print_report(
    report: "AddReport", out: Path, num_items: int, *, missing_shards: int = 0, json_: bool
) -> None:
    if json_:
        result = {
            "out": str(out),
            "items": num_items,
            "added": report.num_added,
            "replaced": report.num_replaced,
            "unchanged": report.num_unchanged,
            "without_embedding": report.num_without_embedding,
            "kept": report.num_kept,
            "missing_shards": missing_shards,
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


def _num_vectors(folder: "Embeddings") -> int:
    """Return the number of vectors in a folder. InputError for none, since an index of it could not
    be searched."""
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
    return folder.num_rows - num_failed
