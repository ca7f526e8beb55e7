"""Convert a model file to a lower precision, and measure it against the original before it is
written.

fp16 (half.py) is for GPUs. Its speed is not measured here; its accuracy is measured in the
arithmetic of a GPU (half_proof.py). int8 (int8.py) is for CPUs. It is written only if it is faster
on this machine than the fastest session in fp32 or bf16, and finds edited copies as well as the
original does. If quality is lost, the matrix products that lose most return to float, a few at a
time, until the quality is sufficient or the speed advantage is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from featkit.backends import FP16, FP32, INT8, Run, offered_runs, reference_run
from featkit.embedder import Embedder
from featkit.errors import FeatkitError, InputError
from featkit.evaluate.agreement import LEAST_COSINE, Agreement, compare_runs
from featkit.evaluate.speed import images_per_second
from featkit.modelfile import MAX_INLINE_BYTES, Manifest, read_manifest
from featkit.resources import usable_cpus
from featkit.sources import Source, open_source, thinned
from featkit.wording import counted
from featkit_export.half import LARGEST, PRODUCTS, kept_in_float, layer_name, to_half
from featkit_export.half_proof import (
    EXTREMES,
    MIN_HALF_COSINE,
    NUM_DRAWN,
    embed_each,
    emulate,
    observe_peaks,
    proof_images,
)
from featkit_export.half_weights import with_float_weights
from featkit_export.int8 import ChannelRange, observe_ranges, quantizable_nodes, quantize_static
from featkit_export.original import load_onnx, load_session
from featkit_export.report import OnStep, no_step
from featkit_export.seal import drafting_folder, seal
from featkit_export.verify import open_proven

CALIBRATION_IMAGES = 64
CALIBRATION_BATCH = 4
GATE_QUERIES = 2000
MAX_RECALL_LOST = 0.005  # of copy recall@1, at the upper 95 % bound
PROVEN_COSINE = LEAST_COSINE  # two files may mix their vectors under the same bound as two runs
TIMED_ROUNDS = 7
TIMED_SECONDS = 14.0
SENSITIVITY_IMAGES = 16


class GateError(FeatkitError):
    """A lower precision loses quality or is not faster; nothing was written."""


def lower(
    full: Path,
    out: Path,
    *,
    precision: Literal["fp16", "int8"],
    images: Path | None = None,
    name: str | None = None,
    on_step: OnStep = no_step,
) -> Manifest:
    """Write the model file `full` in another precision to `out`, and return its manifest.

    images: for int8, anything that `featkit embed` takes.

    Raises InputError if `full` already has a lower precision or the images cannot be used;
    GateError, with the measurements, if the precision is refused.
    """
    manifest = read_manifest(full)
    if manifest.precision != FP32:
        raise InputError(
            f"{full} is already in {manifest.precision}; convert the {FP32} file that it was made"
            " from."
        )
    manifest = dataclasses.replace(
        manifest,
        precision=precision,
        weight_precision="",
        name=name or manifest.name,
        external=None,
        parity={},
        proven_equal_to=(),
    )
    with drafting_folder(out) as folder:
        if precision == FP16:
            return _write_half(full, manifest, out, folder, on_step)
        assert images is not None
        return _write_int8(full, manifest, out, folder, open_source(images), on_step)


# fp16 ---------------------------------------------------------------------------------------------


def _write_half(
    full: Path, manifest: Manifest, out: Path, folder: Path, on_step: OnStep
) -> Manifest:
    """Write the file in fp16, keeping products with values near fp16's largest number in fp32.

    Raises GateError if its vectors still differ too much.
    """
    model, geometry = with_float_weights(load_onnx(full)), manifest.geometry
    images = proof_images(geometry.height, geometry.width)
    expected = embed_each(load_session(full), images)
    if not np.isfinite(expected).all():
        raise InputError(
            f"{full} gives vectors with NaN or infinity even in {FP32}; export its weights again."
        )
    on_step(f"measuring the largest values on {counted(len(images), 'image')}")
    peaks = observe_peaks(model, images, folder)
    kept = kept_in_float(model, peaks)
    on_step("writing the graph in half precision")
    half = to_half(model, folder, peaks)
    with_weights = onnx.load(str(half.path)) if half.path else half.model
    on_step(f"comparing it with {FP32} in true half arithmetic")
    emulated = emulate(with_weights, folder)
    cosines = np.einsum(
        "nd,nd->n",
        expected,
        embed_each(open_proven(emulated.session_input), images),
        dtype=np.float64,
    )
    if not cosines.min() >= MIN_HALF_COSINE:  # also refuses NaN
        raise GateError(_too_lossy(full, cosines, model, peaks))
    draft = folder / "draft.onnx"
    seal(half.model, manifest, draft, folder=folder if half.path else None)
    figures: dict[str, Any] = {
        "least_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "compared_on": (
            f"{NUM_DRAWN} drawn and {len(EXTREMES)} extreme images, in true half arithmetic"
        ),
        "kept_in_float": list(kept),
    }
    return _finish(
        draft, read_manifest(full), dataclasses.replace(manifest, quantization=figures), out
    )


def _too_lossy(
    full: Path, cosines: np.ndarray, model: onnx.ModelProto, peaks: Mapping[str, float]
) -> str:
    """Return the refusal of fp16: its cost, and the product with the largest value."""
    largest, layer = max(
        (
            (
                max(peaks.get(name, 0.0) for name in (*node.input, *node.output)),
                layer_name(node, model.graph),
            )
            for node in model.graph.node
            if node.op_type in PRODUCTS
        ),
        default=(0.0, "none"),
    )
    least = cosines.min()
    cost = (
        f"the least cosine with {FP32} is {least:.5f}, below the {MIN_HALF_COSINE} required"
        if np.isfinite(least)
        else "some vectors are NaN or infinite"
    )
    return (
        f"{full} loses accuracy in {FP16}: {cost}. Its largest value is {largest:,.0f}, at"
        f" {layer}; {FP16} reaches {LARGEST:,.0f}. Nothing was written; use the file in {FP32}."
    )


# int8 ---------------------------------------------------------------------------------------------


def _write_int8(
    full: Path,
    manifest: Manifest,
    out: Path,
    folder: Path,
    source: Source,
    on_step: OnStep,
) -> Manifest:
    model = _quantizable(full)
    on_step(f"calibrating on {counted(min(CALIBRATION_IMAGES, len(source)), 'image')}")
    calibration = _prepared(thinned(source, CALIBRATION_IMAGES), full)
    ranges = observe_ranges(model, _batches(calibration))
    by_loss: list[str] | None = None  # measured only if quality is lost
    kept: list[str] = []
    draft = folder / "draft.onnx"
    while True:
        seal(quantize_static(model, ranges, keep_float=kept), manifest, draft)
        on_step(f"timing it against {FP32} and bf16{_with_kept(kept)}")
        speed = _speed(full, draft, calibration)
        if speed.gain <= 1:
            raise GateError(
                f"{INT8} is not faster on this machine: {speed.rates[speed.lowered]:.1f} images/s"
                f" by {speed.lowered}, {speed.rates[speed.fastest]:.1f} by {speed.fastest}"
                f"{_with_kept(kept)}; nothing was written. Use the file in {FP32}."
            )
        on_step("searching edited copies with it")
        loss = _loss(source, full, draft, speed.lowered)
        if loss.recall_lost_at_most <= MAX_RECALL_LOST:
            break
        if by_loss is None:
            on_step("measuring which products lose most")
            by_loss = _by_sensitivity(
                model, ranges, calibration[:SENSITIVITY_IMAGES], folder, manifest
            )
        num_kept = len(kept) + max(1, len(by_loss) // 12)
        if num_kept >= len(by_loss):
            raise GateError(
                f"{INT8} loses {loss.recall_lost:.2%} of copy recall@1 (up to"
                f" {loss.recall_lost_at_most:.2%} at 95 % confidence; {MAX_RECALL_LOST:.1%} is"
                f" allowed) at {speed.gain:.2f} times the speed{_with_kept(kept)}; nothing was"
                " written."
            )
        kept = by_loss[:num_kept]
    figures: dict[str, Any] = {
        "least_cosine": loss.least_cosine,
        "mean_cosine": loss.mean_cosine,
        "recall_lost": loss.recall_lost,
        "recall_lost_at_most": loss.recall_lost_at_most,
        "num_queries": loss.num_queries,
        "calibrated_on": counted(len(calibration), "image"),
        "images_per_s": {f"{run}": round(rate, 2) for run, rate in speed.rates.items()},
        "speedup": round(speed.gain, 3),
        "kept_in_float": kept,
    }
    return _finish(
        draft, read_manifest(full), dataclasses.replace(manifest, quantization=figures), out
    )


def _quantizable(full: Path) -> onnx.ModelProto:
    """Read the model. Raises InputError if it is too large or has no product for int8."""
    model = with_float_weights(load_onnx(full))
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_INLINE_BYTES:
        raise InputError(
            f"{full} has more than 2 GB of weights, too many to calibrate; use --precision {FP16}."
        )
    if not quantizable_nodes(model):
        raise InputError(
            f"{full} has no matrix product that int8 would speed up; use it in {FP32}."
        )
    return model


def _prepared(source: Source, full: Path) -> np.ndarray:
    """Return the readable images (N, H, W, 3) uint8 at the model's size. Raises InputError if
    all of them fail."""
    embedder = Embedder(full, backend="onnxruntime")
    images = []
    for index in range(len(source)):
        try:
            images.append(embedder.prepare(source.read(index), name=source.key(index)))
        except InputError:
            # Calibration needs only some; `featkit embed` will report the images it cannot read.
            continue
    if not images:
        raise InputError(
            f"{source.name} has no image that can be read; pass photos like those you will embed."
        )
    return np.stack(images)


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    return (
        images[start : start + CALIBRATION_BATCH]
        for start in range(0, len(images), CALIBRATION_BATCH)
    )


@dataclass(frozen=True)
class _Speed:
    """Images per second of every session of both files, and the fastest of each."""

    rates: dict[Run, float]
    fastest: Run  # of the full-precision file
    lowered: Run  # of the int8 file

    @property
    def gain(self) -> float:
        return self.rates[self.lowered] / self.rates[self.fastest]


def _speed(full: Path, draft: Path, images: np.ndarray) -> _Speed:
    """Time every session of both files in turns."""
    embedders = {
        run: Embedder(file, backend=run.backend, precision=run.precision, threads=1)
        for file in (full, draft)
        for run in offered_runs(read_manifest(file))
    }
    rates = images_per_second(
        embedders, images, seconds=TIMED_SECONDS, callers=usable_cpus(), rounds=TIMED_ROUNDS
    )
    lowered = [run for run in rates if run.precision == INT8]
    others = [run for run in rates if run.precision != INT8]
    return _Speed(
        rates,
        fastest=max(others, key=rates.__getitem__),
        lowered=max(lowered, key=rates.__getitem__),
    )


def _loss(source: Source, full: Path, draft: Path, run: Run) -> Agreement:
    """Measure the edited copies that the lower precision no longer finds, on GATE_QUERIES
    queries."""
    reference = reference_run(read_manifest(full))
    images = thinned(source, GATE_QUERIES)
    ours = Embedder(draft, backend=run.backend, precision=run.precision)
    theirs = Embedder(full, backend=reference.backend, precision=reference.precision)
    agreements, _failures = compare_runs(
        images,
        theirs,
        [ours],
        num_edits=-(-GATE_QUERIES // len(images)),  # rounded up
    )
    return agreements[0]


def _by_sensitivity(
    model: onnx.ModelProto,
    ranges: dict[str, ChannelRange],
    images: np.ndarray,
    folder: Path,
    manifest: Manifest,
) -> list[str]:
    """Return the names of the products, most sensitive first: those that change the vectors most
    when only they are in int8."""
    names = quantizable_nodes(model)
    draft = folder / "alone.onnx"
    seal(model, manifest, draft)
    expected = Embedder(draft, backend="onnxruntime").infer(images)
    mean_cosine = {}
    for name in names:
        others = [other for other in names if other != name]
        seal(quantize_static(model, ranges, keep_float=others), manifest, draft)
        vectors = Embedder(draft, backend="onnxruntime").infer(images)
        cosines = np.einsum("nd,nd->n", expected, vectors, dtype=np.float64)
        mean_cosine[name] = float(cosines.mean())
    return sorted(names, key=mean_cosine.__getitem__)


def _with_kept(kept: Sequence[str]) -> str:
    return f" with {len(kept)} product{'s' * (len(kept) > 1)} left in float" if kept else ""


def _finish(draft: Path, full: Manifest, manifest: Manifest, out: Path) -> Manifest:
    """Write the measured draft with its figures. It counts as equal to the full file if its least
    cosine reaches PROVEN_COSINE."""
    proven = (full.fingerprint,) if manifest.quantization["least_cosine"] >= PROVEN_COSINE else ()
    manifest = dataclasses.replace(manifest, proven_equal_to=proven)
    external = read_manifest(draft).external
    model = onnx.load(str(draft), load_external_data=False)
    return seal(model, manifest, out, folder=draft.parent if external else None)
