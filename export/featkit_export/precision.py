"""A model file in a lower precision, made of one in full precision and measured against it before
it is written.

fp16 (half.py) is for graphics cards, whose speed is not measured here; half_proof.py computes as
they do. int8 (int8.py) is for processors: it is written where it is faster than the fastest session
in full precision or bf16 on this machine, and finds edited copies as well as that file does. Where
quality is lost, the products that lose most go back to float, a few at a time, until it holds or
nothing is gained.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from featkit.atomic import TEMPORARY_MARK, explain_os_errors
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
from featkit_export.int8 import ChannelRange, observe_ranges, quantizable_nodes, quantize_static
from featkit_export.original import load_onnx, load_session
from featkit_export.seal import seal
from featkit_export.verify import open_proven

CALIBRATION_IMAGES = 64
CALIBRATION_BATCH = 4
GATE_QUERIES = 2000
MAX_RECALL_LOST = 0.005  # of copy recall@1, at the upper 95 % bound
PROVEN_COSINE = LEAST_COSINE  # what lets the vectors of two runs meet lets those of two files
TIMED_ROUNDS = 7
TIMED_SECONDS = 14.0
SENSITIVITY_IMAGES = 16


class GateError(FeatkitError):
    """A lower precision costs quality or gains no speed; nothing was written."""


def lower(
    full: Path,
    out: Path,
    *,
    precision: Literal["fp16", "int8"],
    images: Path | None = None,
    name: str | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
) -> Manifest:
    """Write the model file `full` in another precision to `out`, and return its manifest.

    images: for int8, whatever `featkit embed` takes. InputError when `full` is in a lower
    precision already or the images cannot be used; GateError, with the figures, when the
    precision is refused.
    """
    manifest = read_manifest(full)
    if manifest.precision != FP32:
        raise InputError(
            f"{full} is in {manifest.precision} already; name the file in {FP32} that it was made"
            " from."
        )
    manifest = dataclasses.replace(
        manifest,
        precision=precision,
        name=name or manifest.name,
        external=None,
        parity={},
        proven_equal_to=(),
    )
    with explain_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{out.name}{TEMPORARY_MARK}", dir=out.parent
        ) as folder:
            if precision == FP16:
                return _write_half(full, manifest, out, Path(folder), on_step)
            assert images is not None
            return _write_int8(full, manifest, out, Path(folder), open_source(images), on_step)


# fp16 ---------------------------------------------------------------------------------------------


def _write_half(
    full: Path, manifest: Manifest, out: Path, folder: Path, on_step: Callable[[str], None]
) -> Manifest:
    """Products whose numbers come near what a half holds stay in fp32; what then differs too much
    is refused."""
    model, geometry = load_onnx(full), manifest.geometry
    images = proof_images(geometry.height, geometry.width)
    expected = embed_each(load_session(full), images)
    if not np.isfinite(expected).all():
        raise InputError(
            f"{full} gives vectors that are not finite numbers, in {FP32} already; export its"
            " weights again."
        )
    on_step(f"observing how large its numbers get on {counted(len(images), 'image')}")
    peaks = observe_peaks(model, images, folder)
    kept = kept_in_float(model, peaks)
    on_step("writing the graph in half precision")
    half = to_half(model, folder, peaks)
    whole = onnx.load(str(half.path)) if half.path else half.model
    on_step(f"comparing it with {FP32} in true half arithmetic")
    emulated = emulate(whole, folder)
    cosines = np.einsum(
        "nd,nd->n",
        expected,
        embed_each(open_proven(emulated.session_input), images),
        dtype=np.float64,
    )
    if not cosines.min() >= MIN_HALF_COSINE:  # NaN is below it as well
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
    """Why fp16 is refused: what it costs, and the product whose numbers come nearest to what a half
    holds."""
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
        f"the least cosine with {FP32} is {least:.5f}"
        if np.isfinite(least)
        else "some vectors are no numbers"
    )
    return (
        f"{full} does not bear {FP16}: {cost}, where {MIN_HALF_COSINE} is required. Its largest"
        f" number is {largest:,.0f}, at {layer}; {FP16} holds {LARGEST:,.0f}. Nothing was written;"
        f" use the file in {FP32}."
    )


# int8 ---------------------------------------------------------------------------------------------


def _write_int8(
    full: Path,
    manifest: Manifest,
    out: Path,
    folder: Path,
    source: Source,
    on_step: Callable[[str], None],
) -> Manifest:
    model = load_onnx(full)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_INLINE_BYTES:
        raise InputError(
            f"{full} has more than 2 GB of weights, which are not calibrated here; use --precision"
            f" {FP16}."
        )
    if not quantizable_nodes(model):
        raise InputError(
            f"{full} has no product by weights that int8 would make faster; use it in {FP32}."
        )
    on_step(f"calibrating on {counted(min(CALIBRATION_IMAGES, len(source)), 'image')}")
    calibration = _prepared(thinned(source, CALIBRATION_IMAGES), full)
    ranges = observe_ranges(model, _batches(calibration))
    order: list[str] | None = None
    kept: list[str] = []
    draft = folder / "draft.onnx"
    while True:
        seal(quantize_static(model, ranges, keep_float=kept), manifest, draft)
        on_step(f"timing it beside {FP32} and bf16{_with_kept(kept)}")
        rates = _rates(full, draft, calibration)
        fastest, lowered = (_best(rates, lower=lower) for lower in (False, True))
        speed = {f"{run}": round(rate, 2) for run, rate in rates.items()}
        gain = rates[lowered] / rates[fastest]
        if gain <= 1:
            raise GateError(
                f"{INT8} is not faster here: {rates[lowered]:.1f} images/s by {lowered},"
                f" {rates[fastest]:.1f} by {fastest}{_with_kept(kept)}; nothing was written. Use"
                f" the file in {FP32}."
            )
        on_step("looking for copies with it")
        loss = _loss(source, full, draft, lowered)
        if loss.recall_lost_at_most <= MAX_RECALL_LOST:
            break
        if order is None:
            on_step("measuring which products lose most")
            order = _by_sensitivity(
                model, ranges, calibration[:SENSITIVITY_IMAGES], folder, manifest
            )
        more = len(kept) + max(1, len(order) // 12)
        if more >= len(order):
            raise GateError(
                f"{INT8} loses {loss.recall_lost:.2%} of copy recall@1 (at most"
                f" {loss.recall_lost_at_most:.2%} at 95 %, where {MAX_RECALL_LOST:.1%} is allowed)"
                f" for {gain:.2f} times the speed{_with_kept(kept)}; nothing was written."
            )
        kept = order[:more]
    figures: dict[str, Any] = {
        "least_cosine": loss.least_cosine,
        "mean_cosine": loss.mean_cosine,
        "recall_lost": loss.recall_lost,
        "recall_lost_at_most": loss.recall_lost_at_most,
        "num_queries": loss.num_queries,
        "calibrated_on": counted(len(calibration), "image"),
        "images_per_s": speed,
        "speedup": round(gain, 3),
        "kept_in_float": kept,
    }
    return _finish(
        draft, read_manifest(full), dataclasses.replace(manifest, quantization=figures), out
    )


def _prepared(source: Source, full: Path) -> np.ndarray:
    """Images (N, H, W, 3) uint8 at the model's size, of those that can be read. InputError for
    none."""
    embedder = Embedder(full, backend="onnxruntime")
    found = []
    for number in range(len(source)):
        try:
            found.append(embedder.prepare(source.read(number), name=source.key(number)))
        except InputError:
            # calibration only needs some; what embeds them later says which cannot be read
            continue
    if not found:
        raise InputError(
            f"{source.name} has no image that can be read; name photographs like those to be"
            " embedded."
        )
    return np.stack(found)


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    return (
        images[start : start + CALIBRATION_BATCH]
        for start in range(0, len(images), CALIBRATION_BATCH)
    )


def _rates(full: Path, draft: Path, images: np.ndarray) -> dict[Run, float]:
    """Images a second of every session of both files, in turns."""
    embedders = {
        run: Embedder(file, backend=run.backend, precision=run.precision, threads=1)
        for file in (full, draft)
        for run in offered_runs(read_manifest(file))
    }
    return images_per_second(
        embedders, images, seconds=TIMED_SECONDS, callers=usable_cpus(), rounds=TIMED_ROUNDS
    )


def _best(rates: dict[Run, float], *, lower: bool) -> Run:
    """The fastest run of the lower precision, or of the others."""
    return max(
        (run for run in rates if (run.precision == INT8) == lower), key=lambda run: rates[run]
    )


def _loss(source: Source, full: Path, draft: Path, run: Run) -> Agreement:
    """Copies that the lower precision no longer finds, on GATE_QUERIES edited images."""
    manifest = read_manifest(full)
    reference = reference_run(manifest)
    part = thinned(source, GATE_QUERIES)
    ours = Embedder(draft, backend=run.backend, precision=run.precision)
    theirs = Embedder(full, backend=reference.backend, precision=reference.precision)
    agreements, _failures = compare_runs(
        part, theirs, [ours], num_edits=-(-GATE_QUERIES // len(part))
    )
    return agreements[0]


def _by_sensitivity(
    model: onnx.ModelProto,
    ranges: dict[str, ChannelRange],
    images: np.ndarray,
    folder: Path,
    manifest: Manifest,
) -> list[str]:
    """Names of the products, those first whose int8 alone turns vectors most."""
    names = quantizable_nodes(model)
    draft = folder / "alone.onnx"
    seal(model, manifest, draft)
    expected = Embedder(draft, backend="onnxruntime").infer(images)
    turned = {}
    for name in names:
        seal(
            quantize_static(model, ranges, keep_float=[other for other in names if other != name]),
            manifest,
            draft,
        )
        got = Embedder(draft, backend="onnxruntime").infer(images)
        turned[name] = float(np.einsum("nd,nd->n", expected, got, dtype=np.float64).mean())
    return sorted(names, key=lambda name: turned[name])


def _with_kept(kept: Sequence[str]) -> str:
    return f" with {len(kept)} product{'s' * (len(kept) > 1)} left in float" if kept else ""


def _finish(draft: Path, full: Manifest, manifest: Manifest, out: Path) -> Manifest:
    """Write the measured draft with its figures, proven equal to the full file where its vectors
    are."""
    proven = (full.fingerprint,) if manifest.quantization["least_cosine"] >= PROVEN_COSINE else ()
    manifest = dataclasses.replace(manifest, proven_equal_to=proven)
    external = read_manifest(draft).external
    model = onnx.load(str(draft), load_external_data=False)
    return seal(model, manifest, out, folder=draft.parent if external else None)
