"""`featkit embed`: turn a folder of images into unit vectors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.options import AsJson, BackendName, PrecisionName, Quiet, Rehash, Retry
from featkit.cli.outlook import before_embed
from featkit.cli.selecting import SelectionFlags, passed_over, selection_of
from featkit.errors import InputError, StrictFailure
from featkit.extras import need_extra
from featkit.images import ImageLimits
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.embedder import Embedder
    from featkit.pipeline import EmbedReport
    from featkit.sources import Source


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
    retry: Retry = False,
    rehash: Rehash = False,
    strict: bool = False,
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Turn the images of SOURCE into unit vectors, one row per image in Parquet files.

    An image that cannot be read becomes a row with the reason, and the command continues. If the
    command is stopped, run it again to resume. Run it later to embed new images, those whose file
    changed in size or time, and those that could not be read.

    Example: featkit embed images/ --out emb/

    Parameters
    ----------
    source
        A folder of images, .tar archives and Parquet files; one such file; a .txt list of paths; a
        folder written by the datasets library's save_to_disk; or a data set on the Hugging Face
        Hub, which is downloaded, such as hf:uoft-cs/cifar10:test.
    out
        The embeddings folder to write.
    model
        A model file from `featkit export`. The default is featkit-tiny, which ships with featkit.
    backend
        The engine that runs the model. auto picks the fastest on this machine, measured at the
        model's first use, or FEATKIT_BACKEND. An existing folder keeps the engine it was started
        with.
    precision
        fp32, or bf16 with openvino. auto picks bf16 if the CPU supports it in hardware and the
        vectors stay the same within rounding, or FEATKIT_PRECISION.
    shard_size
        Images per shard file.
    threads
        Threads that decode and embed. The default is one per available CPU, or fewer if memory is
        limited.
    max_pixels
        Refuse images with more pixels, before decoding them.
    max_bytes
        Refuse larger files, before reading them.
    strict
        Exit with code 4 if any image failed.
    """
    need_extra("cpu", "onnxruntime")
    from featkit.embedder import Embedder
    from featkit.embeddings import nothing_embedded
    from featkit.pipeline import EmbedOptions, embed_source
    from featkit.sources import open_source

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
            before=lambda ahead, opened: before_embed(out, ahead, opened, quiet=quiet or json_),
        )
    if json_:
        print_json(_in_json(report, embedder, images, out))
    else:
        _print_report(report, embedder, images, out, limits_threads=threads is None)
    if strict and report.num_failed:
        raise StrictFailure(
            f"{report.num_failed:,} of {counted(report.num_items, 'image')} have no embedding."
        )
    if report.num_failed == report.num_items:
        raise InputError(nothing_embedded(report.num_items, report.failures[0][1]))


def _in_json(
    report: "EmbedReport", embedder: "Embedder", images: "Source", out: Path
) -> dict[str, Any]:
    from featkit.sources.rows import image_column

    return {
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


def _print_report(
    report: "EmbedReport",
    embedder: "Embedder",
    images: "Source",
    out: Path,
    *,
    limits_threads: bool,
) -> None:
    _print_failures(report)
    rate = report.num_embedded_now / report.seconds if report.seconds else 0.0
    speed = f"{rate:,.1f} images/s" if report.num_embedded_now else "all by an earlier run"
    stdout().print(
        f"{report.num_items - report.num_failed:,} of {counted(report.num_items, 'image')}"
        f" embedded by {embedder.manifest.name} ({counted(embedder.width, 'dimension')}) on"
        f" {report.backend}, {speed}."
    )
    _print_embedded_again(report)
    if limits_threads:
        _print_thread_limit(report)
    if (line := passed_over(images)) is not None:
        stdout().print(line)
    if report.num_failed < report.num_items:
        stdout().print(f"Next: featkit index {typed(out)} --out photos.index")


def _print_failures(report: "EmbedReport") -> None:
    if report.failures:
        print_table("Without an embedding", ("image", "why"), report.failures)
    if report.num_failed > len(report.failures):
        stdout().print(
            f"... and {report.num_failed - len(report.failures):,} more; the column `error` gives"
            " the reason for each."
        )


def _print_embedded_again(report: "EmbedReport") -> None:
    reasons = []
    if report.num_changed:
        reasons.append(f"{report.num_changed:,} because the file has changed")
    if report.num_retried:
        reasons.append(f"{report.num_retried:,} that had failed")
    if reasons:
        stdout().print(f"Embedded again: {' and '.join(reasons)}.")
    if report.num_failed and not report.num_embedded_now:
        stdout().print("Failed images are tried again when their files change, or with --retry.")


def _print_thread_limit(report: "EmbedReport") -> None:
    from featkit.resources import usable_cpus, usable_memory

    if report.num_workers < usable_cpus():
        stdout().print(
            f"Memory is limited to {usable_memory() / 1e6:,.0f} MB, so only"
            f" {report.num_workers} of {counted(usable_cpus(), 'thread')} were used; change this"
            " with --threads."
        )
