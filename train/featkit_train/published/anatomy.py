"""What the shapes of weights say of the Vision Transformer they belong to, and which published ones
are made alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from featkit.wording import counted
from featkit_train.published.zoo import PUBLISHED, Published


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Sizes of a Vision Transformer; `grid` is the side of its position table, None for rotary
    positions."""

    width: int
    depth: int
    patch: int
    mlp: str
    mlp_width: int
    layer_scale: bool
    num_registers: int
    grid: int | None

    def words(self, *, only: tuple[str, ...] = ()) -> str:
        """The sizes for people: all of them, or those named."""
        said = {
            "width": f"width {self.width}",
            "depth": counted(self.depth, "block"),
            "patch": f"patches of {self.patch} pixels",
            "mlp": f"a {'SwiGLU' if self.mlp == 'swiglu' else 'plain'} MLP",
            "mlp_width": f"an MLP of width {self.mlp_width}",
            "layer_scale": "LayerScale" if self.layer_scale else "no LayerScale",
            "num_registers": (
                counted(self.num_registers, "register") if self.num_registers else "no registers"
            ),
            "grid": (
                "rotary positions"
                if self.grid is None
                else f"a position table of {self.grid} × {self.grid}"
            ),
        }
        return ", ".join(words for name, words in said.items() if not only or name in only)

    def differs(self, other: Anatomy) -> tuple[str, ...]:
        """Names of the sizes that differ and that do not follow from the file: a table may have
        another grid."""
        return tuple(
            size.name
            for size in fields(self)
            if getattr(self, size.name) != getattr(other, size.name)
            and not (size.name == "grid" and None not in (self.grid, other.grid))
        )


def anatomy_of(outlines: Mapping[str, Tensor]) -> Anatomy | None:
    """The sizes of a Vision Transformer, by its weights under our names; None for something else,
    or too little of one."""
    patch, token = outlines.get("patch_embed.weight"), outlines.get("class_token")
    blocks = [int(match[1]) for name in outlines if (match := re.match(r"blocks\.(\d+)\.", name))]
    first, gated = (
        outlines.get("blocks.0.mlp.fc1.weight"),
        outlines.get("blocks.0.mlp.gate_and_value.weight"),
    )
    mlp = first if gated is None else gated
    if (
        patch is None
        or token is None
        or not blocks
        or mlp is None
        or patch.ndim != 4
        or token.ndim != 3
        or mlp.ndim != 2
    ):
        return None
    registers, table = outlines.get("registers"), outlines.get("patch_positions")
    return Anatomy(
        width=token.shape[-1],
        depth=max(blocks) + 1,
        patch=patch.shape[-1],
        mlp="gelu" if gated is None else "swiglu",
        mlp_width=mlp.shape[0] if gated is None else mlp.shape[0] // 2,
        layer_scale="blocks.0.scale1.gamma" in outlines,
        num_registers=0 if registers is None or registers.ndim != 3 else registers.shape[1],
        grid=None if table is None else table.shape[0],
    )


def anatomy_of_row(row: Published) -> Anatomy:
    """The sizes of a published Vision Transformer."""
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
    """The published Vision Transformers of these sizes, whatever the grid of their position tables."""
    return [
        row
        for row in PUBLISHED.values()
        if row.kind == "vit" and not anatomy.differs(anatomy_of_row(row))
    ]


def nearest_row(anatomy: Anatomy) -> Published:
    """The published Vision Transformer that differs in the fewest sizes, and in width and depth the
    least."""

    def distance(row: Published) -> tuple[int, int, int]:
        ours = anatomy_of_row(row)
        return (
            len(anatomy.differs(ours)),
            abs(ours.width - anatomy.width),
            abs(ours.depth - anatomy.depth),
        )

    return min((row for row in PUBLISHED.values() if row.kind == "vit"), key=distance)
