"""One plain Vision Transformer for every family. Families differ in the config, not in subclasses.

DINO (arXiv 2104.14294) and iBOT (2111.07832) use the plain ViT. DINOv2 (2304.07193) adds LayerScale
and, in its largest size, SwiGLU; registers come from 2309.16588. DINOv3 (2508.10104) has rotary
positions, registers (it calls them storage tokens) and no bias of keys. The sizes of ViT-S, ViT-B
and so on are in vit_config.VARIANTS. Projection heads are separate: they belong to the methods.

The file reads from pixels to tokens: VisionTransformer, Block, Attention, the MLPs.

Letters: B images, (H, W) pixels, (h, w) patches, P = h * w, R registers, N = 1 + R + P tokens,
D width, A attention heads, d = D / A. Tokens are in the order class token, registers, patches
(row by row).
"""

# mypy: no-warn-return-any
# (a call of an nn.Module is typed Any)

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from featkit_train.networks import positions
from featkit_train.networks.base import Activations, Backbone, Features, Masked
from featkit_train.networks.noise import ALL_ROWS, NO_NOISE, KeptRows, Noise
from featkit_train.networks.vit_config import ViTConfig

# On a CPU, and up to this many tokens, plain matrix products with a softmax are faster than torch's
# fused attention, forward and backward.
PLAIN_ATTENTION_TOKENS = 300

Rotation = tuple[Tensor, Tensor]  # sine and cosine, each (P, d)


class Intermediates(NamedTuple):
    """The intermediates after one block."""

    layer: int  # counted from 1
    grid: tuple[int, int]  # (h, w)
    tokens: Tensor  # (B, N, D), before the last norm
    class_attention: Tensor | None  # (B, A, N), how much the class token attends to each token


class VisionTransformer(Backbone):
    """Map normalized images (B, 3, H, W), H and W multiples of the patch, to Features."""

    has_attention = True
    registers: Tensor
    rotary_periods: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(patch=config.patch, width=config.width, depth=config.depth)
        self.config = config
        self.prefix = 1 + config.num_registers  # tokens before the patches
        # Recompute each block in the backward pass instead of storing its activations.
        self.checkpoint_activations = False
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        registers = torch.zeros(1, config.num_registers, config.width)
        if config.num_registers:
            self.registers = nn.Parameter(registers)
        else:  # FSDP cannot shard the gradient of an empty parameter
            self.register_buffer("registers", registers)
        if config.position == "learned":
            grid = config.position_grid
            self.class_position = nn.Parameter(torch.zeros(1, 1, config.width))
            self.patch_positions = nn.Parameter(torch.zeros(grid, grid, config.width))
        else:  # stored with the weights: published files hold periods that were rounded
            periods = positions.rotary_periods(config.head_width, base=config.rotary_base)
            self.register_buffer("rotary_periods", periods)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.apply(_initialize)
        for parameter in (self.class_token, self.registers):
            nn.init.trunc_normal_(parameter, std=0.02)
        if config.position == "learned":
            nn.init.trunc_normal_(self.class_position, std=0.02)
            nn.init.trunc_normal_(self.patch_positions, std=0.02)

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of `layers`, counted from 1, each after the last norm; see Backbone."""
        features, class_attention = {}, None
        for after in self.run_blocks(images, attention=attention):
            if after.class_attention is not None:
                of_patches = after.class_attention[..., self.prefix :]  # (B, A, P)
                class_attention = torch.unflatten(of_patches, -1, after.grid)  # (B, A, h, w)
            if after.layer in layers:
                tokens = self.norm(after.tokens)
                class_token, patches = tokens[:, 0], tokens[:, self.prefix :]  # (B, D), (B, P, D)
                patches = torch.unflatten(patches, 1, after.grid)  # (B, h, w, D)
                features[after.layer] = Features(class_token, patches)
        return Activations(tuple(features[layer] for layer in layers), class_attention)

    def student_forward(
        self,
        images: Tensor,
        *,
        masked: Masked | None = None,
        noise: Noise = NO_NOISE,
        norm: nn.Module | None = None,
        class_only: bool = False,
    ) -> Features:
        """Return Features of the last layer as a student in training needs them; see Backbone."""
        steps = self.run_blocks(images, masked=masked, noise=noise, class_only=class_only)
        last = collections.deque(steps, maxlen=1).pop()  # run all blocks, keep the last step
        # Two norms, not one: DINOv3 has a separate norm for the class tokens of small crops.
        class_token = (self.norm if norm is None else norm)(last.tokens[:, 0])  # (B, D)
        if class_only:
            # Not len(images), which would fix the batch size of an exported graph.
            return Features(class_token, class_token.new_zeros(images.shape[0], 0, 0, self.width))
        patches = self.norm(last.tokens[:, self.prefix :])  # (B, P, D)
        return Features(class_token, torch.unflatten(patches, 1, last.grid))  # (B, h, w, D)

    def run_blocks(
        self,
        images: Tensor,
        *,
        masked: Masked | None = None,
        noise: Noise = NO_NOISE,
        class_only: bool = False,
        attention: bool = False,
    ) -> Iterator[Intermediates]:
        """Run the blocks over the images' tokens, and yield the intermediates after each.

        class_only: the last block computes only the class token, (B, 1, D).
        attention: the last block also gives the class token's attention weights.
        """
        tokens, grid = self.tokenize(images, masked=masked)
        rotation = self.rotation(grid, scale=noise.rotary_scale)
        for layer, block in enumerate(self.blocks, start=1):
            is_last = layer == self.depth
            rows = noise.of_block(layer - 1)
            inputs = (tokens, rotation, rows, class_only and is_last, attention and is_last)
            if self.checkpoint_activations and torch.is_grad_enabled():
                tokens, weights = checkpoint(block, *inputs, use_reentrant=False)
            else:
                tokens, weights = block(*inputs)
            yield Intermediates(layer, grid, tokens, weights)

    def tokenize(
        self, images: Tensor, *, masked: Masked | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, D) that enter the first block, and the grid (h, w) of patches.

        Masked patches become the mask token, and keep their positions (iBOT; DINOv2's code).
        """
        patch_map = self.patch_embed(images)  # (B, D, h, w)
        batch, _, height, width = patch_map.shape
        patches = patch_map.flatten(2).transpose(1, 2)  # (B, P, D)
        if masked is not None:
            is_masked = masked.masks.flatten(1)[:, :, None]  # (B, P, 1)
            patches = torch.where(is_masked, masked.token.to(patches.dtype), patches)
        class_token: Tensor = self.class_token
        if self.config.position == "learned":
            rule = positions.ResampleRule(
                offset=self.config.position_offset, antialias=self.config.position_antialias
            )
            table = positions.resample_table(self.patch_positions, height, width, rule=rule)
            patches = patches + table.flatten(0, 1)  # (h, w, D) to (P, D), added to (B, P, D)
            class_token = class_token + self.class_position
        prefix = torch.cat([class_token, self.registers], dim=1)  # (1, 1 + R, D)
        prefix = prefix.expand(batch, -1, -1)  # (B, 1 + R, D)
        return torch.cat([prefix, patches], dim=1), (height, width)  # (B, N, D)

    def rotation(self, grid: tuple[int, int], *, scale: float = 1.0) -> Rotation | None:
        """Return the rotary angles of a grid of patches; None if positions are learned."""
        if self.config.position == "learned":
            return None
        return positions.rotary_table(*grid, periods=self.rotary_periods, scale=scale)


class Block(nn.Module):
    """Attention, then the MLP, each after a norm and added to its input (pre-norm)."""

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
        rotation: Rotation | None = None,
        kept: KeptRows = ALL_ROWS,
        class_only: bool = False,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, N, D) to (B, N, D), or to (B, 1, D) if only the class token is wanted.

        kept: the images that each branch is computed for (stochastic depth).
        Also returns the class token's attention weights (B, A, N) if wanted, otherwise None.
        """
        rows = tokens if kept.attention is None else tokens.index_select(0, kept.attention)
        mixed, weights = self.attention(self.norm1(rows), rotation, class_only, want_weights)
        tokens = tokens[:, :1] if class_only else tokens
        tokens = add_rows(tokens, self.scale1(mixed), kept.attention)
        rows = tokens if kept.mlp is None else tokens.index_select(0, kept.mlp)
        return add_rows(tokens, self.scale2(self.mlp(self.norm2(rows))), kept.mlp), weights


class Attention(nn.Module):
    """Multi-head self-attention. Rotary positions rotate queries and keys of patches only."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self,
        tokens: Tensor,
        rotation: Rotation | None = None,
        class_only: bool = False,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, N, D) to (B, N, D), or to (B, 1, D) if only the class token is wanted.

        Also returns the class token's attention weights (B, A, N) if wanted, otherwise None.
        """
        q, k, v = self.class_query(tokens) if class_only else self.heads(tokens)  # (B, A, N, d)
        if rotation is not None:
            # The class token has no position, so a query of it alone is not rotated.
            q = q if class_only else self.rotate_patches(q, rotation)
            k = self.rotate_patches(k, rotation)
        weights = class_token_weights(q, k) if want_weights else None
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)  # (B, N, D)
        return self.out(mixed), weights

    def heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Map (B, N, D) to queries, keys and values, each (B, A, N, d)."""
        return self._split(F.linear(tokens, self.qkv.weight, self._bias()), 3)

    def class_query(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Map (B, N, D) to the class token's query (B, A, 1, d), and all keys and values."""
        width, weight, bias = self.config.width, self.qkv.weight, self._bias()
        q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        (q,) = self._split(F.linear(tokens[:, :1], weight[:width], q_bias), 1)  # (B, A, 1, d)
        k, v = self._split(F.linear(tokens, weight[width:], kv_bias), 2)  # each (B, A, N, d)
        return q, k, v

    def rotate_patches(self, heads: Tensor, rotation: Rotation) -> Tensor:
        """Rotate (B, A, N, d) queries or keys of patches, in float32; leave those before them."""
        prefix = 1 + self.config.num_registers
        patches = positions.rotate(heads[:, :, prefix:].float(), *rotation).to(
            heads.dtype
        )  # (B, A, P, d)
        return torch.cat([heads[:, :, :prefix], patches], dim=2)  # (B, A, N, d)

    def _bias(self) -> Tensor | None:
        """Return the bias (3 * D,) of queries, keys and values, the keys' zeroed if masked."""
        bias: Tensor | None = self.qkv.bias
        if bias is None or self.config.key_bias:
            return bias
        q_bias, k_bias, v_bias = bias.chunk(3)  # each (D,)
        return torch.cat([q_bias, torch.zeros_like(k_bias), v_bias])  # (3 * D,)

    def _split(self, products: Tensor, count: int) -> tuple[Tensor, ...]:
        """Map (B, N, count * D) to `count` tensors (B, A, N, d)."""
        sizes = (count, self.config.num_heads, self.config.head_width)
        products = torch.unflatten(products, -1, sizes)  # (B, N, count, A, d)
        return products.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, A, N, d)


def add_rows(tokens: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
    """Add a residual branch to tokens (B, N, D), computed for all images or for a sample of them.

    kept: (S,) row indices that the branch (S, N, D) was computed for; it is scaled by B / S, so
    that its expectation is the same. This is stochastic depth that skips the work (arXiv
    1603.09382), as in DINOv2's `drop_add_residual_stochastic_depth`.
    """
    if kept is None:
        return tokens + branch
    return tokens.index_add(0, kept, branch.to(tokens.dtype), alpha=len(tokens) / len(kept))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v of (B, A, N, d) tensors, by the faster of two ways."""
    # An export takes the plain form, since the fused one becomes nine more nodes per block. It is
    # tested first: tracing would put a comparison with the number of tokens into the graph.
    if torch.compiler.is_exporting() or (
        q.device.type == "cpu" and q.shape[2] <= PLAIN_ATTENTION_TOKENS
    ):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, A, N, N)
        return scores.softmax(dim=-1) @ v  # (B, A, N, d)
    return F.scaled_dot_product_attention(q, k, v)


def class_token_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return the class token's attention weights (B, A, N), which sum to 1 in each head."""
    scores = (q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, A, 1, N)
    return scores.softmax(dim=-1)[:, :, 0]  # (B, A, N)


class MLP(nn.Module):
    """Linear, exact GELU (not the tanh approximation), Linear."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwiGLU(nn.Module):
    """silu(gate) * value, then Linear (arXiv 2002.05202)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(config.width, 2 * config.mlp_width)
        self.out = nn.Linear(config.mlp_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        gate, value = self.gate_and_value(tokens).chunk(2, dim=-1)  # each (B, N, mlp_width)
        return self.out(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (CaiT, arXiv 2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        assert config.layer_scale is not None
        self.gamma = nn.Parameter(torch.full((config.width,), config.layer_scale))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        return tokens * self.gamma


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
