"""Proof that a model file is the model it was made of: compared at several sizes and batches before
it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageDraw

from featkit.errors import FeatkitError
from featkit.modelfile import EMBEDDING, INPUT

MIN_COSINE = 0.99999
MAX_ABS = 1e-4


class ParityError(FeatkitError):
    """The exported graph does not compute what the model computes; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison: the smallest cosine of an output's two values for an image, and the largest
    difference of any number.

    Differences are in units of the output's root mean square where that is above 1: patch tokens
    are not of unit length.
    """

    batch: int
    height: int
    width: int
    output: str = EMBEDDING
    min_cosine: float
    max_abs: float

    @property
    def holds(self) -> bool:
        """Whether both figures are within bounds."""
        return self.min_cosine >= MIN_COSINE and self.max_abs <= MAX_ABS


def cases_for(
    *, height: int, width: int, patch: int, larger: int | None = None, fixed: bool = False
) -> list[tuple[int, int, int]]:
    """(batch, height, width) to compare: one image at the native size; three at a smaller square,
    a larger one and a rectangle; eight at the smaller. A graph of one size only: one, three and
    eight of that.

    larger: a side worth comparing at, such as that of a position table; by default half as much
    again.
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
    """Run both on drawn images of each case: `reference` takes (N, H, W, 3) uint8 and gives the
    outputs by name.

    ParityError for a case that `reference` takes and the graph does not: a size was baked in that
    changes shapes.
    """
    found = []
    for batch, height, width in cases:
        images = draw_images(batch, height=height, width=width)
        try:
            expected = reference(images)
        except FeatkitError:
            raise
        except Exception as error:  # of torch, whose errors are of many kinds
            raise ParityError(
                f"The model itself fails on batch {batch}, {height}×{width} ({first_line(error)});"
                " nothing was written. Name the size that it is for by --size."
            ) from error
        try:
            got = dict(zip(expected, session.run(list(expected), {INPUT: images}), strict=True))
        except Exception as error:  # onnxruntime's exception classes share no base but Exception
            raise ParityError(
                f"The exported graph fails on batch {batch}, {height}×{width}, which its model"
                f" takes ({first_line(error)}); nothing was written."
            ) from error
        for name, value in expected.items():
            cosine, difference = _distance(value.astype(np.float64), got[name].astype(np.float64))
            found.append(
                Parity(
                    batch=batch,
                    height=height,
                    width=width,
                    output=name,
                    min_cosine=cosine,
                    max_abs=difference,
                )
            )
    return found


def open_session(model: str | bytes) -> ort.InferenceSession:
    """ONNX Runtime on the processor, without its remarks. Its own exceptions, of no common kind,
    when it does not load."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def open_proven(model: str | bytes) -> ort.InferenceSession:
    """The same for a graph that was just made. ParityError when ONNX Runtime does not load it."""
    try:
        return open_session(model)
    except Exception as error:  # onnxruntime's exception classes share no base but Exception
        raise ParityError(
            f"ONNX Runtime does not load the graph that was made ({first_line(error)}); nothing was"
            " written. Update onnxruntime, or report the architecture."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of what somebody else's exception says, without a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def require_parity(comparisons: Sequence[Parity]) -> dict[str, float]:
    """The worst figures, for the manifest. ParityError naming the first case that does not hold."""
    for case in comparisons:
        if not case.holds:
            raise ParityError(
                f"The exported graph differs from its model in {case.output}, batch {case.batch},"
                f" {case.height}×{case.width}: cosine {case.min_cosine:.7f} (at least"
                f" {MIN_COSINE}), largest difference {case.max_abs:.2e} (at most {MAX_ABS});"
                " nothing was written. Please report the architecture."
            )
    return {
        "min_cosine": min(case.min_cosine for case in comparisons),
        "max_abs": max(case.max_abs for case in comparisons),
    }


def _distance(expected: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Smallest cosine of an image's numbers, and largest difference; NaN, which no bound holds
    for, where either has one."""
    if expected.shape != got.shape:
        return float("nan"), float("nan")
    ours, theirs = (value.reshape(len(value), -1) for value in (expected, got))
    cosines = (ours * theirs).sum(axis=1) / (
        np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    )
    scale = max(1.0, float(np.sqrt(np.mean(ours**2))))
    return float(cosines.min()), float(np.abs(ours - theirs).max()) / scale


def draw_images(count: int, *, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8 with edges, flat parts, gradients and a little noise, as
    images have them."""
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
