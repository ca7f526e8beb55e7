"""`featkit bench`: how fast each engine runs a model here, and how near it is to what the machine
can do."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.extras import need_extra
from featkit.errors import FeatkitError, InputError
from featkit.wording import counted

if TYPE_CHECKING:
    import numpy as np

    from featkit.backends import Run
    from featkit.embedder import Embedder

NONE = "–"
NUM_DRAWN = 32


@dataclass(kw_only=True)
class Figures:
    """A row of the table; None where there was nothing to measure it by."""

    run: str
    images_per_s: float
    flops: float | None
    least_cosine: float
    mean_cosine: float
    recall_lost: float | None
    memory_bytes: int


def bench(
    model: Path | None = None,
    photos: Path | None = None,
    /,
    *,
    seconds: float = 5.0,
    limit: int = 200,
    quiet: bool = False,
    json_: bool = False,
) -> None:
    """Run MODEL by every engine and precision that works here, and print speed, agreement and
    memory of each.

    Cosines are with ONNX Runtime in float32. The last lines say how fast this machine multiplies
    matrices at all, and what an image needs, so that the distance to the limit can be read.

    Example: featkit bench m.onnx images/ --seconds 5

    Parameters
    ----------
    model
        A model file; by default featkit-tiny, which ships with featkit.
    photos
        Images to compare the engines on, of whatever kind `featkit embed` takes; without them images are drawn.
    seconds
        How long each engine is timed.
    limit
        Compare on so many of PHOTOS, spread evenly.
    quiet
        Show no progress.
    json_
        Print the figures as JSON.
    """
    need_extra("cpu", "onnxruntime")
    if not seconds > 0:
        raise InputError(f"--seconds is {seconds:g}; it has to be more than 0.")
    if limit < 2:
        raise InputError(f"--limit is {limit}; it has to be 2 or more.")
    from featkit.backends.drawn import drawn_images
    from featkit.evaluate.speed import (
        images_per_second,
        matrix_flops,
        memory_bytes,
        multiply_adds,
    )
    from featkit.models import default_model_path
    from featkit.resources import usable_cpus

    path = model or default_model_path()
    embedders = _open_all(path)
    first = next(iter(embedders.values()))
    drawn = drawn_images(NUM_DRAWN, height=first.geometry.height, width=first.geometry.width)
    agreed = _compare(embedders, drawn, photos, limit=limit, quiet=quiet or json_)
    rates = images_per_second(embedders, drawn, seconds=seconds, callers=usable_cpus())
    needed = multiply_adds(path)
    rows = [
        Figures(
            run=str(run),
            images_per_s=rates[run],
            flops=None if needed is None else 2 * needed * rates[run],
            least_cosine=agreed[run][0],
            mean_cosine=agreed[run][1],
            recall_lost=agreed[run][2],
            memory_bytes=memory_bytes(path, run),
        )
        for run in embedders
    ]
    limit_flops = matrix_flops(usable_cpus())
    if json_:
        machine = {
            "threads": usable_cpus(),
            "matrix_flops": limit_flops,
            "operations_a_image": needed and 2 * needed,
        }
        print_json({"model": str(path), "machine": machine, "runs": [vars(row) for row in rows]})
        return
    _print(
        path,
        rows,
        needed,
        limit_flops,
        threads=usable_cpus(),
        num_images=None if photos is None else limit,
    )


def _open_all(path: Path) -> "dict[Run, Embedder]":
    """A session of each run that works, ONNX Runtime's in float32 first; why another does not is
    said on stderr."""
    from featkit.backends import TENSORRT, Run, offered_runs, reference_run
    from featkit.backends.onnxruntime import has_tensorrt
    from featkit.embedder import Embedder
    from featkit.modelfile import read_manifest

    manifest = read_manifest(path)
    reference = reference_run(manifest)
    found = {
        reference: Embedder(
            path, backend=reference.backend, precision=reference.precision, threads=1
        )
    }
    tensorrt = [Run(TENSORRT, manifest.precision)] if has_tensorrt() else []
    for run in (*offered_runs(manifest), *tensorrt):
        if run in found:
            continue
        try:
            found[run] = Embedder(path, backend=run.backend, precision=run.precision, threads=1)
        except FeatkitError as error:
            print(f"featkit: {run} is left out: {error}", file=sys.stderr)
    return found


def _compare(
    embedders: "dict[Run, Embedder]",
    drawn: "np.ndarray",
    photos: Path | None,
    *,
    limit: int,
    quiet: bool,
) -> "dict[Run, tuple[float, float, float | None]]":
    """Least cosine, mean cosine and copy recall lost of each, on photographs or, without recall, on
    drawn images."""
    import numpy as np

    first, *others = embedders.values()
    if photos is None:
        expected = first.infer(drawn)
        cosines = {
            run: np.einsum("nd,nd->n", each.infer(drawn), expected, dtype=np.float64)
            for run, each in embedders.items()
        }
        return {run: (float(each.min()), float(each.mean()), None) for run, each in cosines.items()}
    from featkit.evaluate.agreement import compare_runs
    from featkit.sources import open_source, thinned

    source = thinned(open_source(photos), limit)
    with ProgressReporter("comparing", total=len(source), quiet=quiet) as progress:
        found, _ = compare_runs(source, first, [first, *others], on_progress=progress)
    return {each.run: (each.least_cosine, each.mean_cosine, each.recall_lost) for each in found}


def _print(
    path: Path,
    rows: list[Figures],
    needed: int | None,
    limit_flops: float,
    *,
    threads: int,
    num_images: int | None,
) -> None:
    cells: list[tuple[Any, ...]] = [
        (
            row.run,
            f"{row.images_per_s:,.1f}",
            (
                NONE
                if row.flops is None
                else f"{row.flops / 1e9:,.0f} ({row.flops / limit_flops:.0%})"
            ),
            f"{row.least_cosine:.6f}",
            f"{row.mean_cosine:.6f}",
            NONE if row.recall_lost is None else f"{row.recall_lost:.4f}",
            f"{row.memory_bytes / 1e6:,.0f}",
        )
        for row in rows
    ]
    columns = ("run", "images/s", "GFLOP/s", "cos least", "cos mean", "recall lost", "MB")
    compared = "drawn images" if num_images is None else f"up to {num_images:,} photographs"
    print_table(
        f"{path.name} with {counted(threads, 'thread')}, compared on {compared}", columns, cells
    )
    stdout().print(
        f"Limit (100%): numpy multiplies float32 matrices at {limit_flops / 1e9:,.0f} GFLOP/s with "
        f"{counted(threads, 'thread')}."
    )
    if needed is None:
        stdout().print(
            "What an image needs is counted by openvino, which is not installed: pip install"
            " 'featkit[openvino]'."
        )
    else:
        most = limit_flops / (2 * needed)
        stdout().print(
            f"An image needs {2 * needed / 1e9:.3f} GFLOP: at the limit that is {most:,.0f}"
            " images/s in float32."
        )
