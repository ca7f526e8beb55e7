"""Fit a whitening to images with the model file that it will be folded into, for one export."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featkit.backends import FP32
from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.modelfile import read_manifest
from featkit.sources import Source
from featkit.whitening import Whitening, check_dim, check_parts, fit_whitening
from featkit.wording import counted
from featkit.workers import Workers, workers_for
from featkit_export.report import OnStep

PROGRESS_INTERVAL_S = 5.0


@dataclass
class Fitted:
    """A whitening, and (key, reason) of the images that could not be read."""

    whitening: Whitening
    failures: list[tuple[str, str]]

    def remark(self, source: Source) -> str:
        """Return a sentence on the fit, for the report of the export."""
        share = f"{self.whitening.explained:.1%}"
        text = (
            f"The whitening was fitted to {self.whitening.num_vectors:,} of"
            f" {counted(len(source), 'image')} in {source.name} and keeps {share} of their variance"
        )
        if not self.failures:
            return f"{text}."
        key, reason = self.failures[0]
        return (
            f"{text}; {len(self.failures):,} could not be read, the first of them {key}: {reason}"
        )


def fit_to_images(
    source: Source,
    model: Path,
    *,
    dim: int,
    power: float,
    parts: tuple[int, ...] = (),
    on_step: OnStep,
) -> Fitted:
    """Embed the images of a source by a model file without whitening, and fit a whitening to them.

    dim, power, parts: see `fit_whitening`. Images that cannot be read are left out. Memory holds
    the covariance and a few batches, whatever the number of images. on_step is called every 5 s
    with the number of images done.

    InputError if `dim` exceeds the model's width, if `parts` are not that wide together, or if too
    few images can be read.
    """
    manifest = read_manifest(model)
    check_dim(dim, width=manifest.width)
    check_parts(parts, width=manifest.width)
    embedder = Embedder(model, backend="onnxruntime", precision=FP32, threads=1)
    run = _Run(source, embedder, on_step)
    with closing(run.blocks()) as blocks:
        whitening = fit_whitening(blocks, dim=dim, model=manifest.made_of, power=power, parts=parts)
    return Fitted(whitening, run.failures)


@dataclass
class _Run:
    """One pass over the images, which collects failures and reports progress."""

    source: Source
    embedder: Embedder
    on_step: OnStep
    failures: list[tuple[str, str]] = field(default_factory=list)

    def blocks(self) -> Generator[np.ndarray]:
        """Yield the vectors (N, D) of the readable images, a batch at a time."""
        total, size = len(self.source), self.embedder.batch_size
        turns = [range(start, min(start + size, total)) for start in range(0, total, size)]
        self.on_step(f"fitting the whitening to {counted(total, 'image')}")
        workers = Workers(self.source, self.embedder, workers_for(self.embedder))
        started = reported = time.monotonic()
        try:
            for turn, rows in zip(turns, workers.run(turns), strict=True):
                vectors = [row.embedding for row in rows if row.embedding is not None]
                self.failures += [(row.key, row.error) for row in rows if row.error is not None]
                if vectors:
                    yield np.stack(vectors)
                now = time.monotonic()
                if now - reported >= PROGRESS_INTERVAL_S:
                    reported = now
                    self._report(turn.stop, now - started)
        finally:
            workers.stop()
        if len(self.failures) == total:
            raise InputError(
                f"None of the {counted(total, 'image')} in {self.source.name} can be read, so no"
                f" whitening can be fitted to them; the first is {self.failures[0][0]}:"
                f" {self.failures[0][1]}"
            )

    def _report(self, done: int, seconds: float) -> None:
        rate, total = done / seconds, len(self.source)
        failed = f", {len(self.failures):,} failed" if self.failures else ""
        self.on_step(
            f"fitting the whitening: {done:,} of {total:,} images, {rate:,.1f} images/s{failed},"
            f" {(total - done) / rate:,.0f} s left"
        )
