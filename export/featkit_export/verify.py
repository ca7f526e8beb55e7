"""Proof that a model file is its torch model: compared at several sizes and batches, on pictures, before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import torch
from PIL import Image, ImageDraw

from featkit.errors import FeatkitError
from featkit.modelfile import EMBEDDING, INPUT
from featkit_export.graph import EmbeddingGraph

MIN_COSINE = 0.99999
MAX_ABS = 1e-4


class ParityError(FeatkitError):
    """The exported graph does not compute what the torch model computes; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One comparison: the smallest cosine of a picture's two vectors, and the largest difference of any number."""

    batch: int
    height: int
    width: int
    min_cosine: float
    max_abs: float

    @property
    def holds(self) -> bool:
        """Whether both figures are within bounds."""
        return self.min_cosine >= MIN_COSINE and self.max_abs <= MAX_ABS


def compare(module: EmbeddingGraph, model: onnx.ModelProto, *, height: int, width: int) -> list[Parity]:
    """Compare one picture at the native size, three at a smaller and at a rectangular one, eight at the smaller."""
    patch = module.backbone.config.patch
    smaller = (max(patch, height // 2 // patch * patch), max(patch, width // 2 // patch * patch))
    oblong = (height + 2 * patch, width + 5 * patch)
    cases = [(1, height, width), (3, *smaller), (3, *oblong), (8, *smaller)]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [_compare_once(module, session, batch=batch, height=h, width=w) for batch, h, w in cases]


def require_parity(comparisons: Sequence[Parity]) -> dict[str, float]:
    """The worst figures, for the manifest. ParityError naming the first case that does not hold."""
    for case in comparisons:
        if not case.holds:
            raise ParityError(
                f"The exported graph differs from its torch model at batch {case.batch}, {case.height}×{case.width}: cosine "
                f"{case.min_cosine:.7f} (at least {MIN_COSINE}), largest difference {case.max_abs:.2e} (at most {MAX_ABS}); "
                "nothing was written. Please report the architecture."
            )
    return {
        "min_cosine": min(case.min_cosine for case in comparisons),
        "max_abs": max(case.max_abs for case in comparisons),
    }


def _compare_once(module: EmbeddingGraph, session: ort.InferenceSession, *, batch: int, height: int, width: int) -> Parity:
    images = draw_pictures(batch, height=height, width=width)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy().astype(np.float64)
    got = session.run([EMBEDDING], {INPUT: images})[0].astype(np.float64)
    cosines = (expected * got).sum(axis=1) / (np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1))
    difference = np.abs(expected - got).max()
    # NaN compares false with every bound, so `holds` is false too.
    return Parity(batch=batch, height=height, width=width, min_cosine=float(cosines.min()), max_abs=float(difference))


def draw_pictures(count: int, *, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(count, height, width, 3) uint8 with edges, flat parts, gradients and a little noise, as pictures have them."""
    rng = np.random.default_rng([seed, height, width])
    pictures = []
    for _ in range(count):
        corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(image)
        for _ in range(8):
            x, y = sorted(rng.integers(0, width, 2).tolist()), sorted(rng.integers(0, height, 2).tolist())
            colour = tuple(rng.integers(0, 256, 3).tolist())
            (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((x[0], y[0], x[1], y[1]), fill=colour)
        noise = rng.normal(0, 6, (height, width, 3))
        pictures.append(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return np.stack(pictures)
