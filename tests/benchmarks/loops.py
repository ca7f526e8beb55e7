"""The interface of a training loop under benchmark, and featkit's; `lightly_loops` has the rest."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path
from typing import Generic, TypeVar

import torch

from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.images.batches import crop_loader
from featkit_train.images.crops import Crops
from featkit_train.images.loading import batches_of
from featkit_train.methods import Labels
from featkit_train.run_parts import RunParts
from tests.benchmarks.flops import synchronize

Batch = TypeVar("Batch")


class Loop(ABC, Generic[Batch]):
    """Batches of `images` images, and steps on them."""

    images: int
    device: torch.device
    waited_s = 0.0  # for batches

    @abstractmethod
    def next(self) -> Batch:
        """The next batch as its loader gives it."""

    @abstractmethod
    def step(self, batch: Batch) -> None:
        """One optimization step on it."""

    def steps(self, count: int) -> None:
        """Some steps, each on a new batch."""
        for _ in range(count):
            started = time.perf_counter()
            batch = self.next()
            self.waited_s += time.perf_counter() - started
            self.step(batch)

    def images_per_s(self, count: int) -> float:
        """Return images per second over some steps, including data loading."""
        return self._rate(count, None)

    def images_per_s_on(self, batch: Batch, count: int) -> float:
        """Return images per second over some steps on one batch in memory."""
        return self._rate(count, batch)

    def _rate(self, count: int, batch: Batch | None) -> float:
        synchronize(self.device)
        started = time.perf_counter()
        if batch is None:
            self.steps(count)
        else:
            for _ in range(count):
                self.step(batch)
        synchronize(self.device)
        return count * self.images / (time.perf_counter() - started)


class FeatkitLoop(Loop[Crops]):
    """featkit's data loading and step, without the measuring and writing of a run."""

    def __init__(
        self, config: TrainConfig, source: Source, out: Path, *, labels: Labels | None = None
    ) -> None:
        self.run = RunParts(config, [source], out, labels=labels)
        self.engine, self.device, self.images = (
            self.run.engine,
            self.run.device,
            config.run.batch_size,
        )
        self.engine.method.start_run()
        self.number = 0
        self._batches: Generator[Crops] = batches_of(
            crop_loader(self.run.dataset, self.run.order, workers=config.run.workers)
        )

    def next(self) -> Crops:
        """Crops from the workers."""
        return next(self._batches)

    def step(self, batch: Crops) -> None:
        """The engine's step."""
        self.engine.step(batch, self.number)
        self.number += 1
