"""One plain Vision Transformer that is each family's backbone by its config, never by subclass.

DINO (arXiv 2104.14294) and iBOT (2111.07832): the plain ViT. DINOv2 (2304.07193): LayerScale,
SwiGLU in its largest size; registers (2309.16588). DINOv3 (2508.10104): rotary positions, storage
tokens (its word for registers), masked key bias. A student's masks and noise come with each call;
heads belong to the methods.

Letters: B images, (H, W) pixels, (h, w) patches, P = h * w, N = 1 + registers + P tokens, D
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from featkit_train.networks.base import Activations, Backbone, Features, Masked
from featkit_train.networks.noise import ALL_ROWS, NO_NOISE, KeptRows, Noise
from featkit_train.networks.positions import (
    ResampleRule,
    resample_table,
    rotary_periods,
    rotary_table,
    rotate,
)

# Up to here plain products with a softmax beat torch's fused attention on a processor, forward and
# backward.
PLAIN_ATTENTION_TOKENS = 300


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """All that tells one ViT from another. Sizes in tokens or channels, `patch` in pixels."""

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
            raise ValueError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        if self.position == "rotary" and (self.width // self.num_heads) % 4:
            raise ValueError(
                f"rotary positions need heads of a multiple of 4 channels, not {self.head_width}"
            )

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads


class VisionTransformer(Backbone):
    """Images (B, 3, H, W), normalized floats with H and W multiples of the patch, to Features."""

    has_attention = True
    registers: Tensor
    rotary_periods: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(patch=config.patch, width=config.width, depth=config.depth)
        self.config = config
        # compute blocks again in the backward pass instead of keeping what they need
        self.checkpoint_activations = False
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        registers = torch.zeros(1, config.num_registers, config.width)
        if config.num_registers:
            self.registers = nn.Parameter(registers)
        else:  # fully_shard cannot share out the gradient of an empty parameter
            self.register_buffer("registers", registers)
        if config.position == "learned":
            self.class_position = nn.Parameter(torch.zeros(1, 1, config.width))
            self.patch_positions = nn.Parameter(
                torch.zeros(config.position_grid, config.position_grid, config.width)
            )
        else:  # kept with the weights: published files carry theirs, rounded as they were trained
            self.register_buffer(
                "rotary_periods", rotary_periods(config.head_width, base=config.rotary_base)
            )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.apply(_initialize)
        for parameter in (self.class_token, self.registers, *self._positions()):
            nn.init.trunc_normal_(parameter, std=0.02)

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features after the blocks `layers`, counted from 1, each through the last norm; see
        Backbone."""
        tokens, (height, width) = self.tokenize(images)
        rotation = self._rotation(height, width)
        prefix = 1 + self.config.num_registers
        features, class_attention = {}, None
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            tokens, weights = block.with_attention(
                tokens, rotation, wanted=attention and number == self.depth
            )
            if weights is not None:
                class_attention = torch.unflatten(weights[..., prefix:], -1, (height, width))
            if number in layers:
                normed = self.norm(tokens)
                features[number] = Features(
                    normed[:, 0], torch.unflatten(normed[:, prefix:], 1, (height, width))
                )
        return Activations(tuple(features[number] for number in layers), class_attention)

    def student_forward(
        self,
        images: Tensor,
        *,
        masked: Masked | None = None,
        noise: Noise = NO_NOISE,
        norm: nn.Module | None = None,
        class_only: bool = False,
    ) -> Features:
        """Features of the last layer as a student in training computes them; see Backbone."""
        tokens, (height, width) = self.tokenize(images, masked=masked)
        rotation = self._rotation(height, width, scale=noise.rotary_scale)
        for number, block in enumerate(self.blocks):
            last = class_only and number == self.depth - 1
            if self.checkpoint_activations:
                tokens = checkpoint(
                    block, tokens, rotation, noise.of_block(number), last, use_reentrant=False
                )
            else:
                tokens = block(tokens, rotation, noise.of_block(number), last)
        class_token = (self.norm if norm is None else norm)(tokens[:, 0])
        if class_only:
            return Features(class_token, tokens.new_zeros(len(tokens), 0, 0, self.width))
        patches = self.norm(tokens[:, 1 + self.config.num_registers :])
        return Features(class_token, torch.unflatten(patches, 1, (height, width)))

    def tokenize(
        self, images: Tensor, *, masked: Masked | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """(B, N, D) tokens ahead of the first block, and the grid (h, w) of the patches among them.

        Masked patches are the mask token, which then gets its place's position (iBOT; DINOv2's
        released code).
        """
        grid = self.patch_embed(images)
        batch, _, height, width = grid.shape
        patches = grid.flatten(2).transpose(1, 2)
        if masked is not None:
            patches = torch.where(
                masked.masks.flatten(1)[:, :, None], masked.token.to(patches.dtype), patches
            )
        class_token: Tensor = self.class_token
        if self.config.position == "learned":
            rule = ResampleRule(
                offset=self.config.position_offset, antialias=self.config.position_antialias
            )
            patches = patches + resample_table(
                self.patch_positions, height, width, rule=rule
            ).flatten(0, 1)
            class_token = class_token + self.class_position
        prefix = torch.cat([class_token, self.registers], dim=1).expand(batch, -1, -1)
        return torch.cat([prefix, patches], dim=1), (height, width)

    def _rotation(
        self, height: int, width: int, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor] | None:
        if self.config.position != "rotary":
            return None
        return rotary_table(height, width, periods=self.rotary_periods, scale=scale)

    def _positions(self) -> tuple[nn.Parameter, ...]:
        return (
            (self.class_position, self.patch_positions) if self.config.position == "learned" else ()
        )


class Block(nn.Module):
    """Attention, then the MLP, each behind a norm and added back (pre-norm)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.scale1 = LayerScale(config) if config.layer_scale is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else MLP(config)
        self.scale2 = LayerScale(config) if config.layer_scale is not None else nn.Identity()

    def forward(
        self,
        tokens: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        kept: KeptRows = ALL_ROWS,
        class_only: bool = False,
    ) -> Tensor:
        """(B, N, D) to (B, N, D), or to (B, 1, D) of the class token, which is all that a last
        block may be asked for.

        Of each branch only the kept rows are computed, and count for those left out too.
        """
        rows = tokens if kept.attention is None else tokens.index_select(0, kept.attention)
        mixed = self.scale1(self.attention(self.norm1(rows), rotation, class_only=class_only))
        tokens = add_rows(tokens[:, :1] if class_only else tokens, mixed, kept.attention)
        rows = tokens if kept.mlp is None else tokens.index_select(0, kept.mlp)
        return add_rows(tokens, self.scale2(self.mlp(self.norm2(rows))), kept.mlp)

    def with_attention(
        self, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None, *, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, N, D) to (B, N, D), and if wanted (B, heads, N): how much the class token looks at
        each token."""
        queries, keys, values = self.attention.queries_keys_values(self.norm1(tokens), rotation)
        weights = of_class_token(queries, keys) if wanted else None
        tokens = tokens + self.scale1(self.attention.mix(queries, keys, values))
        out: Tensor = tokens + self.scale2(self.mlp(self.norm2(tokens)))
        return out, weights


class Attention(nn.Module):
    """Multi-head self-attention; rotary positions turn the patches' queries and keys, never the
    prefix tokens'."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self,
        tokens: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        *,
        class_only: bool = False,
    ) -> Tensor:
        """(B, N, D) to (B, N, D), or to (B, 1, D) of the class token, which then asks alone."""
        if class_only:
            return self.mix(*self._class_query_keys_values(tokens, rotation))
        return self.mix(*self.queries_keys_values(tokens, rotation))

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each (B, heads, N, d), to (B, N, D)."""
        out: Tensor = self.out(attend(queries, keys, values).transpose(1, 2).flatten(2))
        return out

    def queries_keys_values(
        self, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, heads, N, d), turned by their positions."""
        queries, keys, values = self._heads(F.linear(tokens, self.qkv.weight, self._bias()), 3)
        if rotation is not None:
            queries, keys = (
                self._rotate_patches(queries, rotation),
                self._rotate_patches(keys, rotation),
            )
        return queries, keys, values

    def _class_query_keys_values(
        self, tokens: Tensor, rotation: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The class token's queries (B, heads, 1, d), which no position turns, and all keys and
        values."""
        width, bias = self.config.width, self._bias()
        query_bias, rest = (None, None) if bias is None else (bias[:width], bias[width:])
        (queries,) = self._heads(F.linear(tokens[:, :1], self.qkv.weight[:width], query_bias), 1)
        keys, values = self._heads(F.linear(tokens, self.qkv.weight[width:], rest), 2)
        return queries, keys if rotation is None else self._rotate_patches(keys, rotation), values

    def _bias(self) -> Tensor | None:
        """Of queries, keys and values (3 * D,), that of the keys masked where the family masks it."""
        bias: Tensor | None = self.qkv.bias
        if bias is None or self.config.key_bias:
            return bias
        query_bias, key_bias, value_bias = bias.chunk(3)
        return torch.cat([query_bias, torch.zeros_like(key_bias), value_bias])

    def _heads(self, products: Tensor, count: int) -> tuple[Tensor, ...]:
        """(B, N, count * D) to `count` times (B, heads, N, d)."""
        heads = torch.unflatten(
            products, -1, (count, self.config.num_heads, self.config.head_width)
        )
        return heads.permute(2, 0, 3, 1, 4).unbind(0)

    def _rotate_patches(self, heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        prefix = 1 + self.config.num_registers
        turned = rotate(heads[:, :, prefix:].float(), *rotation).to(heads.dtype)
        return torch.cat([heads[:, :, :prefix], turned], dim=2)


def add_rows(tokens: Tensor, added: Tensor, kept: Tensor | None) -> Tensor:
    """tokens (B, N, D) + added (B, N, D), or where `added` is of the rows `kept` (S,) alone, those
    with it times B / S.

    Stochastic depth that skips the work (arXiv 1603.09382), as DINOv2's released code batches it
    (`drop_add_residual_stochastic_depth`).
    """
    if kept is None:
        return tokens + added
    return tokens.index_add(0, kept, added.to(tokens.dtype), alpha=len(tokens) / len(kept))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (B, heads, N, d). Fused where that is faster, plain products
    where they are.

    An export always takes plain products: what the exporter makes of the fused form has 9 nodes
    more a block.
    """
    if torch.compiler.is_exporting() or (
        queries.device.type == "cpu" and queries.shape[2] <= PLAIN_ATTENTION_TOKENS
    ):
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
        out: Tensor = scores.softmax(dim=-1) @ values
        return out
    return F.scaled_dot_product_attention(queries, keys, values)


def of_class_token(queries: Tensor, keys: Tensor) -> Tensor:
    """(B, heads, N): how much the first token looks at each; of each head the numbers sum to 1.
    Both are (B, heads, N, d)."""
    scores = (queries[:, :, :1] * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    weights: Tensor = scores.softmax(dim=-1)[:, :, 0]
    return weights


class MLP(nn.Module):
    """Linear, GELU (the exact one), Linear."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class SwiGLU(nn.Module):
    """silu(gate) * value, then Linear (arXiv 2002.05202); gate and value are the halves of one
    product, in that order."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(config.width, 2 * config.mlp_width)
        self.out = nn.Linear(config.mlp_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        gate, value = self.gate_and_value(tokens).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (CaiT, arXiv 2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        assert config.layer_scale is not None
        self.gamma = nn.Parameter(torch.full((config.width,), config.layer_scale))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return tokens * self.gamma


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
