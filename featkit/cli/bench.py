"""`featkit bench`: compare the engines of this machine in speed, agreement and memory."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.errors import FeatkitError, InputError
from featkit.extras import need_extra
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.backends import Run
    from featkit.evaluate.engines import EngineReport

NO_VALUE = "–"


def bench(
    model: Path | None = None,
    photos: Path | None = None,
    /,
    *,
    seconds: float = 5.0,
    limit: Annotated[
        int, Parameter(help="Compare on at most this many of PHOTOS, spread evenly.")
    ] = 200,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Run MODEL with every engine and precision that works on this machine, and print the speed,
    agreement and memory of each.

    Cosines are with ONNX Runtime in float32. The last lines show how fast this machine multiplies
    matrices and how many operations an image needs, so you can see how close each engine comes to
    the limit.

    Example: featkit bench m.onnx images/ --seconds 5

    Parameters
    ----------
    model
        A model file. The default is featkit-tiny, which ships with featkit.
    photos
        Images to compare the engines on: anything that `featkit embed` takes. Without them, featkit
        draws some.
    seconds
        How long to time each engine.
    """
    need_extra("cpu", "onnxruntime")
    if not seconds > 0:
        raise InputError(f"--seconds is {seconds:g}; it has to be more than 0.")
    if limit < 2:
        raise InputError(f"--limit is {limit}; it has to be 2 or more.")
    from featkit.evaluate.engines import measure_engines
    from featkit.models import default_model_path
    from featkit.sources import open_source, thinned

    source = None if photos is None else thinned(open_source(photos), limit)
    total = None if source is None else len(source)
    with ProgressReporter("comparing", total=total, quiet=quiet or json_) as progress:
        report = measure_engines(
            model or default_model_path(),
            source,
            seconds=seconds,
            on_left_out=_print_left_out,
            on_progress=progress,
        )
    if json_:
        print_json(report.to_dict())
    else:
        _print_report(report, None if photos is None else limit)


def _print_left_out(run: "Run", error: FeatkitError) -> None:
    print(f"featkit: {run} is left out: {error}", file=sys.stderr)


def _print_report(report: "EngineReport", limit: int | None) -> None:
    cells = [
        (
            run.run,
            f"{run.images_per_s:,.1f}",
            (
                NO_VALUE
                if run.flops is None
                else f"{run.flops / 1e9:,.0f} ({run.flops / report.matrix_flops:.0%})"
            ),
            f"{run.least_cosine:.6f}",
            f"{run.mean_cosine:.6f}",
            NO_VALUE if run.recall_lost is None else f"{run.recall_lost:.4f}",
            f"{run.memory_bytes / 1e6:,.0f}",
        )
        for run in report.runs
    ]
    columns = ("run", "images/s", "GFLOP/s", "cos least", "cos mean", "recall lost", "MB")
    compared = "drawn images" if limit is None else f"up to {limit:,} photos"
    threads = counted(report.threads, "thread")
    print_table(f"{report.model.name} with {threads}, compared on {compared}", columns, cells)
    stdout().print(
        "Limit (100%): numpy multiplies float32 matrices at"
        f" {report.matrix_flops / 1e9:,.0f} GFLOP/s with {threads}."
    )
    if report.multiply_adds is None:
        stdout().print(
            "Counting the operations of an image needs OpenVINO, which is not installed: pip"
            " install 'featkit[openvino]'."
        )
    else:
        operations = 2 * report.multiply_adds
        stdout().print(
            f"An image needs {operations / 1e9:.3f} GFLOP: at the limit that is"
            f" {report.matrix_flops / operations:,.0f} images/s in float32."
        )
