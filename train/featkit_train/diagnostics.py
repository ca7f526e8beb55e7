"""What goes wrong in self-distillation, noticed while it happens and named.

Uniform collapse: the teacher puts every picture on all prototypes alike, and the loss rests at ln K. One-hot collapse: it
puts all pictures on one prototype. Either must last for a while, since the first steps look like the former.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from featkit.errors import FeatkitError

PATIENCE_STEPS = 50
UNIFORM_SHARE = 0.99  # of ln K, for both the teacher's entropy and the loss
ONE_HOT_SHARE = 0.02  # of ln K, for the entropy of the batch's mean


class Collapse(FeatkitError):
    """Training was stopped since its outputs no longer tell pictures apart."""


@dataclass
class CollapseWatch:
    """Counts how long each kind of collapse has lasted; `settle_steps` at the start are not counted."""

    num_prototypes: int
    settle_steps: int
    uniform_steps: int = 0
    one_hot_steps: int = 0

    def __call__(self, step: int, *, loss: float, teacher_entropy: float, batch_entropy: float) -> str | None:
        """The sentence that names a collapse, at the step where it has lasted PATIENCE_STEPS; None otherwise.

        loss in nats; entropies as shares of ln K. Raises Collapse at once when the loss is not a number.
        """
        if not math.isfinite(loss):
            raise Collapse(f"The loss is {loss} at step {step}; lower the learning rate or use precision float32.")
        if step < self.settle_steps:
            return None
        uniform = teacher_entropy > UNIFORM_SHARE and loss > UNIFORM_SHARE * math.log(self.num_prototypes)
        self.uniform_steps = self.uniform_steps + 1 if uniform else 0
        self.one_hot_steps = self.one_hot_steps + 1 if batch_entropy < ONE_HOT_SHARE else 0
        if self.uniform_steps == PATIENCE_STEPS:
            return (
                f"Uniform collapse at step {step}: for {PATIENCE_STEPS} steps the teacher has put every picture on all "
                f"{self.num_prototypes} prototypes alike (loss = ln K). Lower the teacher's temperature or its momentum, "
                "set dino.centering to sinkhorn, or add dino.koleo_weight 0.1."
            )
        if self.one_hot_steps == PATIENCE_STEPS:
            return (
                f"One-hot collapse at step {step}: for {PATIENCE_STEPS} steps the teacher has put all pictures on one "
                "prototype. Raise the teacher's temperature, lower dino.center_momentum or set dino.centering to sinkhorn."
            )
        return None
