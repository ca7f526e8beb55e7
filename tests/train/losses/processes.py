"""Processes simulated by threads, for losses that gather rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def in_processes(
    part: Callable[[int, Callable[[Tensor], Tensor]], Tensor], sizes: list[int]
) -> list[Tensor]:
    """Run part(rank, gather) in a thread for each process; return all results."""
    meeting = threading.Barrier(len(sizes), timeout=30)
    said: dict[int, Tensor] = {}

    def process(rank: int) -> Tensor:
        def gather(own: Tensor) -> Tensor:
            said[rank] = own
            meeting.wait()
            everyone = torch.cat([said[other] for other in range(len(sizes))])
            meeting.wait()
            return everyone

        return part(rank, gather)

    with ThreadPoolExecutor(len(sizes)) as threads:
        return list(threads.map(process, range(len(sizes))))
