"""`featkit verify`: check whether another engine or precision gives the same vectors."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.options import AsJson, BackendName, Limit, PrecisionName, Quiet
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.folders import is_index
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.evaluate.agreement import Agreement, RunComparison
    from featkit.index import Index

MAX_FAILURES_SHOWN = 20


def verify(
    model: Path,
    photos: Path,
    /,
    *,
    backend: BackendName = "openvino",
    precision: PrecisionName = "bf16",
    limit: Limit = None,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> int:
    """Check on PHOTOS that another engine or precision gives the vectors of ONNX Runtime in
    float32.

    They agree if the two vectors of every image have a cosine of at least 0.9995; otherwise the
    exit code is 1. If MODEL is an index, the result is stored in it: after an agreement, that
    engine and precision may also search the index and add to it.

    Example: featkit verify photos.index images/ --backend openvino --precision bf16

    Parameters
    ----------
    model
        A model file, or an index folder, whose own model is then compared.
    photos
        A folder of images, a .tar, a .parquet, or anything else that `featkit embed` takes; a few
        hundred images are enough.
    backend
        The engine to compare.
    precision
        The precision to compare; auto is the fastest that the engine offers on this machine.
    """
    need_extra("cpu", "onnxruntime")
    if limit is not None and limit < 2:
        raise InputError(f"--limit is {limit}; it has to be 2 or more.")
    if is_index(model):
        need_extra("cpu", "faiss")
        from featkit.index import Index

        opened: Index | nullcontext[None] = Index.open(model, writable=True)
    else:
        opened = nullcontext()
    from featkit.evaluate.agreement import compare_run
    from featkit.sources import open_source, thinned

    with opened as index:
        source = open_source(photos)
        if limit is not None:
            source = thinned(source, limit)
        with ProgressReporter("comparing", total=len(source), quiet=quiet or json_) as progress:
            comparison = compare_run(
                model if index is None else index.model_path,
                source,
                backend=backend,
                precision=precision,
                on_progress=progress,
            )
        is_kept = index is not None and _record(index, comparison.agreement)
    if json_:
        print_json({**comparison.to_dict(), "kept": is_kept})
    else:
        _print_comparison(comparison)
        if is_kept:
            stdout().print(
                f"{model} may now be searched and extended by {comparison.agreement.run} as well as"
                f" by {comparison.reference}."
            )
    return 0 if comparison.agreement.holds else 1


def _record(index: "Index", agreement: "Agreement") -> bool:
    """Store the proof in the index, or remove an earlier one; return whether it holds one now."""
    from featkit.index import Proof

    if not agreement.holds:
        index.drop_proof(agreement.run)
        return False
    measured = ("num_images", "least_cosine", "mean_cosine", "recall_lost")
    figures = {name: getattr(agreement, name) for name in measured}
    index.keep_proof(Proof(**asdict(agreement.run), **figures))
    return True


def _print_comparison(comparison: "RunComparison") -> None:
    from featkit.evaluate.agreement import LEAST_COSINE

    agreement, reference = comparison.agreement, comparison.reference
    rows: list[tuple[str, object]] = [
        ("least cosine", f"{agreement.least_cosine:.6f}"),
        ("mean cosine", f"{agreement.mean_cosine:.6f}"),
        ("nearest neighbor changed", f"{agreement.neighbors_changed:.2%}"),
        (f"copies found, {reference}", f"{agreement.recall_at_1 + agreement.recall_lost:.4f}"),
        (f"copies found, {agreement.run}", f"{agreement.recall_at_1:.4f}"),
    ]
    images = counted(agreement.num_images, "image")
    print_table(f"{agreement.run} compared with {reference} on {images}", ("", ""), rows)
    if comparison.failures:
        print_table("Left out", ("image", "why"), comparison.failures[:MAX_FAILURES_SHOWN])
    verdict = "They agree" if agreement.holds else "They do not agree"
    stdout().print(
        f"{verdict}: the least cosine is {agreement.least_cosine:.6f}, and {LEAST_COSINE} is"
        " required."
    )
