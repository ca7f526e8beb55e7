"""Promises of devices: a run computes on the requested device or not at all."""

from __future__ import annotations

import pytest
import torch

from featkit.errors import EnvironmentProblem
from featkit_train.processes import device as module
from featkit_train.processes.device import bound_threads, pick_device
from tests.sentences import refused


def test_cuda_is_never_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for wanted in ("cuda", "cuda:0"):
        with refused(
            f"run.device is {wanted}, but torch sees no CUDA device", error=EnvironmentProblem
        ):
            pick_device(wanted)
    assert pick_device("auto") == torch.device("cpu")


def test_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with refused(
        "run.device is cuda:7, but the last CUDA device here is cuda:1.", error=EnvironmentProblem
    ):
        pick_device("cuda:7")


def test_device_that_cannot_compute_is_refused() -> None:
    with refused(
        "run.device is meta, which does not work with this torch", error=EnvironmentProblem
    ):
        pick_device("meta")


def test_threads_are_lowered_to_the_quota_but_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(module, "usable_cpus", lambda: 2)
    for now in (1, 2, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda now=now: now)
        bound_threads()
    assert set_to == [2]
