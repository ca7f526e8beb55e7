"""Floating-point operations: those that work needs, those that a chip promises, those that a
machine does.

A product of (m, k) by (k, n) is 2 * m * k * n operations. Only products and convolutions are
counted, as torch.utils.flop_counter does; the rest of a network is less than a hundredth of them.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
# Dense bfloat16 operations a second by what a card is called (NVIDIA's data sheets, without
# sparsity).
CHIPS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A10": 125e12,
    "A10G": 70e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def chip_peak(name: str) -> float | None:
    """Return the peak of the GPU that torch calls `name`, or None if it is not in the table."""
    words = name.replace("-", " ").split()
    for chip, peak in sorted(CHIPS.items(), key=lambda row: -len(row[0])):
        if set(chip.split()) <= set(words):
            return peak
    return None


# -- counted ---------------------------------------------------------------------------------------


def count_flops(work: Callable[[], object]) -> int:
    """Operations of one call, forward and backward, as it really runs: rows that are left out are
    not counted."""
    forward, backward = (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )
    counter = FlopCounterMode(
        display=False,
        custom_mapping={forward: _attention_flops, backward: _attention_backward_flops},
    )
    with counter:
        work()
    return counter.get_total_flops()


def _attention_flops(
    query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    del out_shape
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    del out_shape
    return int(sdpa_backward_flop_count(grad, query, key, value))


# -- measured --------------------------------------------------------------------------------------


class Product(NamedTuple):
    """A matrix product of a step: the operator, and the size and strides of each tensor."""

    operator: Any
    tensors: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    dtype: torch.dtype

    def repeat(self) -> Callable[[], object]:
        """A call that makes the same product of random numbers."""
        drawn = [_strided(size, stride, self.dtype) for size, stride in self.tensors]
        return lambda: self.operator(*drawn)

    @property
    def shape(self) -> str:
        """Describe the product: (m, k) × (k, n), and the number of them in a batch."""
        first, second = self.tensors[-2][0], self.tensors[-1][0]
        stack = f"{first[0]} of " if len(first) == 3 else ""
        return f"{stack}{first[-2]}×{first[-1]} by {second[-2]}×{second[-1]}"


def _strided(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    length = 1 + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    return torch.randn(max(1, length)).to(dtype).as_strided(size, stride)


class ProductsOf(TorchDispatchMode):
    """Counts the matrix products of what runs inside, by size, layout and type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func in PRODUCTS:
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            layouts = tuple((tuple(tensor.shape), tensor.stride()) for tensor in tensors)
            self.counts[Product(func, layouts, tensors[0].dtype)] += 1
        return func(*args, **(kwargs or {}))


class Rate(NamedTuple):
    """How fast a machine makes one of a step's products."""

    product: Product
    times: int  # in a step
    flops: int  # of one
    seconds: float  # of one

    @property
    def flops_per_s(self) -> float:
        """Operations a second."""
        return self.flops / self.seconds


def measure_products(counts: Counter[Product], *, repeats: int = 3) -> list[Rate]:
    """Each product by itself, on all processors; the median of a few, behind one to warm up. The
    heaviest come first."""
    rates = []
    for product, count in counts.items():
        again = product.repeat()
        flops = count_flops(again)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            again()
            seconds.append(time.perf_counter() - started)
        rates.append(Rate(product, count, flops, statistics.median(seconds)))
    return sorted(rates, key=lambda rate: -rate.times * rate.flops)


def best_rate(rates: list[Rate], *, least_share: float = 0.01) -> float:
    """Operations a second of the fastest product among those that are worth a share of the step's
    operations."""
    whole = sum(rate.times * rate.flops for rate in rates)
    return max(rate.flops_per_s for rate in rates if rate.times * rate.flops >= least_share * whole)


def square_rate(side: int, *, device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations a second of one large square product, the best of a few."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        one @ other
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
