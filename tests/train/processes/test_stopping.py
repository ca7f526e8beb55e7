"""Promises of stopping: workers ignore signals, and end with the process that they serve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from featkit_train.processes import stopping
from featkit_train.processes.stopping import SIGNALS, leave_signals_to_the_loop

LEAVES_A_LOADER_BEHIND = """
import sys
from featkit_train.processes import stopping
from tests.train.processes.test_stopping import begun

stopping.GRACE_S = 1
sys.kept = begun()
print("leaving")
"""


class Numbers(Dataset[torch.Tensor]):
    """A dataset of a few numbers."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.tensor([number])


def begun() -> object:
    """Return a loader's iterator whose worker is running."""
    batches = iter(DataLoader(Numbers(), num_workers=1, worker_init_fn=leave_signals_to_the_loop))
    next(batches)
    return batches


def test_process_with_an_open_loader_can_exit() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", LEAVES_A_LOADER_BEHIND]
    ended = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "leaving\n"


def test_worker_survives_signals_and_sigterm_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "GRACE_S", 2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        leave_signals_to_the_loop()
        os.write(writer, b".")
        time.sleep(60)
        os._exit(1)
    os.read(reader, 1)
    for number in SIGNALS:
        os.kill(child, number)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)  # again: the first one counts
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert time.monotonic() - started < 20
