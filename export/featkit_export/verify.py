"""The proof of an export: graph and source agree at several sizes and batches before it is
written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageDraw

from featkit.errors import FeatkitError
from featkit.modelfile import EMBEDDING, INPUT
from featkit.wording import first_line
from featkit_export.report import ExportError

MIN_COSINE = 0.99999
MAX_ABS = 1e-4


class ParityError(ExportError):
    """The exported graph does not compute what its source computes; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison of an output: the smallest cosine of an image, and the largest difference of
    an element.

    The difference is divided by the output's root mean square if that is above 1, because patch
    tokens do not have unit length.
    """

    batch: int
    height: int
    width: int
    output: str = EMBEDDING
    min_cosine: float
    max_abs: float

    @property
    def holds(self) -> bool:
        """True if both values are within bounds."""
        return self.min_cosine >= MIN_COSINE and self.max_abs <= MAX_ABS


def cases_for(
    *, height: int, width: int, patch: int, larger: int | None = None, fixed: bool = False
) -> list[tuple[int, int, int]]:
    """Return the batches (batch, height, width) to compare at.

    They are one image at the native size, three at a smaller square, a larger square and a
    rectangle, and eight at the smaller square. For a graph of one size: 1, 3 and 8 images of it.

    larger: side of the larger square, such as a position table's; by default 1.5 times the native
    one.
    """
    if fixed:
        return [(batch, height, width) for batch in (1, 3, 8)]
    small = max(patch, min(height, width) // 2 // patch * patch)
    large = larger or (max(height, width) * 3 // 2 // patch) * patch
    return [
        (1, height, width),
        (3, small, small),
        (3, large, large),
        (3, height + 2 * patch, width + 5 * patch),
        (8, small, small),
    ]


def compare(
    reference: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    session: ort.InferenceSession,
    cases: Sequence[tuple[int, int, int]],
) -> list[Parity]:
    """Run both on drawn images of each case and return one Parity per case and output.

    reference: maps images (N, H, W, 3) uint8 to outputs by name. Raises ParityError if either
    fails. A graph fails on a case that its reference takes when tracing fixed a size.
    """
    parities = []
    for batch, height, width in cases:
        images = draw_images(batch, height=height, width=width)
        try:
            expected = reference(images)
        except FeatkitError:
            raise
        except Exception as error:  # torch raises many classes
            raise ParityError(
                f"The model itself fails on batch {batch}, {height}×{width} ({first_line(error)})",
                "nothing was written. Pass the size that it accepts as --size",
            ) from error
        try:
            got = dict(zip(expected, session.run(list(expected), {INPUT: images}), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise ParityError(
                f"The exported graph fails on batch {batch}, {height}×{width}, which its model"
                f" takes ({first_line(error)})",
                "nothing was written",
            ) from error
        for name, value in expected.items():
            cosine, difference = _distance(value.astype(np.float64), got[name].astype(np.float64))
            parities.append(
                Parity(
                    batch=batch,
                    height=height,
                    width=width,
                    output=name,
                    min_cosine=cosine,
                    max_abs=difference,
                )
            )
    return parities


def open_session(model: str | bytes) -> ort.InferenceSession:
    """Open a model with ONNX Runtime on the CPU, without its log. Raises onnxruntime's own
    exceptions."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised anyway
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_proven(model: str | bytes) -> ort.InferenceSession:
    """Open a graph that was just made. Raises ParityError if ONNX Runtime does not load it."""
    try:
        return open_session(model)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise ParityError(
            f"ONNX Runtime does not load the exported graph ({first_line(error)})",
            "nothing was written. Update onnxruntime, or report the architecture",
        ) from error


def require_parity(comparisons: Sequence[Parity]) -> dict[str, float]:
    """Return the worst values, for the manifest. Raises ParityError naming the first comparison out
    of bounds."""
    for case in comparisons:
        if not case.holds:
            raise ParityError(
                f"The exported graph differs from its model in {case.output}, batch {case.batch},"
                f" {case.height}×{case.width}: cosine {case.min_cosine:.7f} (at least"
                f" {MIN_COSINE}), largest difference {case.max_abs:.2e} (at most {MAX_ABS})",
                "nothing was written. Please report the architecture",
            )
    return {
        "min_cosine": min(case.min_cosine for case in comparisons),
        "max_abs": max(case.max_abs for case in comparisons),
    }


def _distance(expected: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Return the smallest cosine of an image and the largest difference. NaN in either array gives
    NaN, which no bound accepts."""
    if expected.shape != got.shape:
        return float("nan"), float("nan")
    ours, theirs = (value.reshape(len(value), -1) for value in (expected, got))
    cosines = (ours * theirs).sum(axis=1) / (
        np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    )
    scale = max(1.0, float(np.sqrt(np.mean(ours**2))))
    return float(cosines.min()), float(np.abs(ours - theirs).max()) / scale


def draw_images(count: int, *, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw images (count, height, width, 3) uint8 with the edges, flat areas, gradients and slight
    noise of photographs."""
    rng = np.random.default_rng([seed, height, width])
    images = []
    for _ in range(count):
        corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(image)
        for _ in range(8):
            x, y = (
                sorted(rng.integers(0, width, 2).tolist()),
                sorted(rng.integers(0, height, 2).tolist()),
            )
            color = tuple(rng.integers(0, 256, 3).tolist())
            (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(
                (x[0], y[0], x[1], y[1]), fill=color
            )
        noise = rng.normal(0, 6, (height, width, 3))
        images.append(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return np.stack(images)
