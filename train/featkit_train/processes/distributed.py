"""The processes of one run: torchrun starts them, and `World` connects them.

Every process draws the same order of images and takes its slice of each batch, so that together
they compute what one process computes with the whole batch. If all of them meet the same error,
only the first one reports it.

Letters: W processes, n rows of each.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from featkit.errors import EnvironmentProblem, FeatkitError
from featkit_train.log import Log

T = TypeVar("T")
FAILED = "featkit/fallen"  # key of the shared store that counts processes ended by an error


@dataclass(frozen=True)
class World:
    """The rank of this process among the `size` of a run, `local_size` of them on its machine."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that writes the run's files and prints."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate rows (n, ...) of all processes by rank to (W * n, ...), without gradients.

        Shapes must be equal in all processes.
        """
        return rows if self.size == 1 else _gather(rows)

    def gather_with_grad(self, rows: Tensor) -> Tensor:
        """Like `gather`, with gradients that flow back to the process each row came from."""
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
        return gathered

    def mean(self, scalars: Mapping[str, Tensor]) -> Log:
        """Return the mean of each scalar over all processes."""
        # Stacked, because every transfer from the device waits for it.
        values = torch.stack([value.detach().float() for value in scalars.values()])
        if self.size > 1:
            dist.all_reduce(values)
        return dict(zip(scalars, (values / self.size).tolist(), strict=True))

    def from_main(self, value: T) -> T:
        """Return the main process's value in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, here: int, device: torch.device) -> int:
        """Return the sum of all processes' numbers."""
        return int(self.gather(torch.tensor([here], device=device)).sum())

    def max(self, here: float, device: torch.device) -> float:
        """Return the largest of all processes' numbers, in float32."""
        if self.size == 1:
            return here
        value = torch.tensor([here], device=device, dtype=torch.float32)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return float(value.item())

    def any(self, here: bool, device: torch.device) -> bool:
        """Return whether the flag is true in any process."""
        return self.max(float(here), device) > 0

    def wait(self) -> None:
        """Wait until all processes arrive here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def _gather(rows: Tensor) -> Tensor:
    gathered = [
        torch.empty_like(rows, memory_format=torch.contiguous_format)
        for _ in range(dist.get_world_size())
    ]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients of this process's rows over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.num_rows :][: ctx.num_rows]


# -- joining and leaving ---------------------------------------------------------------------------


@contextlib.contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the world that torchrun's environment describes (RANK, WORLD_SIZE, LOCAL_WORLD_SIZE).

    Yields ALONE outside torchrun. If the caller has already created the process group, the caller
    also ends it. An error in one process ends all: the others lose the connection, or torchrun ends
    them. The first raises its own error and the others SystemExit, so that a message is not printed
    W times.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or size == 1:
        yield ALONE
        return
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    if dist.is_initialized():  # by the caller, who also ends it
        yield world
        return
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)
    try:
        yield world
    except BaseException as error:
        first = _is_first_to_fail()
        if on_cuda:  # destroying the group would wait forever for the other processes
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()
        if not first:
            raise SystemExit(error.exit_code if isinstance(error, FeatkitError) else 1) from None
        if _is_lost_connection(error):
            raise EnvironmentProblem(
                "Another process of this run ended without an error (killed, or out of memory); "
                "add --resume to continue from the last checkpoint."
            ) from error
        raise
    dist.destroy_process_group()


def _is_first_to_fail() -> bool:
    try:
        return dist.distributed_c10d._get_default_store().add(FAILED, 1) == 1
    except RuntimeError:  # the store's process has ended and reported why
        return False


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo/transport", "Connection closed"))
    )


def local_device(device: torch.device) -> torch.device:
    """Return this process's GPU (torchrun's LOCAL_RANK) for `cuda`; any other device unchanged."""
    if device == torch.device("cuda"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


# -- spreading a method ----------------------------------------------------------------------------


def replicate(method: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a method in DDP: every process holds all weights, and gradients are averaged."""
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # renamed in torch 2.13; 2.8 knows only the old name
        warnings.filterwarnings("ignore", ".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(method, device_ids=devices, broadcast_buffers=False)


def shard(
    branches: Iterable[nn.Module], device: torch.device, *, dtype: torch.dtype | None
) -> None:
    """Apply fully_shard to branches: each block by itself in `dtype`, the rest in float32.

    Weights on the CPU move to the device one block at a time, already sharded.
    """
    # The warning concerns code that modifies returned views in place; ours does not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for branch in branches:
        for block in getattr(getattr(branch, "backbone", branch), "blocks", ()):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(branch, mesh=mesh)
