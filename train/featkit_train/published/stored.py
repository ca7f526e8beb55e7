"""A tensor that a file holds: its shape and type are known before its numbers are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file. `read` gives its numbers, mapped from the file or copied."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers, laid out one after the other."""
        return math.prod(self.shape) * self.dtype.itemsize

    def outline(self) -> Tensor:
        """The tensor without its numbers, on the device `meta`."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")
