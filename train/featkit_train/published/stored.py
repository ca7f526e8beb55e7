"""A tensor in a file, whose shape and type are known before its data is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file. `read` returns it, mapped from the file or copied."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of its data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def outline(self) -> Tensor:
        """Return a tensor of this shape and type without data, on the device `meta`."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")
