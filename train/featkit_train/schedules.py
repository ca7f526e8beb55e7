"""Numbers that change over training, as pure functions of the step."""

from __future__ import annotations

import math


def cosine_schedule(
    step: int, *, start: float, end: float, num_steps: int, warmup_steps: int = 0
) -> float:
    """Linear from 0 to `start` over the warm-up, then half a cosine from `start` to `end` at the
    last step.

    step < warmup_steps:  start * (step + 1) / (warmup_steps + 1) else:                 end + (start
    - end) * (1 + cos(pi * progress)) / 2,  progress from 0 to 1 at num_steps - 1
    """
    if step < warmup_steps:
        return start * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear_schedule(step: int, *, start: float, end: float, num_steps: int) -> float:
    """Linear from `start` at step 0 to `end` at step `num_steps`, and `end` from there on."""
    return end if step >= num_steps else start + (end - start) * step / num_steps


# what a thousand steps need; DINO's, for a hundred thousand
LEAST_MOMENTUM, MOST_MOMENTUM = 0.9, 0.996
STEPS_OF_A_TEACHER = 400  # a run's steps over the steps that its teacher averages


def momentum_for(num_steps: int) -> float:
    """A teacher's momentum by the length of its run: it averages a 400th of it, 1 / (1 - momentum)
    steps.

    Between 0.9, which learns best in a thousand steps, and DINO's 0.996: a slower teacher stays
    behind a short run's student and a faster one collapses with it.
    """
    return min(MOST_MOMENTUM, max(LEAST_MOMENTUM, 1 - STEPS_OF_A_TEACHER / num_steps))


def momentum_end_for(momentum: float) -> float:
    """Where a cosine from `momentum` ends unless it is told: a tenth of the distance to 1."""
    return 1 - (1 - momentum) / 10
