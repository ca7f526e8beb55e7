"""The proof of an adopted graph: its outputs equal the original's at every size the original
accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import EMBEDDING, INPUT, PATCHES
from featkit.wording import one_line
from featkit_export import verify
from featkit_export.half import LARGEST, placed
from featkit_export.half_proof import (
    MIN_HALF_COSINE,
    embed_each,
    emulate,
    first_overflow,
    proof_images,
)
from featkit_export.original import LONGEST_CAUSE, DoesNotTake, Original
from featkit_export.report import LeftOut
from featkit_export.verify import (
    MAX_ABS,
    Parity,
    ParityError,
    cases_for,
    compare,
    draw_images,
)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The comparisons of an adopted graph with its original, and what they show."""

    comparisons: list[Parity]
    left_out: list[LeftOut]
    holds_at_every_size: bool  # among the sizes tried
    # measured with 3 and 8 images; also False if operators take scales from the batch
    is_batch_invariant: bool


def compare_with_original(
    original: Original, session: ort.InferenceSession, *, outputs: tuple[str, ...], is_fixed: bool
) -> Findings:
    """Compare the adopted graph with the original at several sizes and batches.

    One image is compared at every size, then several images at the sizes that the original took.
    is_fixed: the graph has one size, so only the batch varies.
    """
    geometry = original.geometry
    native = {"height": geometry.height, "width": geometry.width, "patch": geometry.patch}
    cases = cases_for(**native, fixed=is_fixed)
    comparisons: list[Parity] = []
    left_out: list[LeftOut] = []

    def compare_each(cases: Sequence[tuple[int, int, int]]) -> None:
        for batch, height, width in cases:
            try:
                comparisons.extend(
                    _compare_once(original, session, (batch, height, width), outputs=outputs)
                )
            except DoesNotTake as error:
                left_out.append(LeftOut(batch=batch, height=height, width=width, reason=str(error)))

    compare_each([(1, *size) for size in dict.fromkeys(case[1:] for case in cases)])
    holds_at_every_size = not is_fixed and not left_out
    several = [case for case in cases if case[0] > 1]
    if original.interface.batch != 1:
        if not is_fixed and not holds_at_every_size:
            # The file will be fixed at its native size: larger batches matter at that size only.
            several = [case for case in cases_for(**native, fixed=True) if case[0] > 1]
        compare_each(several)
    takes_several = any(case.batch > 1 for case in comparisons) and not any(
        case.batch > 1 for case in left_out
    )
    return Findings(
        comparisons=comparisons,
        left_out=left_out,
        holds_at_every_size=holds_at_every_size,
        is_batch_invariant=takes_several
        and not original.is_dynamic
        and not _depends_on_batch(session, several[-1]),
    )


def _compare_once(
    original: Original,
    session: ort.InferenceSession,
    case: tuple[int, int, int],
    *,
    outputs: tuple[str, ...],
) -> list[Parity]:
    def reference(images: np.ndarray) -> dict[str, np.ndarray]:
        vectors, tokens = original.run(images)
        given = {EMBEDDING: vectors, PATCHES: tokens}
        return {name: value for name in outputs if (value := given[name]) is not None}

    try:
        return compare(reference, session, [case])
    except DoesNotTake:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise ParityError(
            f"The adopted graph fails on {case[0]} × {case[1]}×{case[2]}, which the original takes"
            f" ({one_line(error, most=LONGEST_CAUSE)})",
            "nothing was written, please report the file",
        ) from error


def remarks_on_half(
    adopted: onnx.ModelProto, geometry: Geometry, folder: Path, *, name: str
) -> list[str]:
    """Check a graph with fp16 weights in true half arithmetic, and return a remark on the result.

    A CPU computes fp16 nodes in fp32, so running the unchanged graph would hide an overflow.
    Returns an empty list for a graph without fp16 weights. Raises InputError if a value overflows
    or a cosine falls below MIN_HALF_COSINE.
    """
    if not any(weight.data_type == TensorProto.FLOAT16 for weight in adopted.graph.initializer):
        return []
    images = proof_images(geometry.height, geometry.width)
    try:
        emulated = emulate(adopted, folder)
        session = verify.open_session(emulated.session_input)
        got = embed_each(session, images)
    # An operator may have no fp32 form; onnxruntime's exceptions share no base but Exception.
    except Exception:
        return [
            f"{name} computes in fp16, but was compared on a CPU, which computes fp16 nodes in"
            " fp32."
        ]
    draft = placed(adopted, folder, "half-draft.onnx")
    expected = embed_each(verify.open_session(draft.session_input), images)
    least = float(np.einsum("nd,nd->n", expected, got, dtype=np.float64).min())
    if not least >= MIN_HALF_COSINE:  # also refuses NaN
        layer = first_overflow(emulated.model, images, folder)
        where = f"; values first exceed fp16's {LARGEST:,.0f} at {layer}" if layer else ""
        raise InputError(
            f"{name} loses accuracy in fp16: in true half arithmetic the least cosine of its"
            f" vectors is {least:.5f}, below the {MIN_HALF_COSINE} required{where}. Use the file in"
            " fp32, such as onnx/model.onnx."
        )
    return [f"In true half arithmetic the least cosine over {len(images)} images is {least:.6f}."]


def _depends_on_batch(session: ort.InferenceSession, case: tuple[int, int, int]) -> bool:
    """Return whether the first image's vector changes with the other images of its batch."""
    batch, height, width = case
    images = draw_images(batch, height=height, width=width)
    together, alone = (
        session.run([EMBEDDING], {INPUT: images[:count]})[0][0] for count in (batch, 1)
    )
    return not np.abs(together - alone).max() <= MAX_ABS  # written so that NaN depends too
