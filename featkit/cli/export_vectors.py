"""`featkit export-vectors`: the vectors of an index as a Parquet file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_json, stdout
from featkit.cli.options import AsJson, Quiet, Where
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted, typed


def export_vectors(
    index: Path,
    out: Path,
    /,
    *,
    where: Where = None,
    thumbnails: Annotated[bool, Parameter(negative="")] = False,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Write the keys, vectors and metadata of INDEX to OUT, a Parquet file that any tool can read.

    `featkit index OUT --out other.index` makes an index of it again. A column has one type, so a
    metadata field with numbers for some images and text for others becomes text.

    Example: featkit export-vectors photos.index vectors.parquet

    Parameters
    ----------
    index
        A folder from `featkit index` or `featkit sync`.
    out
        The file to write.
    thumbnails
        Also write the thumbnails, as JPEG bytes.
    """
    need_extra("cpu", "faiss")
    from featkit.index import Index
    from featkit.index.vector_file import write_vectors

    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file, such as {out / 'vectors.parquet'}.")
    with (
        Index.open(index) as opened,
        ProgressReporter("writing", total=opened.count(where), quiet=quiet or json_) as progress,
    ):
        count = write_vectors(opened, out, where=where, thumbnails=thumbnails, on_progress=progress)
        model = opened.model_name
    if json_:
        print_json({"out": str(out), "items": count, "bytes": out.stat().st_size})
        return
    stdout().print(
        f"{out} has {counted(count, 'image')} with vectors of {model}"
        f" ({out.stat().st_size / 1e6:,.1f} MB)."
    )
    stdout().print(f"Back into an index: featkit index {typed(out)} --out other.index")
