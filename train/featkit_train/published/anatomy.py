"""Infer a ViT's sizes from the shapes of its weights, and find published ViTs of these sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from featkit.wording import counted
from featkit_train.published.zoo import PUBLISHED, Published


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Sizes of a ViT. grid: side of its position table in patches; None for rotary positions."""

    width: int
    depth: int
    patch: int
    mlp: str
    mlp_width: int
    layer_scale: bool
    num_registers: int
    grid: int | None

    def words(self, *, only: tuple[str, ...] = ()) -> str:
        """Describe the sizes for people: all of them, or those named in `only`."""
        table = f"a position table of {self.grid} × {self.grid}"
        descriptions = {
            "width": f"width {self.width}",
            "depth": counted(self.depth, "block"),
            "patch": f"patches of {self.patch} pixels",
            "mlp": f"a {'SwiGLU' if self.mlp == 'swiglu' else 'plain'} MLP",
            "mlp_width": f"an MLP of width {self.mlp_width}",
            "layer_scale": "LayerScale" if self.layer_scale else "no LayerScale",
            "num_registers": (
                counted(self.num_registers, "register") if self.num_registers else "no registers"
            ),
            "grid": "rotary positions" if self.grid is None else table,
        }
        return ", ".join(text for name, text in descriptions.items() if not only or name in only)

    def differs(self, other: Anatomy) -> tuple[str, ...]:
        """Return the names of sizes that differ.

        Position tables never count as different, since a table of any grid can be loaded.
        """
        return tuple(
            size.name
            for size in fields(self)
            if getattr(self, size.name) != getattr(other, size.name)
            and not (size.name == "grid" and None not in (self.grid, other.grid))
        )


def anatomy_of(outlines: Mapping[str, Tensor]) -> Anatomy | None:
    """Return the sizes of a ViT from its weights under our names; None if too few are there."""
    gated = outlines.get("blocks.0.mlp.gate_and_value.weight")
    mlp = outlines.get("blocks.0.mlp.fc1.weight") if gated is None else gated
    patch, token = outlines.get("patch_embed.weight"), outlines.get("class_token")
    depth = _depth(outlines)
    if patch is None or token is None or mlp is None or depth == 0:
        return None
    if (patch.ndim, token.ndim, mlp.ndim) != (4, 3, 2):
        return None
    registers, table = outlines.get("registers"), outlines.get("patch_positions")
    return Anatomy(
        width=token.shape[-1],
        depth=depth,
        patch=patch.shape[-1],
        mlp="gelu" if gated is None else "swiglu",
        mlp_width=mlp.shape[0] if gated is None else mlp.shape[0] // 2,
        layer_scale="blocks.0.scale1.gamma" in outlines,
        num_registers=0 if registers is None or registers.ndim != 3 else registers.shape[1],
        grid=None if table is None else table.shape[0],
    )


def _depth(outlines: Mapping[str, Tensor]) -> int:
    indices = [int(match[1]) for name in outlines if (match := re.match(r"blocks\.(\d+)\.", name))]
    return max(indices, default=-1) + 1


def anatomy_of_row(row: Published) -> Anatomy:
    """Return the sizes of a published ViT."""
    arch = row.arch
    return Anatomy(
        width=arch["width"],
        depth=arch["depth"],
        patch=arch["patch"],
        mlp=arch.get("mlp", "gelu"),
        mlp_width=arch["mlp_width"],
        layer_scale=arch.get("layer_scale") is not None,
        num_registers=arch.get("num_registers", 0),
        grid=None if arch.get("position") == "rotary" else arch["position_grid"],
    )


def rows_like(anatomy: Anatomy) -> list[Published]:
    """Return the published ViTs of these sizes, whatever the grid of their position tables."""
    return [row for row in _vits() if not anatomy.differs(anatomy_of_row(row))]


def nearest_row(anatomy: Anatomy) -> Published:
    """Return the published ViT that differs in the fewest sizes, and least in width and depth."""

    def distance(row: Published) -> tuple[int, int, int]:
        ours = anatomy_of_row(row)
        return (
            len(anatomy.differs(ours)),
            abs(ours.width - anatomy.width),
            abs(ours.depth - anatomy.depth),
        )

    return min(_vits(), key=distance)


def _vits() -> list[Published]:
    return [row for row in PUBLISHED.values() if row.kind == "vit"]
