"""A run computes on the device that was asked for, or not at all."""

from __future__ import annotations

import pytest
import torch

from featkit.errors import EnvironmentProblem
from featkit_train.engine.device import pick_device
from tests.sentences import refused


def test_cuda_is_never_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for wanted in ("cuda", "cuda:0"):
        with refused(f"run.device is {wanted}, but torch sees no CUDA device", error=EnvironmentProblem):
            pick_device(wanted)
    assert pick_device("auto") == torch.device("cpu")


def test_a_card_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with refused("run.device is cuda:7, but the last CUDA device here is cuda:1.", error=EnvironmentProblem):
        pick_device("cuda:7")


def test_a_device_that_computes_nothing_is_refused() -> None:
    with refused("run.device is meta, which does not work with this torch", error=EnvironmentProblem):
        pick_device("meta")
