"""Notice what goes wrong in self-distillation while it happens, name it, and advise what to change.

Letters: B embeddings, D width, K prototypes.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from featkit.errors import FeatkitError
from featkit_train.log import Log
from featkit_train.schedules import momentum_for

PATIENCE_STEPS = 40  # steps that a collapse must last, since the first steps look like one
UNIFORM_SHARE = 0.99  # of ln K, for both the teacher's entropy and the loss
ONE_HOT_SHARE = 0.02  # of ln K, for the entropy of the batch's mean
MIN_RANK = 1.5  # RankMe; below it, class tokens lie along one direction
# Steps without a verdict, even if warmup is longer (100,000 steps in dinov2_vitl14): no run starts
# on one prototype or along one direction. Runs do start uniform, and a good one may stay so while
# its learning rate is small: a ResNet-50's loss was 0.994 ln K on average over the first 2,502 of
# 25,020 warmup steps and 0.945 over the next (facebookresearch/dino#145). So uniform outputs are
# only noted until warmup ends.
MAX_SETTLE_STEPS = 1_000
# A spike is this many times the median norm of the last SPIKE_WINDOW steps, at least SPIKE_MIN.
SPIKE_TIMES, SPIKE_WINDOW, SPIKE_MIN = 10.0, 50, 10
# Times that a teacher is replaced over a run: the sum of 1 - momentum. Fewer is too slow.
MIN_REPLACEMENTS = 10.0


class Collapse(FeatkitError):
    """Training stopped because its outputs no longer distinguish images, or are not finite."""


@dataclass(frozen=True)
class Finding:
    """A problem of a run as a sentence, with advice. is_collapse: the run is lost."""

    sentence: str
    is_collapse: bool


@dataclass
class Watch:
    """Find problems in a step's log, and report each one once when it begins.

    Nothing collapses in the first `settle_steps`, or MAX_SETTLE_STEPS if that is fewer. Until
    `settle_steps`, a uniform collapse is only noted.
    """

    num_prototypes: int | None  # None: labels prevent collapse, so only spikes are detected
    settle_steps: int
    prototype_loss: str | None = None  # log name of the loss, in nats; ln K for a uniform student
    _lasting: dict[str, int] = field(default_factory=dict)
    _rank: float = math.inf  # the latest value; it is not measured in every step
    _quiet_until: int = 0  # the next step that may report a spike; they come in swarms
    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_WINDOW))

    def __call__(self, step: int, log: Log) -> list[Finding]:
        """Return what has gone wrong by this step. log: grad_norm, and if the method logs them
        `prototype_loss`, teacher_entropy and batch_entropy as shares of ln K, and rankme.
        """
        found = self._spike(step, log["grad_norm"])
        if self.num_prototypes is None or step < min(self.settle_steps, MAX_SETTLE_STEPS):
            return found
        loss = None if self.prototype_loss is None else log.get(self.prototype_loss)
        uniform = log.get("teacher_entropy", 0.0) > UNIFORM_SHARE and (
            loss is None or loss > UNIFORM_SHARE * math.log(self.num_prototypes)
        )
        early = step < self.settle_steps
        if self._lasts("early" if early else "uniform", uniform):
            found.append(
                Finding(
                    f"Uniform {'outputs' if early else 'collapse'} at step {step}: for"
                    f" {PATIENCE_STEPS} steps the teacher has spread every image evenly over all"
                    f" {self.num_prototypes} prototypes"
                    + ("" if loss is None else " (loss = ln K)")
                    + (
                        f", which slow runs also do at first; from step {self.settle_steps:,} on"
                        " it is a collapse"
                        if early
                        else ""
                    )
                    + ". Lower dino.teacher_temp or teacher.momentum, set dino.centering to"
                    " sinkhorn, or add dino.koleo_weight 0.05.",
                    is_collapse=not early,
                )
            )
        if self._lasts("one_hot", log.get("batch_entropy", 1.0) < ONE_HOT_SHARE):
            found.append(
                Finding(
                    f"One-hot collapse at step {step}: for {PATIENCE_STEPS} steps the teacher has"
                    " assigned all images to one prototype. Raise dino.teacher_temp, lower"
                    " dino.center_momentum or set dino.centering to sinkhorn.",
                    is_collapse=True,
                )
            )
        self._rank = log.get("rankme", self._rank)
        if self._lasts("rank", self._rank < MIN_RANK):
            found.append(
                Finding(
                    f"Dimensional collapse at step {step}: for {PATIENCE_STEPS} steps all"
                    f" embeddings have lain along one direction (RankMe {self._rank:.2f}). Add"
                    " dino.koleo_weight 0.05, or lower optim.lr.",
                    is_collapse=True,
                )
            )
        return found

    def _lasts(self, name: str, present: bool) -> bool:
        self._lasting[name] = self._lasting.get(name, 0) + 1 if present else 0
        return self._lasting[name] == PATIENCE_STEPS

    def _spike(self, step: int, norm: float) -> list[Finding]:
        usual = statistics.median(self._norms) if len(self._norms) >= SPIKE_MIN else math.inf
        self._norms.append(norm)
        if norm <= SPIKE_TIMES * usual or step < self._quiet_until:
            return []
        self._quiet_until = step + SPIKE_WINDOW
        sentence = (
            f"Gradient spike at step {step}: a norm of {norm:.3g}, {norm / usual:.0f} times the"
            " median of the steps before. Lower optim.lr or optim.clip_grad, or lengthen"
            f" optim.warmup_steps. (Spikes in the next {SPIKE_WINDOW} steps are not reported.)"
        )
        return [Finding(sentence, is_collapse=False)]


def slow_teacher(momentum: Callable[[int], float], *, num_steps: int) -> str | None:
    """Return a warning if the momentum is too high for the number of steps, else None.

    Too high means that the teacher would be replaced fewer than MIN_REPLACEMENTS times, the sum of
    1 - momentum(step) over all steps, and that the recommended momentum is lower.
    """
    replacements = sum(1 - momentum(step) for step in range(num_steps))
    advised = momentum_for(num_steps)
    if replacements >= MIN_REPLACEMENTS or momentum(0) <= advised:
        return None
    return (
        f"Momentum too high: at {momentum(0):g} over {num_steps:,} steps the teacher is replaced"
        f" only {replacements:.1f} times, fewer than {MIN_REPLACEMENTS:.0f}, and stays near its"
        f" start. Set teacher.momentum to {advised:g}, or train for more steps."
    )


@torch.no_grad()
def rank_me(embeddings: Tensor) -> float:
    """Return the effective rank of embeddings (B, D): exp of the entropy of their singular values'
    shares (RankMe, arXiv 2210.02885, eq. 1).

    Between 1 and min(B, D); 0 if all embeddings are equal. Unlike in the paper, the mean is
    subtracted first; otherwise an untrained and a collapsed network would look the same.

        s = svd(embeddings - mean);  p = s / sum(s);  exp(-sum(p * log(p)))
    """
    rows = embeddings.float()
    values = torch.linalg.svdvals(rows - rows.mean(dim=0))
    total = values.sum()
    if total <= 1e-6 * rows.norm():
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def first_bad_tensor(
    module: nn.Module,
    again: Callable[[], Any],
    *,
    anywhere: Callable[[bool], bool] = lambda here: here,
) -> str:
    """Return the name of the first tensor that is not finite: a parameter, else an output, else a
    gradient.

    again: repeats the forward pass; outputs are checked in the order in which modules finish.
    anywhere: returns whether a flag is set in any process, since each holds different images and
    shards.
    """
    for name, parameter in module.named_parameters():
        if anywhere(_is_bad(parameter)):
            return f"the parameter {name}"
    names: list[str] = []
    hooks = [
        part.register_forward_hook(_note_bad(name, names))
        for name, part in module.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            again()
    finally:
        for hook in hooks:
            hook.remove()
    if anywhere(bool(names)):
        return f"the output of {names[0]}" if names else "an output in another process"
    for name, parameter in module.named_parameters():
        if anywhere(parameter.grad is not None and _is_bad(parameter.grad)):
            return f"the gradient of {name}"
    return "the loss itself"


def _is_bad(tensor: Tensor) -> bool:
    """Return whether a tensor, or this process's shard of it, is not finite."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return not bool(local.isfinite().all())


def _note_bad(name: str, names: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if any(not bool(tensor.isfinite().all()) for tensor in _tensors(output)):
            names.append(name)

    return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
