"""Count the operations and memory of a training step from ViT-T to ViT-L, and extrapolate.

Counts use meta tensors: operations by torch.utils.flop_counter, activations as the bytes that
autograd keeps for the backward pass, in bfloat16 with fused attention as on a GPU. Models that fit
are also measured: the growth of a process's peak memory with its images, in float32 with attention
as on a CPU, next to the same count. The table ends with 8 × 80 GB. Heads have 65,536 prototypes,
crops are 2 × 224 + 8 × 96, and DINOv2 masks 15 % of the patches. There is no stochastic depth.
Run: python tests/benchmarks/bench_scale.py [--quick]
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from featkit.resources import usable_cpus
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.losses import dino_loss
from featkit_train.methods import MomentumTeacher
from featkit_train.networks import vit
from featkit_train.networks.vit import VisionTransformer
from featkit_train.settings import parse_settings
from tests.benchmarks.flops import count_flops
from tests.benchmarks.record import is_quick, markdown_table, write_result
from tests.train.momentum import make_teacher

# width, heads, depth
SIZES = {
    "ViT-T": (192, 3, 12),
    "ViT-S": (384, 6, 12),
    "ViT-B": (768, 12, 12),
    "ViT-L": (1024, 16, 24),
}
MEASURED = {"ViT-T": (2, 6), "ViT-S": (2, 5), "ViT-B": (1, 3), "ViT-L": (1, 2)}  # images
METHODS = ("dino", "dinov2")
NUM_GLOBAL, HIDDEN = 2, 0.15  # crops; share of the patches: half of the crops, 10 to 50 % of each
# float32: weights, gradients and two moments of the student, weights of the teacher.
STUDENT_BYTES, TEACHER_BYTES = 16, 4
# the rest is the allocator's, the kernels' and the network's
GPUS, GPU_BYTES, USABLE = 8, 80e9, 0.9
PEAK, UTILIZATION = 989e12, 0.4  # H100, dense bfloat16; ASSUMED, not measured
STEP_IMAGES = 1024
SPARE_BYTES = {"ViT-L": 14e9}  # a measured size is left out where less memory is free


def config_of(size: str, method: str) -> TrainConfig:
    """DINO's ViT-S/16 recipe at another size, or DINOv2's heads and LayerScale over it."""
    width, heads, depth = SIZES[size]
    settings = [
        f"model.{key}={value}"
        for key, value in (("width", width), ("num_heads", heads), ("depth", depth))
    ]
    settings += [f"model.mlp_width={4 * width}", "noise.drop_path=0", "run.device=cpu"]
    if method == "dino":
        return configure("dino", "dino_vits16", parse_settings(settings))
    model = ["model.mlp=gelu", "model.patch=16", "model.position_grid=14", "crops.local_size=96"]
    heads_of = [
        f"{section}.head.{key}"
        for section in ("dino", "ibot")
        for key in ("num_prototypes=65536", "bottleneck_width=256")
    ]
    return configure("dinov2", "dinov2_vitl14", parse_settings([*settings, *model, *heads_of]))


# -- a step of a method, real or counted -----------------------------------------------------------


@dataclass
class Crops:
    """Return the input of a step: crops (2, B, 3, S, S) and (L, B, 3, s, s), masks and indices."""

    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    places: Tensor

    @classmethod
    def of(cls, config: TrainConfig, batch: int, *, hidden: bool) -> Crops:
        """Return an input of zeros."""
        crops, side = config.crops, config.crops.global_size // config.model.patch
        num_hidden = round(HIDDEN * NUM_GLOBAL * batch * side * side) if hidden else 0
        return cls(
            torch.zeros(NUM_GLOBAL, batch, 3, crops.global_size, crops.global_size),
            torch.zeros(crops.num_local, batch, 3, crops.local_size, crops.local_size),
            torch.zeros(NUM_GLOBAL, batch, side, side, dtype=torch.bool),
            torch.arange(num_hidden),
        )


def loss_of(method: MomentumTeacher, crops: Crops) -> Tensor:
    """Teacher, student and losses; of the patches the cross-entropy, which is what iBOT's loss
    keeps."""
    with torch.no_grad():
        teacher = method.teacher(crops.global_crops, patch_indices=crops.places)
        class_probs, patch_probs = (
            teacher.class_logits.softmax(dim=-1),
            teacher.patch_logits.softmax(dim=-1),
        )
    student = method.student(
        crops.global_crops,
        crops.local_crops,
        patch_indices=crops.places,
        masks=crops.masks if method.patch_loss else None,
    )
    loss = dino_loss(student.class_logits, class_probs, student_temp=0.1)
    if method.patch_loss:
        loss = (
            loss
            - (patch_probs * (student.patch_logits / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean()
        )
    return loss


@dataclass
class Kept:
    """Bytes that autograd keeps for the backward pass, without parameters; each storage once."""

    method: MomentumTeacher
    num_bytes: int = 0

    def __post_init__(self) -> None:
        self._seen = {parameter.untyped_storage()._cdata for parameter in self.method.parameters()}
        self._alive: list[Any] = []  # so that no address is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is kept."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(storage)
            self.num_bytes += storage.nbytes()
        return tensor


class SizesAlone(FakeTensorMode):
    """A deep copy of a tensor, which a teacher is made of, copies its mode along, and then the two
    do not mix."""

    def __deepcopy__(self, memo: dict[int, object]) -> SizesAlone:
        return self


@contextlib.contextmanager
def sizes_alone() -> Iterator[None]:
    """Tensors made inside have no memory, and weights are not drawn, which would have to look at
    them."""
    with SizesAlone(), mock.patch.object(nn.init, "trunc_normal_", lambda tensor, **_: tensor):
        yield


@dataclass(frozen=True)
class Count:
    """Return the counts of one step."""

    flops: int
    kept: int  # bytes


def count(config: TrainConfig, batch: int, *, checkpointed: bool, as_gpu: bool) -> Count:
    """A step on tensors without memory. as_gpu: bfloat16 and fused attention, else as this CPU
    computes in float32."""
    fused = (
        mock.patch.object(vit, "PLAIN_ATTENTION_TOKENS", 0) if as_gpu else contextlib.nullcontext()
    )
    with sizes_alone(), fused:
        method = make_teacher(config)
        for module in method.modules():
            if isinstance(module, VisionTransformer):
                module.checkpoint_activations = checkpointed
        crops = Crops.of(config, batch, hidden=method.patch_loss)
        kept = Kept(method)

        def step() -> None:
            with (
                torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=as_gpu),
            ):
                loss = loss_of(method, crops)
            loss.backward()

        return Count(count_flops(step), kept.num_bytes)


def a_image(config: TrainConfig, *, checkpointed: bool, as_gpu: bool = True) -> Count:
    """Measure the memory of one more image."""
    few, more = (count(config, batch, checkpointed=checkpointed, as_gpu=as_gpu) for batch in (2, 4))
    return Count((more.flops - few.flops) // 2, (more.kept - few.kept) // 2)


# -- measured --------------------------------------------------------------------------------------


def peak_of_process(size: str, batch: int) -> int:
    """Bytes that a process of its own has been at most, which makes one step of DINO."""
    command = [sys.executable, __file__, "--child", size, str(batch)]
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def child(size: str, batch: int) -> None:
    """One real step in float32, gradients being there already as they are after the first step;
    then print the peak."""
    torch.set_num_threads(usable_cpus())
    config = config_of(size, "dino")
    method = make_teacher(config)
    for parameter in method.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    loss_of(method, Crops.of(config, batch, hidden=False)).backward()
    # ru_maxrss would begin at what the parent process has
    print(kilobytes("/proc/self/status")["VmHWM"] * 1024)


def kilobytes(path: str) -> dict[str, int]:
    """The sizes that a file of /proc names."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


def measured_a_image(size: str) -> float | None:
    """Return the bytes that one more image takes, or None if memory is too small to try."""
    if kilobytes("/proc/meminfo")["MemAvailable"] * 1024 < SPARE_BYTES.get(size, 0):
        return None
    few, more = MEASURED[size]
    return (peak_of_process(size, more) - peak_of_process(size, few)) / (more - few)


# -- what follows ----------------------------------------------------------------------------------


def state_bytes(method: MomentumTeacher) -> tuple[int, int, int]:
    """(all, what a GPU of 8 holds of it with fully_shard, what it gathers whole): see
    STUDENT_BYTES.

    Gathered: two blocks in bfloat16, and in float32 what is outside of the blocks, with its
    gradient.
    """
    student, teacher = ([*branch.parameters()] for branch in (method.student, method.teacher))
    numbers = [sum(parameter.numel() for parameter in branch) for branch in (student, teacher)]
    whole = STUDENT_BYTES * numbers[0] + TEACHER_BYTES * numbers[1]
    backbone: Any = method.student.backbone
    blocks = backbone.blocks
    of_block = sum(parameter.numel() for parameter in blocks[0].parameters())
    root = numbers[0] - len(blocks) * of_block
    return whole, whole // GPUS, 2 * 2 * of_block + (2 * 4 + 4) * root


def row_of(size: str, method_name: str) -> dict[str, Any]:
    """One row of the table."""
    config = config_of(size, method_name)
    with sizes_alone():
        method = make_teacher(config)
        student = sum(parameter.numel() for parameter in method.student.parameters())
        backbone = sum(parameter.numel() for parameter in method.student.backbone.parameters())
        whole, held, gathered = state_bytes(method)
    kept, again = (a_image(config, checkpointed=checkpointed) for checkpointed in (False, True))
    again_bytes = (
        again.kept + (kept.kept - again.kept) // config.model.depth
    )  # one block's are there while it is computed again
    room = USABLE * GPU_BYTES - held - gathered
    images_per_s, images_per_s_again = (
        GPUS * PEAK * UTILIZATION / one.flops for one in (kept, again)
    )
    return {
        "": f"{size}/16, {method_name}",
        "backbone, M": round(backbone / 1e6, 1),
        "with heads, M": round(student / 1e6, 1),
        "state, GB": round(whole / 1e9, 2),
        "GFLOP an image": round(kept.flops / 1e9),
        "activations an image, MB": round(kept.kept / 1e6),
        "checkpointed, MB": round(again_bytes / 1e6),
        "images in 8 × 80 GB": GPUS * int(room / kept.kept),
        "checkpointed": GPUS * int(room / again_bytes),
        "pictures/s": round(images_per_s),
        f"steps/s of {STEP_IMAGES:,}": round(images_per_s / STEP_IMAGES, 2),
        "checkpointed, steps/s": round(images_per_s_again / STEP_IMAGES, 2),
    }


def main() -> None:
    """Count, measure and record."""
    sizes = ("ViT-T",) if is_quick() else tuple(SIZES)
    rows = [row_of(size, method) for method in METHODS for size in sizes]
    print(markdown_table(rows))
    assumed = f"{UTILIZATION:.0%} of {GPUS} × {PEAK / 1e12:.0f} TFLOP/s (H100, bfloat16)"
    print(f"\nEXTRAPOLATED, not measured: images/s and steps/s are {assumed}.\n")
    checks = []
    for size in sizes:
        counted = a_image(config_of(size, "dino"), checkpointed=False, as_gpu=False).kept
        measured = measured_a_image(size)
        found = (
            {"measured, MB": "no room"}
            if measured is None
            else {"measured, MB": str(round(measured / 1e6))}
        )
        checks.append(
            {
                "float32, as on a CPU": f"{size}/16, dino",
                "counted, MB": round(counted / 1e6),
                **found,
            }
        )
    print(markdown_table(checks) + "\n")
    extrapolation = {
        "gpus": GPUS,
        "bytes": GPU_BYTES,
        "usable": USABLE,
        "peak FLOP/s": PEAK,
        "assumed utilization": UTILIZATION,
    }
    write_result(
        "scale",
        {
            "rows": rows,
            "activations an image, counted and measured": checks,
            "extrapolated by": extrapolation,
        },
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main()
