"""Crops of two sizes through a ViT: one forward pass for each size, as featkit does it, or one pass
for all.

In one pass, tokens of all crops stand in one row for norms and linear layers, and only attention is
by size; DINOv2's released code does so with nested tensors. Both compute the same, which is checked
first. Times are of forward and backward of a student. Run: python tests/benchmarks/bench_crops.py
[--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor

from featkit.resources import usable_cpus
from featkit_train.networks.vit import Attention, Block, VisionTransformer, attend
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.processes.device import pick_autocast, pick_device
from tests.benchmarks.flops import synchronize
from tests.benchmarks.record import alternate, is_quick, median_ratio, write_result

ROUNDS = 1 if is_quick() else 9
TOLERANCE = 1e-5  # of outputs; relative, of gradients
Pass = Callable[[VisionTransformer, Sequence[Tensor]], list[Tensor]]


class Setting(NamedTuple):
    """A backbone, and (number, side) of the crops of one image."""

    model: ViTConfig
    crops: tuple[tuple[int, int], ...]
    batch: int


SETTINGS = {
    "2 of 64 and 4 of 32, patch 8, width 192": Setting(
        ViTConfig(patch=8, width=192, depth=6, num_heads=3, mlp_width=768, position_grid=8),
        ((2, 64), (4, 32)),
        64,
    ),
    "2 of 224 and 8 of 96, ViT-S/16": Setting(ViTConfig(), ((2, 224), (8, 96)), 4),
}


def pass_a_size(backbone: VisionTransformer, crops: Sequence[Tensor]) -> list[Tensor]:
    """Tokens (B, N, D) behind the last norm of crops (B, 3, S, S) of each size, one pass a size."""
    outs = []
    for images in crops:
        tokens, _ = backbone.tokenize(images)
        for block in backbone.blocks:
            tokens, _ = block(tokens)
        outs.append(backbone.norm(tokens))
    return outs


def one_pass(backbone: VisionTransformer, crops: Sequence[Tensor]) -> list[Tensor]:
    """The same with all tokens in one row (1, sum of B * N, D), of learned positions, without
    noise."""
    tokens = [backbone.tokenize(images)[0] for images in crops]
    shapes = [part.shape[:2] for part in tokens]
    row = torch.cat([part.flatten(0, 1) for part in tokens])
    for block in backbone.blocks:
        assert isinstance(block, Block)
        row = row + block.scale1(attend_by_size(block.attention, block.norm1(row), shapes))
        row = row + block.scale2(block.mlp(block.norm2(row)))
    normed = backbone.norm(row)
    return [torch.unflatten(part, 0, shape) for part, shape in split(normed, shapes)]


def attend_by_size(attention: Attention, row: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """(sum of B * N, D) to the same: linear layers of all at once, attention among the tokens of a
    crop."""
    config = attention.config
    mixed = []
    for part, shape in split(attention.qkv(row), shapes):
        heads = part.view(*shape, 3, config.num_heads, config.head_width).permute(2, 0, 3, 1, 4)
        mixed.append(attend(*heads.unbind(0)).transpose(1, 2).flatten(2).flatten(0, 1))
    out: Tensor = attention.out(torch.cat(mixed))
    return out


def split(row: Tensor, shapes: Sequence[tuple[int, ...]]) -> zip[tuple[Tensor, tuple[int, ...]]]:
    """The parts of a row with their (B, N)."""
    return zip(row.split([batch * tokens for batch, tokens in shapes]), shapes, strict=True)


def loss_of(outs: Sequence[Tensor]) -> Tensor:
    """A number that every token has a part in, the class tokens most."""
    losses = [out.float()[:, 0].sin().mean() + out.float().square().mean() for out in outs]
    return torch.stack(losses).sum()


def draw_crops(setting: Setting, *, device: torch.device) -> list[Tensor]:
    """(number * batch, 3, S, S) of each size."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(number * setting.batch, 3, side, side) for number, side in setting.crops]
    return [torch.randn(size, generator=generator).to(device) for size in sizes]


def greatest_differences(
    backbone: VisionTransformer, crops: Sequence[Tensor]
) -> tuple[float, float]:
    """Return the differences of outputs and of gradients, relative to the largest, in float32."""
    outs, gradients = [], []
    for forward in (pass_a_size, one_pass):
        backbone.zero_grad(set_to_none=True)
        outs.append(forward(backbone, crops))
        loss_of(outs[-1]).backward()
        parameters = (
            parameter for parameter in backbone.parameters() if parameter.grad is not None
        )
        gradients.append(
            torch.cat(
                [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
            )
        )
    of_outputs = max(
        float((one - other).detach().abs().max()) for one, other in zip(*outs, strict=True)
    )
    return of_outputs, float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())


def seconds(
    forward: Pass,
    backbone: VisionTransformer,
    crops: Sequence[Tensor],
    *,
    dtype: torch.dtype | None,
) -> float:
    """Return the seconds of a forward and a backward pass."""
    device = crops[0].device
    backbone.zero_grad(set_to_none=True)
    synchronize(device)
    started = time.perf_counter()
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        loss = loss_of(forward(backbone, crops))
    loss.backward()
    synchronize(device)
    return time.perf_counter() - started


def main() -> None:
    """Check, measure and record."""
    torch.set_num_threads(usable_cpus())
    device = pick_device("auto")
    native = pick_autocast("auto", device)
    figures: dict[str, object] = {}
    for name, setting in SETTINGS.items():
        torch.manual_seed(0)
        backbone = VisionTransformer(setting.model).to(device)
        crops = draw_crops(
            setting._replace(batch=1 if is_quick() else setting.batch), device=device
        )
        differences = greatest_differences(backbone, [images[:4] for images in crops])
        assert max(differences) < TOLERANCE, f"the two passes differ by {differences}"
        figures[f"{name}: greatest difference of outputs, gradients"] = [
            float(f"{value:.1e}") for value in differences
        ]
        for dtype in dict.fromkeys((None, native)):
            for forward in (pass_a_size, one_pass):
                seconds(forward, backbone, crops, dtype=dtype)
            ours, theirs = alternate(
                lambda crops=crops, dtype=dtype, of=backbone: seconds(
                    pass_a_size, of, crops, dtype=dtype
                ),  # type: ignore[misc]
                lambda crops=crops, dtype=dtype, of=backbone: seconds(
                    one_pass, of, crops, dtype=dtype
                ),  # type: ignore[misc]
                rounds=ROUNDS,
            )
            precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
            figures[f"{name}, {precision}: a pass a size, s"] = [round(value, 4) for value in ours]
            figures[f"{name}, {precision}: one pass, s"] = [round(value, 4) for value in theirs]
            figures[f"{name}, {precision}: median of one pass over a pass a size"] = round(
                median_ratio(theirs, ours), 3
            )
    write_result("crops", figures)


if __name__ == "__main__":
    main()
