"""Speed, agreement and memory of every engine that runs a model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit.backends import TENSORRT, Run, offered_runs, reference_run
from featkit.backends.drawn import drawn_images
from featkit.backends.onnxruntime import has_tensorrt
from featkit.embedder import Embedder
from featkit.errors import FeatkitError
from featkit.evaluate.agreement import compare_runs
from featkit.evaluate.embedding import OnProgress, no_progress
from featkit.evaluate.speed import images_per_second, matrix_flops, memory_bytes, multiply_adds
from featkit.modelfile import read_manifest
from featkit.resources import usable_cpus
from featkit.sources import Source

NUM_DRAWN = 32


@dataclass(frozen=True, kw_only=True)
class EngineFigures:
    """One engine and precision. Cosines are with the reference, ONNX Runtime in float32.

    flops: floating-point operations per second; None if the model's were not counted.
    recall_lost: loss of copy recall@1; None on drawn images, which have no meaningful neighbors.
    """

    run: str
    images_per_s: float
    flops: float | None
    least_cosine: float
    mean_cosine: float
    recall_lost: float | None
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """Every engine that works, and the limits of the machine.

    matrix_flops: rate of numpy's float32 matrix products, as a practical upper limit.
    multiply_adds: count for one image; None without OpenVINO, which counts them.
    """

    model: Path
    threads: int
    matrix_flops: float
    multiply_adds: int | None
    runs: list[EngineFigures]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-compatible values, as `featkit bench --json` prints it."""
        machine = {
            "threads": self.threads,
            "matrix_flops": self.matrix_flops,
            "operations_a_image": self.multiply_adds and 2 * self.multiply_adds,
        }
        return {
            "model": str(self.model),
            "machine": machine,
            "runs": [vars(run) for run in self.runs],
        }


@dataclass(frozen=True)
class _Closeness:
    least_cosine: float
    mean_cosine: float
    recall_lost: float | None


def measure_engines(
    model: Path,
    source: Source | None = None,
    *,
    seconds: float,
    on_left_out: Callable[[Run, FeatkitError], None] = lambda _run, _error: None,
    on_progress: OnProgress = no_progress,
) -> EngineReport:
    """Measure every engine and precision that works with a model file on this machine.

    source: images to compare the engines on; None draws some. seconds: how long each is timed.
    on_left_out: called for an engine that does not load the model.
    """
    embedders = _open_all(model, on_left_out)
    geometry = next(iter(embedders.values())).geometry
    drawn = drawn_images(NUM_DRAWN, height=geometry.height, width=geometry.width)
    if source is None:
        close = _compare_on_drawn(embedders, drawn)
    else:
        close = _compare_on_source(embedders, source, on_progress)
    rates = images_per_second(embedders, drawn, seconds=seconds, callers=usable_cpus())
    needed = multiply_adds(model)
    return EngineReport(
        model=model,
        threads=usable_cpus(),
        matrix_flops=matrix_flops(usable_cpus()),
        multiply_adds=needed,
        runs=[
            EngineFigures(
                run=str(run),
                images_per_s=rates[run],
                flops=None if needed is None else 2 * needed * rates[run],
                **vars(close[run]),
                memory_bytes=memory_bytes(model, run),
            )
            for run in embedders
        ],
    )


def _open_all(model: Path, on_left_out: Callable[[Run, FeatkitError], None]) -> dict[Run, Embedder]:
    """Open each run that works, with the reference first."""
    manifest = read_manifest(model)
    reference = reference_run(manifest)
    tensorrt = [Run(TENSORRT, manifest.precision)] if has_tensorrt() else []
    embedders: dict[Run, Embedder] = {}
    for run in dict.fromkeys((reference, *offered_runs(manifest), *tensorrt)):
        try:
            embedders[run] = Embedder(
                model, backend=run.backend, precision=run.precision, threads=1
            )
        except FeatkitError as error:
            if run == reference:
                raise
            on_left_out(run, error)
    return embedders


def _compare_on_drawn(
    embedders: Mapping[Run, Embedder], drawn: np.ndarray
) -> dict[Run, _Closeness]:
    vectors = {run: embedder.infer(drawn) for run, embedder in embedders.items()}
    expected = next(iter(vectors.values()))
    cosines = {
        run: np.einsum("nd,nd->n", value, expected, dtype=np.float64)
        for run, value in vectors.items()
    }
    return {
        run: _Closeness(float(value.min()), float(value.mean()), None)
        for run, value in cosines.items()
    }


def _compare_on_source(
    embedders: Mapping[Run, Embedder], source: Source, on_progress: OnProgress
) -> dict[Run, _Closeness]:
    reference, *others = embedders.values()
    agreements, _ = compare_runs(source, reference, [reference, *others], on_progress=on_progress)
    return {
        each.run: _Closeness(each.least_cosine, each.mean_cosine, each.recall_lost)
        for each in agreements
    }
