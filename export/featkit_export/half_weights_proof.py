"""Write a model file with its weights in half precision, after two measurements.

Strict: the file's outputs equal those of the original with rounded weights, within the bounds of
every export. Cost: its vectors are compared with those of the original itself, within the bound of
fp16 files.

Letters: N images, (H, W) pixels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from featkit.backends import FP16, FP32
from featkit.errors import InputError
from featkit.evaluate.agreement import LEAST_COSINE
from featkit.modelfile import INPUT, Manifest, read_manifest
from featkit_export.half import placed
from featkit_export.half_proof import (
    EXTREMES,
    MIN_HALF_COSINE,
    NUM_DRAWN,
    embed_each,
    proof_images,
)
from featkit_export.half_weights import (
    MIN_VALUES,
    in_range,
    large_weights,
    with_half_weights,
    with_rounded_weights,
)
from featkit_export.original import load_onnx, load_session
from featkit_export.precision import GateError
from featkit_export.report import OnStep, no_step
from featkit_export.seal import drafting_folder, seal
from featkit_export.traced import Traced
from featkit_export.verify import Parity, cases_for, compare, open_proven, require_parity


def halve_weights(
    full: Path, out: Path, *, name: str | None = None, on_step: OnStep = no_step
) -> Manifest:
    """Write the model file `full` with its large weights in fp16 to `out`; return its manifest.

    Raises InputError if `full` is not in fp32 throughout or has no weight to store in fp16;
    GateError, with nothing written, if rounding costs too much; ParityError if the graph does not
    compute what `full` does with rounded weights.
    """
    manifest = read_manifest(full)
    stored = manifest.weight_precision or manifest.precision
    if stored != FP32:
        raise InputError(
            f"{full} already has weights in {stored}; convert the {FP32} file that it was made"
            " from."
        )
    with drafting_folder(out) as folder:
        return _write(full, manifest, out, folder, name or manifest.name, on_step)


def _write(
    full: Path, manifest: Manifest, out: Path, folder: Path, name: str, on_step: OnStep
) -> Manifest:
    on_step("rounding the weights")
    model = load_onnx(full)
    large = large_weights(model)
    halved = {tensor.name for tensor in large if in_range(tensor)}
    if not halved:
        raise InputError(
            f"{full} has no weight of {MIN_VALUES:,} values or more in {FP16}'s range, so it would"
            f" not get smaller; use it in {FP32}."
        )
    images = proof_images(manifest.geometry.height, manifest.geometry.width)
    expected = embed_each(load_session(full), images)
    if not np.isfinite(expected).all():
        raise InputError(
            f"{full} gives vectors with NaN or infinity even in {FP32}; export its weights again."
        )
    half = placed(with_half_weights(model, halved), folder, "half-weights.onnx")
    rounded = placed(with_rounded_weights(model, halved), folder, "rounded.onnx")
    session = open_proven(half.session_input)
    on_step("comparing it with the original with rounded weights")
    parity = require_parity(_compare(rounded, session, manifest))
    on_step("measuring what rounding costs")
    cosines = np.einsum("nd,nd->n", expected, embed_each(session, images), dtype=np.float64)
    if not cosines.min() >= MIN_HALF_COSINE:  # also refuses NaN
        raise GateError(_too_lossy(full, manifest, float(cosines.min())))
    least = float(cosines.min())
    figures: dict[str, Any] = {
        "least_cosine": least,
        "mean_cosine": float(cosines.mean()),
        "compared_on": f"{NUM_DRAWN} drawn and {len(EXTREMES)} extreme images",
        "kept_in_float": [tensor.name for tensor in large if tensor.name not in halved],
    }
    changed = dataclasses.replace(
        manifest,
        name=name,
        weight_precision=FP16,
        external=None,
        parity=_worse(manifest.parity, parity),
        quantization=figures,
        proven_equal_to=(manifest.fingerprint,) if least >= LEAST_COSINE else (),
    )
    return seal(half.model, changed, out, folder=folder if half.path else None)


def _compare(rounded: Traced, session: ort.InferenceSession, manifest: Manifest) -> list[Parity]:
    """Compare all outputs with those of the graph with rounded weights, in the cases it takes."""
    reference = open_proven(rounded.session_input)
    outputs = [value.name for value in reference.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, reference.run(outputs, {INPUT: images}), strict=True))

    native = (1, manifest.geometry.height, manifest.geometry.width)
    cases = cases_for(
        height=native[1],
        width=native[2],
        patch=manifest.patch,
        fixed=manifest.fixed_size is not None,
    )
    # Some files made elsewhere take one image a call, or not every size.
    return compare(run, session, [case for case in cases if case == native or _takes(run, case)])


def _takes(run: Any, case: tuple[int, int, int]) -> bool:
    batch, height, width = case
    try:
        run(np.zeros((batch, height, width, 3), np.uint8))
    except Exception:  # onnxruntime's exceptions share no base class but Exception
        return False
    return True


def _worse(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Return the parity of two comparisons that follow each other: the worse figure of both."""
    least = min(first.get("min_cosine", 1.0), second["min_cosine"])
    largest = max(first.get("max_abs", 0.0), second["max_abs"])
    return {**first, "min_cosine": least, "max_abs": largest}


def _too_lossy(full: Path, manifest: Manifest, least: float) -> str:
    cost = (
        f"the least cosine with {FP32} is {least:.5f}, below the {MIN_HALF_COSINE} required"
        if np.isfinite(least)
        else "some vectors are NaN or infinite"
    )
    advice = (
        " Its whitening amplifies rounding in directions of little variance: keep fewer dimensions"
        " with --dim, use a lower --power, or use the file as it is."
        if manifest.whitened
        else f" Use the file with its weights in {FP32}."
    )
    return f"{full} loses accuracy with its weights in {FP16}: {cost}. Nothing was written.{advice}"
