"""`featkit embed`: a folder of images to unit vectors."""

from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.extras import BackendName, PrecisionName, need_extra
from featkit.cli.selecting import SelectionFlags, passed_over, selection_of
from featkit.errors import InputError, StrictFailure
from featkit.images import ImageLimits
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.embedder import Embedder
    from featkit.pipeline import EmbedReport


def embed(
    source: Path,
    /,
    *,
    out: Path,
    model: Path | None = None,
    backend: BackendName = "auto",
    precision: PrecisionName = "auto",
    shard_size: int = 1024,
    threads: int | None = None,
    max_pixels: int = ImageLimits().max_pixels,
    max_bytes: int = ImageLimits().max_bytes,
    retry: bool = False,
    rehash: bool = False,
    strict: bool = False,
    quiet: bool = False,
    json_: bool = False,
    select: SelectionFlags | None = None,
) -> None:
    """Turn the images of SOURCE into unit vectors: one row each, in Parquet files that anything
    reads.

    An image that cannot be read becomes a row that says why, and the rest goes on. Stopped at any
    moment, the same command continues where it was. Run again later, it embeds again the images
    whose files have another size or time of change, and those that could not be read.

    Example: featkit embed images/ --out emb/

    Parameters
    ----------
    source
        A folder of images, .tar archives and Parquet files, one of these, a .txt list of paths, a folder by the datasets
        library's save_to_disk, or a data set of the Hugging Face Hub, which is fetched: hf:uoft-cs/cifar10:test.
    out
        The embeddings folder to write.
    model
        A model file from `featkit export`; by default featkit-tiny, which ships with featkit.
    backend
        What runs the model; auto takes the fastest here, measured at the model's first use, or FEATKIT_BACKEND. A folder
        that was begun goes on with what it was begun with.
    precision
        fp32, or bf16 by openvino; auto takes bf16 where the processor is made for it and the vectors stay the same within
        rounding, or FEATKIT_PRECISION.
    shard_size
        Items in a shard file.
    threads
        Threads that decode and infer; by default as many as processors that this process may use, or as many as fit in the
        memory that it may use.
    max_pixels
        Refuse larger images before decoding them.
    max_bytes
        Refuse longer files before reading them.
    retry
        Try all failed images again, though their files are the same: after the installation of a package, for example.
    rehash
        Read all files and compare their content, to find images that were exchanged without another size or time.
    strict
        End with exit code 4 when any image failed.
    quiet
        Show no progress.
    json_
        Print the result as JSON.
    """
    need_extra("cpu", "onnxruntime")
    from featkit.embedder import Embedder
    from featkit.embeddings import nothing_embedded
    from featkit.pipeline import EmbedOptions, embed_source
    from featkit.resources import usable_cpus, usable_memory
    from featkit.sources import open_source
    from featkit.sources.rows import image_column

    limits = ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels)
    images = open_source(source, limits=limits, selection=selection_of(select, own=[out]))
    embedder = Embedder(model, backend=backend, precision=precision, threads=1, limits=limits)
    with ProgressReporter("embedding", total=len(images), quiet=quiet or json_) as progress:
        report = embed_source(
            images,
            embedder,
            out,
            EmbedOptions(shard_size=shard_size, workers=threads, retry=retry, rehash=rehash),
            on_progress=progress,
        )
    rate = report.num_embedded_now / report.seconds if report.seconds else 0.0
    speed = f"{rate:,.1f} images/s" if report.num_embedded_now else "all by an earlier run"
    if json_:
        result = {
            "out": str(out),
            "model": embedder.manifest.name,
            "fingerprint": embedder.fingerprint,
            "backend": report.backend,
            "threads": report.num_workers,
            "items": report.num_items,
            "embedded_now": report.num_embedded_now,
            "changed": report.num_changed,
            "retried": report.num_retried,
            "failed": report.num_failed,
            "failures": [{"key": key, "error": error} for key, error in report.failures],
            "column": image_column(images) or None,
            "skipped": dict(images.skipped),
            "seconds": round(report.seconds, 3),
        }
        print_json(result)
    else:
        _print_report(report, embedder, speed)
        if threads is None and report.num_workers < usable_cpus():
            stdout().print(
                f"Memory is limited to {usable_memory() / 1e6:,.0f} MB, so"
                f" {counted(report.num_workers, 'thread')} of {usable_cpus()} did the work;"
                " --threads sets another number."
            )
        if (line := passed_over(images)) is not None:
            stdout().print(line)
        if report.num_failed < report.num_items:
            stdout().print(f"Next: featkit index {typed(out)} --out photos.index")
    if strict and report.num_failed:
        raise StrictFailure(
            f"{report.num_failed:,} of {counted(report.num_items, 'image')} have no embedding."
        )
    if report.num_failed == report.num_items:
        raise InputError(nothing_embedded(report.num_items, report.failures[0][1]))


def _print_report(report: "EmbedReport", embedder: "Embedder", speed: str) -> None:
    if report.failures:
        print_table("Without an embedding", ("image", "why"), report.failures)
        if report.num_failed > len(report.failures):
            stdout().print(
                f"... and {report.num_failed - len(report.failures):,} more; they are rows with an"
                " `error`."
            )
    stdout().print(
        f"{report.num_items - report.num_failed:,} of {counted(report.num_items, 'image')}"
        f" embedded by {embedder.manifest.name} ({counted(embedder.width, 'number')} each) on"
        f" {report.backend}, {speed}."
    )
    if report.num_changed or report.num_retried:
        again = (
            [f"{report.num_changed:,} because the file has changed"] if report.num_changed else []
        )
        again += [f"{report.num_retried:,} that had failed"] if report.num_retried else []
        stdout().print(f"Embedded again: {' and '.join(again)}.")
    if report.num_failed and not report.num_embedded_now:
        stdout().print("Failed images are tried again when their files change, or with --retry.")
