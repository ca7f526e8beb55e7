"""The sizes of a Vision Transformer: one frozen config, and the published variants by name.

Nothing here imports torch, so listing models and settings stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that distinguishes one ViT from another. The defaults are a ViT-S/16."""

    patch: int = 16
    """Side of a patch, in pixels."""
    width: int = 384
    """Channels of a token."""
    depth: int = 12
    """Blocks."""
    num_heads: int = 6
    """Attention heads of a block."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Kind of the MLP in a block."""
    mlp_width: int = 1536
    """Width of the MLP's hidden layer, after any rounding that a family does."""
    position: Literal["learned", "rotary"] = "learned"
    """Kind of position embedding."""
    position_grid: int = 14
    """Side of the learned position table, in patches."""
    position_offset: float = 0.1
    """Offset when the learned table is resampled to another grid; see positions.ResampleRule."""
    position_antialias: bool = False
    """Resample the learned table with antialiasing."""
    rotary_base: float = 100.0
    """Base of the rotary frequencies."""
    num_registers: int = 0
    """Register tokens (arXiv 2309.16588)."""
    layer_scale: float | None = None
    """Initial value of LayerScale. null: no LayerScale."""
    qkv_bias: bool = True
    """Add a bias to queries, keys and values."""
    key_bias: bool = True
    """Keep the bias of keys. DINOv3 masks it: a constant added to all keys changes no softmax."""
    norm_eps: float = 1e-6
    """Epsilon of the layer norms."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} cannot be divided into num_heads {self.num_heads} equal heads"
            )
        if self.position == "rotary" and self.head_width % 4:
            raise ValueError(
                f"rotary positions need a head width that is a multiple of 4, not {self.head_width}"
            )

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads


# Arguments of ViTConfig; patch size, positions and registers vary within a variant.
# DINO: arXiv 2104.14294. iBOT: 2111.07832. DINOv2: 2304.07193. DINOv3: 2508.10104.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    # DINO, table 1; DINOv2, table 17; DINOv3, table 14
    "ViT-S": {"width": 384, "depth": 12, "num_heads": 6, "mlp": "gelu", "mlp_width": 1536},
    "ViT-B": {"width": 768, "depth": 12, "num_heads": 12, "mlp": "gelu", "mlp_width": 3072},
    # iBOT, section 4; DINOv2, table 17; DINOv3, table 14
    "ViT-L": {"width": 1024, "depth": 24, "num_heads": 16, "mlp": "gelu", "mlp_width": 4096},
    # DINOv2, table 17
    "ViT-g": {"width": 1536, "depth": 40, "num_heads": 24, "mlp": "swiglu", "mlp_width": 4096},
    # DINOv3, table 14
    "ViT-S+": {"width": 384, "depth": 12, "num_heads": 6, "mlp": "swiglu", "mlp_width": 1536},
    "ViT-H+": {"width": 1280, "depth": 32, "num_heads": 20, "mlp": "swiglu", "mlp_width": 5120},
    # DINOv3, table 2
    "ViT-7B": {"width": 4096, "depth": 40, "num_heads": 32, "mlp": "swiglu", "mlp_width": 8192},
}
