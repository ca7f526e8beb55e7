"""Predict a run's duration and memory from its first steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from featkit import resources

WARM_STEPS, MEASURED_STEPS = 2, 10  # the first steps start workers and fill caches


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rest of a run, extrapolated from MEASURED_STEPS steps."""

    steps_left: int
    images_per_s: float  # over all processes
    hours_left: float
    memory_bytes: int  # peak of the accelerator, or of this process without its workers
    device: str


class Planner:
    """Time the first steps and plan the rest."""

    def __init__(self, *, batch_size: int, device: torch.device) -> None:
        self.batch_size, self.device = batch_size, device
        self._steps, self._since = 0, 0.0

    def finished_step(self, *, steps_left: int) -> Plan | None:
        """Count a step; return the plan after the last measured one, else None."""
        self._steps += 1
        if self._steps == WARM_STEPS:
            self._since = time.perf_counter()
        if self._steps != WARM_STEPS + MEASURED_STEPS:
            return None
        images_per_s = MEASURED_STEPS * self.batch_size / (time.perf_counter() - self._since)
        return Plan(
            steps_left=steps_left,
            images_per_s=images_per_s,
            hours_left=steps_left * self.batch_size / images_per_s / 3600,
            memory_bytes=peak_memory(self.device),
            device=(
                torch.cuda.get_device_name(self.device)
                if self.device.type == "cuda"
                else self.device.type
            ),
        )


def peak_memory(device: torch.device) -> int:
    """Return peak memory in bytes: what torch allocated on a CUDA device, else this process's
    resident set; 0 if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resources.peak_memory()
