"""Schedules of learning rate, momentum and temperatures, as pure functions of the step."""

from __future__ import annotations

import math


def cosine_schedule(
    step: int, *, start: float, end: float, num_steps: int, warmup_steps: int = 0
) -> float:
    """Rise linearly to `start` over the warmup, then follow half a cosine to `end` at the last
    step.

        if step < warmup_steps:
            return start * (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / (num_steps - 1 - warmup_steps)  # 0 to 1
        return end + (start - end) * (1 + cos(pi * progress)) / 2
    """
    if step < warmup_steps:
        return start * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear_schedule(step: int, *, start: float, end: float, num_steps: int) -> float:
    """Move linearly from `start` at step 0 to `end` at step `num_steps`, and stay there."""
    return end if step >= num_steps else start + (end - start) * step / num_steps


# Momentum that works best in a thousand steps, and DINO's for a hundred thousand.
LEAST_MOMENTUM, MOST_MOMENTUM = 0.9, 0.996
TEACHER_WINDOWS = 400  # the steps of a run over the steps that its teacher averages


def momentum_for(num_steps: int) -> float:
    """Return a teacher's momentum for a run's length: it averages 1 / (1 - momentum) steps, a
    400th.

    Between 0.9 and 0.996: in a short run, a slower teacher lags behind its student and a faster one
    collapses with it.
    """
    return min(MOST_MOMENTUM, max(LEAST_MOMENTUM, 1 - TEACHER_WINDOWS / num_steps))


def momentum_end_for(momentum: float) -> float:
    """Return the default end of a cosine from `momentum`: a tenth of its distance to 1."""
    return 1 - (1 - momentum) / 10
