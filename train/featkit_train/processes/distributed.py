"""The processes of one run: `torchrun` starts them, everything else asks `World`.

Every process draws the same order of images and takes its slice of each batch, so that together
they do what one process does with the whole batch. What all of them find wrong, the first to find
it says; the others end without a word.

Letters: W processes.
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
FALLEN = "featkit/fallen"  # in the store that all processes see: how many have ended by an error


@dataclass(frozen=True)
class World:
    """This process's place among all `size` of a run, and how many of them share its machine."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of every process, equal shapes, one after the other by rank: (W * n, ...),
        without gradients."""
        return rows if self.size == 1 else _gather(rows)

    def gather_with_grad(self, rows: Tensor) -> Tensor:
        """The same, and what is made of another process's rows here has its gradient there."""
        gathered: Tensor = rows if self.size == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]
        return gathered

    def mean(self, watched: Mapping[str, Tensor]) -> Log:
        """The mean over all processes of each scalar; one transfer from the device, for each of
        which it would stop."""
        values = torch.stack([value.detach().float() for value in watched.values()])
        if self.size > 1:
            dist.all_reduce(values)
        return dict(zip(watched, (values / self.size).tolist(), strict=True))

    def from_main(self, value: T) -> T:
        """The main process's value, in all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, here: int, device: torch.device) -> int:
        """Of all processes' numbers."""
        return int(self.gather(torch.tensor([here], device=device)).sum())

    def max(self, here: float, device: torch.device) -> float:
        """The largest of all processes' numbers, in float32."""
        if self.size == 1:
            return here
        value = torch.tensor([here], device=device, dtype=torch.float32)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return float(value.item())

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it is so in any process."""
        return self.max(float(here), device) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


def _gather(rows: Tensor) -> Tensor:
    everyone = [
        torch.empty_like(rows, memory_format=torch.contiguous_format)
        for _ in range(dist.get_world_size())
    ]
    dist.all_gather(everyone, rows.contiguous())
    return torch.cat(everyone)


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradient of one's own is the sum of what all make of them."""

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
    """The world of torchrun's environment (RANK, WORLD_SIZE, LOCAL_WORLD_SIZE); ALONE where there
    is none.

    An error in one process ends all: the others lose the connection, or torchrun ends them. Only
    the first leaves by its own error; those that leave after it end the interpreter by SystemExit,
    so that a sentence is not said W times.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" not in os.environ or size == 1:
        yield ALONE
        return
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    if dist.is_initialized():  # by whoever called; it is theirs to end
        yield world
        return
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)
    try:
        yield world
    except BaseException as error:
        first = _is_first_to_fall()
        if on_cuda:  # destroying would wait for what the others will never send
            dist.distributed_c10d._abort_process_group()
        else:
            dist.destroy_process_group()
        if not first:
            raise SystemExit(error.exit_code if isinstance(error, FeatkitError) else 1) from None
        if _is_lost_connection(error):
            raise EnvironmentProblem(
                "Another process of this run has ended without a word (killed, or out of memory); "
                "add --resume to go on from the last checkpoint."
            ) from error
        raise
    dist.destroy_process_group()


def _is_first_to_fall() -> bool:
    try:
        return dist.distributed_c10d._get_default_store().add(FALLEN, 1) == 1
    except RuntimeError:  # the store went with the process that held it, which has said why
        return False


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo/transport", "Connection closed"))
    )


def local_device(device: torch.device) -> torch.device:
    """`cuda` as the one of this process, by torchrun's LOCAL_RANK; anything else as it is."""
    if device == torch.device("cuda"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


# -- spreading a method ----------------------------------------------------------------------------


def replicate(method: nn.Module, device: torch.device) -> nn.Module:
    """DDP about a method: gradients are the mean over all processes, each of which holds
    everything."""
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # torch 2.13 has a new word for it, which 2.8 does not know
        warnings.filterwarnings("ignore", ".*broadcast_buffers", category=FutureWarning)
        return DistributedDataParallel(method, device_ids=devices, broadcast_buffers=False)


def shard(
    branches: Iterable[nn.Module], device: torch.device, *, dtype: torch.dtype | None
) -> None:
    """fully_shard branches: each block by itself in `dtype`, then what is left (embedding, norms,
    heads) in float32.

    Weights that are on the CPU reach the device one block at a time, already cut.
    """
    # It warns that a branch's tokens are views, which would matter to who changes them in place;
    # nobody does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for branch in branches:
        for block in getattr(getattr(branch, "backbone", branch), "blocks", ()):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(branch, mesh=mesh)
