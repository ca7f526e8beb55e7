"""Time the parts of featkit's training step by wrapping the methods that it calls."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from featkit_train.engine.step import Engine
from tests.benchmarks.flops import synchronize
from tests.train.momentum import momentum_teacher

REST = "rest of the step"
# What torch's operators are for, by words in their names; the first line that fits.
KINDS = {
    "matrix products": (
        "addmm",
        "::mm",
        "bmm",
        "convolution",
        "mkldnn_linear",
        "_scaled_dot_product",
        "einsum",
        "linear",
    ),
    "softmax": ("softmax", "logsumexp"),
    "gelu": ("gelu",),
    "layer norm": ("layer_norm",),
    "optimizer and teacher": ("_fused_adamw", "_foreach_"),
    "copies": (
        "copy",
        "::to",
        "::cat",
        "clone",
        "contiguous",
        "index_select",
        "index_add",
        "::stack",
        "where",
        "fill",
        "zero",
    ),
    "sums and products": (
        "::add",
        "::mul",
        "::sub",
        "::div",
        "lerp",
        "::sum",
        "::mean",
        "addcmul",
        "clamp",
        "norm",
    ),
}


class Clock:
    """Seconds by part. A part that is called by another counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _turn(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time spent inside belongs to the part."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def about(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed


@contextlib.contextmanager
def clocked(engine: Engine, clock: Clock) -> Iterator[None]:
    """While inside, the engine's steps tell the clock what they do."""
    method = momentum_teacher(engine.method)
    student: Any = method.student
    places = [
        (engine, "step", REST),
        (engine, "views", "colors"),
        (method, "look", "teacher"),
        (method, "aim", "targets"),
        (student.backbone, "learn", "student, forward"),
        (student.head, "forward", "student's heads, forward"),
        (method, "terms", "losses"),
        (engine.optimizer, "zero_grad", "update"),
        (engine.optimizer, "step", "update"),
        (method, "after_optimizer", "update"),
    ]
    if student.patch_head is not None:
        places.append((student.patch_head, "forward", "student's heads, forward"))
    with contextlib.ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(
                mock.patch.object(owner, name, clock.about(part, getattr(owner, name)))
            )
        stack.enter_context(
            mock.patch.object(
                nn.utils, "clip_grad_norm_", clock.about("update", nn.utils.clip_grad_norm_)
            )
        )
        backward: Callable[..., None] = Tensor.backward

        def timed_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            with clock.part("student and heads, backward"):
                backward(loss, *args, **kwargs)

        stack.enter_context(mock.patch.object(Tensor, "backward", timed_backward))
        yield


def shares_of_operators(work: Callable[[], object]) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of all operators' own time: by kind, and of the ten that took most."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    own = {
        event.key: float(event.self_cpu_time_total)
        for event in found.key_averages()
        if event.key.startswith("aten::")
    }
    whole = sum(own.values())
    kinds: defaultdict[str, float] = defaultdict(float)
    for name, spent in own.items():
        kinds[kind_of(name)] += spent / whole
    largest = sorted(own.items(), key=lambda pair: -pair[1])[:10]
    by_kind = sorted(kinds.items(), key=lambda pair: -pair[1])
    return dict(by_kind), {name: spent / whole for name, spent in largest}


def kind_of(operator: str) -> str:
    """Return the purpose of an operator."""
    return next(
        (kind for kind, words in KINDS.items() if any(word in operator for word in words)), "other"
    )
