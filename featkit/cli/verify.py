"""`featkit verify`: whether another engine or precision gives a model's vectors."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.extras import BackendName, PrecisionName, need_extra
from featkit.errors import InputError
from featkit.folders import is_index
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.index import Index

MAX_FAILURES_SHOWN = 20


def verify(
    model: Path,
    photos: Path,
    /,
    *,
    backend: BackendName = "openvino",
    precision: PrecisionName = "bf16",
    limit: int | None = None,
    quiet: bool = False,
    json_: bool = False,
) -> int:
    """Compare MODEL run by another engine or precision with ONNX Runtime in float32, on PHOTOS, and
    say whether they agree.

    They agree when no image's two vectors have a cosine below 0.9995; else it ends with exit code
    1. Where MODEL is an index, what was found is kept in it: it may then be searched, and added to,
    by that run too.

    Example: featkit verify photos.index images/ --backend openvino --precision bf16

    Parameters
    ----------
    model
        A model file, or an index folder, whose own model is compared.
    photos
        A folder of images, a .tar, a .parquet, or whatever else `featkit embed` takes; a few hundred are enough.
    backend
        The engine to compare.
    precision
        The precision to compare; auto is the fastest that the engine has here.
    limit
        Only so many images, spread evenly over PHOTOS.
    quiet
        Show no progress.
    json_
        Print the figures as JSON.
    """
    need_extra("cpu", "onnxruntime")
    if is_index(model):
        need_extra("cpu", "faiss")
        from featkit.index import Index

        with Index.open(model, writable=True) as index:
            return _verify(
                index.model_path,
                photos,
                backend,
                precision,
                limit,
                quiet=quiet,
                as_json=json_,
                index=index,
            )
    return _verify(model, photos, backend, precision, limit, quiet=quiet, as_json=json_, index=None)


def _verify(
    model: Path,
    photos: Path,
    backend: str,
    precision: str,
    limit: int | None,
    *,
    quiet: bool,
    as_json: bool,
    index: "Index | None",
) -> int:
    from featkit.embedder import Embedder
    from featkit.evaluate.agreement import LEAST_COSINE, compare_runs
    from featkit.sources import open_source, thinned

    if limit is not None and limit < 2:
        raise InputError(f"--limit is {limit}; it has to be 2 or more.")
    source = open_source(photos)
    if limit is not None:
        source = thinned(source, limit)
    reference = Embedder(model, backend="onnxruntime")
    other = Embedder(model, backend=backend, precision=precision)
    with ProgressReporter("comparing", total=len(source), quiet=quiet or as_json) as progress:
        (found,), failures = compare_runs(source, reference, [other], on_progress=progress)
    kept = index is not None and found.holds
    if index is not None:
        from featkit.index import Proof

        if found.holds:
            names = ("num_images", "least_cosine", "mean_cosine", "recall_lost")
            index.keep_proof(
                Proof(**asdict(found.run), **{name: getattr(found, name) for name in names})
            )
        else:
            index.drop_proof(found.run)
    if as_json:
        figures: dict[str, Any] = {
            **asdict(found),
            "run": str(found.run),
            "reference": str(reference.run),
        }
        figures |= {
            "needed_cosine": LEAST_COSINE,
            "holds": found.holds,
            "kept": kept,
            "failures": failures,
        }
        print_json(figures)
        return 0 if found.holds else 1
    rows: list[tuple[str, object]] = [
        ("least cosine", f"{found.least_cosine:.6f}"),
        ("mean cosine", f"{found.mean_cosine:.6f}"),
        ("nearest neighbor changed", f"{found.neighbors_changed:.2%}"),
        (f"copies found, {reference.run}", f"{found.recall_at_1 + found.recall_lost:.4f}"),
        (f"copies found, {found.run}", f"{found.recall_at_1:.4f}"),
    ]
    print_table(
        f"{found.run} beside {reference.run} on {counted(found.num_images, 'image')}",
        ("", ""),
        rows,
    )
    if failures:
        print_table("Left out", ("image", "why"), failures[:MAX_FAILURES_SHOWN])
    verdict = "They agree" if found.holds else "They do not agree"
    stdout().print(
        f"{verdict}: the least cosine is {found.least_cosine:.6f}, {LEAST_COSINE} is needed."
    )
    if kept:
        stdout().print(
            f"{model.parent} may now be searched and added to by {found.run} as well as by"
            f" {reference.run}."
        )
    return 0 if found.holds else 1
