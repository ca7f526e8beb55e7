"""`featkit plan`: what embedding a source and searching it will cost, before anything starts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.options import AsJson, BackendName, PrecisionName, Quiet
from featkit.cli.promising import Memory, Recall, parse_bytes
from featkit.cli.selecting import SelectionFlags, selection_of
from featkit.extras import need_extra
from featkit.wording import counted, duration, typed

if TYPE_CHECKING:
    from featkit.forecast import Forecast


def plan(
    source: Path,
    /,
    *,
    model: Path | None = None,
    memory: Memory = None,
    recall: Recall = None,
    out: Path = Path("photos.index"),
    backend: BackendName = "auto",
    precision: PrecisionName = "auto",
    sample: int = 128,
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Say what embedding SOURCE and searching it will cost here, before anything starts.

    A sample of the images is read and embedded, and the time and bytes of all follow from it. The
    index is not made. The exit code is 1 if it would not fit on the disk.

    Example: featkit plan images/ --memory 2GB --recall 0.95

    Parameters
    ----------
    source
        Whatever `featkit embed` takes: a folder of images, a .tar, Parquet files, a list of paths.
    model
        A model file from `featkit export`. The default is featkit-tiny, which ships with featkit.
    out
        The index folder that would be made, whose disk must have room.
    backend
        The engine that runs the model; auto picks the fastest on this machine.
    precision
        The precision that it computes in.
    sample
        How many images to embed.
    """
    need_extra("cpu", "onnxruntime")
    from featkit.embedder import Embedder
    from featkit.errors import StrictFailure
    from featkit.forecast import forecast
    from featkit.sources import open_source

    images = open_source(source, selection=selection_of(select))
    embedder = Embedder(model, backend=backend, precision=precision, threads=1)
    with ProgressReporter(
        "sampling", total=min(sample, len(images)), quiet=quiet or json_
    ) as progress:
        found = forecast(
            images,
            embedder,
            out=out,
            memory=None if memory is None else parse_bytes(memory),
            recall=0.95 if recall is None else recall,
            num_sampled=sample,
            on_progress=progress,
        )
    if json_:
        print_json(_in_json(found))
    else:
        print_table(f"Plan for {source}", ("", ""), _rows(found))
        for reason in found.search.reasons:
            stdout().print(reason)
        flags = "".join(
            f" {flag} {value}"
            for flag, value in (("--memory", memory), ("--recall", recall))
            if value is not None
        )
        model_flag = "" if model is None else f" --model {typed(model)}"
        stdout().print(f"Next: featkit sync {typed(source)} {typed(out)}{model_flag}{flags}")
    if not found.fits:
        raise StrictFailure(
            f"The index needs about {decimal(found.index_bytes)}, and the disk of {out} has"
            f" {decimal(found.free_bytes)} left."
        )


def _in_json(found: Forecast) -> dict[str, Any]:
    result = asdict(found)
    kind = found.search.kind
    result["search"]["kind"] = None if kind is None else kind.name
    return {**result, "fits": found.fits}


def _rows(found: Forecast) -> list[tuple[str, str]]:
    search = found.search
    how = "exact" if search.kind is None else search.kind.about
    milliseconds = "less than 1 ms" if search.search_ms < 1 else f"about {search.search_ms:,.0f} ms"
    unread = f", {found.num_failed:,} of them unreadable" if found.num_failed else ""
    rows = [
        ("images", f"{found.num_images:,}, about {decimal(found.source_bytes)}"),
        ("sampled", f"{counted(found.num_sampled, 'image')}{unread}"),
        (
            "embedding",
            f"about {duration(found.embed_seconds)}, at {found.images_per_s:,.1f} images/s on"
            f" {found.backend} with {counted(found.num_workers, 'worker')}",
        ),
        ("disk", f"{decimal(found.index_bytes)} for the index; {decimal(found.free_bytes)} free"),
        ("search", f"{how}, {milliseconds} a query"),
    ]
    if search.kind is not None:
        rows += [
            ("memory", f"{decimal(search.num_bytes)} of {decimal(found.memory_bytes)} to search"),
            (
                "building",
                f"about {duration(search.build_seconds)} within {decimal(search.build_bytes)}",
            ),
        ]
    return rows
