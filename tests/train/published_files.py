"""The published backbones as others wrote them, with weights drawn at random, and their files as
their authors name things.

Networks are those of transformers and torchvision, of sizes from the papers; names are those of the
released code: facebookresearch/dino, dinov2 and dinov3, bytedance/ibot. Nothing here is featkit's:
what it loads from such a file is compared with the network itself.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from functools import partial
from pathlib import PosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.torchvision_without_cuda import import_quietly

SIZES = {
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "g": (1536, 40, 24),
    "h": (1280, 32, 20),
    "7b": (4096, 40, 32),
}
DINOV3_MLPS = {"s": 1536, "splus": 1536, "b": 3072, "l": 4096, "hplus": 5120, "7b": 8192}
CONVNEXTS: dict[str, tuple[list[int], list[int]]] = {
    "tiny": ([3, 3, 9, 3], [96, 192, 384, 768]),
    "small": ([3, 3, 27, 3], [96, 192, 384, 768]),
    "base": ([3, 3, 27, 3], [128, 256, 512, 1024]),
    "large": ([3, 3, 27, 3], [192, 384, 768, 1536]),
}

# The names of transformers' modules, and what the released code calls them; queries, keys and
# values are joined below.
OFFICIAL = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.mask_token": "mask_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.(?:projection\.)?": "patch_embed.proj.",
    r"(?:layer)?norm\.": "norm.",
}
OFFICIAL_BLOCK = {
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"attention\.o_proj": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"(norm\d)": r"\1",
    r"mlp\.(fc\d)": r"mlp.\1",
}
PLAIN_MLP = {r"mlp\.up_proj": "mlp.fc1", r"mlp\.down_proj": "mlp.fc2"}  # DINOv3
# DINOv3
GATED_MLP = {r"mlp\.gate_proj": "mlp.w1", r"mlp\.up_proj": "mlp.w2", r"mlp\.down_proj": "mlp.w3"}


class Seen(NamedTuple):
    """The outputs of a reference: class_token (B, D), patch_tokens (B, P, D)."""

    class_token: Tensor
    patch_tokens: Tensor


def config_of(name: str, *, depth: int | None = None) -> Any:
    """transformers' config of a published ViT or ConvNeXt; `depth` blocks instead of all, of a
    ConvNeXt in each stage."""
    transformers = import_quietly("transformers")
    family, _, kind = name.partition("_")
    if "convnext" in kind:
        depths, widths = CONVNEXTS[kind.removeprefix("convnext_")]
        return transformers.DINOv3ConvNextConfig(
            depths=depths if depth is None else [depth] * 4, hidden_sizes=widths
        )
    matched = re.fullmatch(r"vit(s|b|l|g|h|7b)(8|14|16)(plus)?(?:_reg|_sat)?", kind)
    assert matched
    width, blocks, heads = SIZES[matched[1]]
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": blocks if depth is None else depth,
        "num_attention_heads": heads,
        "patch_size": int(matched[2]),
    }
    if family in ("dino", "ibot"):
        return transformers.ViTConfig(
            **sizes, intermediate_size=4 * width, image_size=224, layer_norm_eps=1e-6
        )
    if family == "dinov2":
        sizes |= {"image_size": 518, "use_swiglu_ffn": matched[1] == "g"}
        if kind.endswith("_reg"):
            return transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=4)
        return transformers.Dinov2Config(**sizes)
    bias = matched[1] != "7b"
    gated = matched[1] == "7b" or matched[3] == "plus"
    return transformers.DINOv3ViTConfig(
        **sizes,
        intermediate_size=DINOV3_MLPS[matched[1] + (matched[3] or "")],
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        query_bias=bias,
        value_bias=bias,
        num_register_tokens=4,
    )


def reference(name: str, *, depth: int | None = None, seed: int = 0, empty: bool = False) -> Any:
    """The network of a published backbone, every weight drawn; `empty`: without memory, for its
    names and shapes."""
    with torch.device("meta"):
        if name == "dino_resnet50":
            model = import_quietly("torchvision.models").resnet50()
        else:
            transformers = import_quietly("transformers")
            config = config_of(name, depth=depth)
            kind = type(config).__name__.replace("Config", "Model")
            options = {"add_pooling_layer": False} if kind == "ViTModel" else {}
            model = getattr(transformers, kind)(config, **options)
    if empty:
        return model.eval()
    model.load_state_dict(drawn(model.state_dict(), seed=seed), assign=True)
    if hasattr(model, "rope_embeddings"):
        # its buffer is not part of the state
        model.rope_embeddings = type(model.rope_embeddings)(model.config)
    if name.startswith(("dino_vit", "ibot_", "dinov2_")):
        rule = foreign_with_registers if name.endswith("_reg") else foreign
        model.embeddings.interpolate_pos_encoding = partial(_positions, model.embeddings, rule)
    return model.eval()


def drawn(state: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Tensors of those shapes, none of them near its initial value: LayerScale, biases and
    statistics would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():  # BatchNorm's count of batches
            made[name] = torch.full(tensor.shape, 7, dtype=tensor.dtype)
        elif name.endswith("running_var"):
            made[name] = 0.5 + noise.abs()
        elif name.endswith(("lambda1", "gamma")) or (tensor.ndim == 1 and name.endswith("weight")):
            made[name] = 1 + 0.2 * noise
        elif tensor.ndim > 1 and name.endswith("weight"):
            made[name] = noise / tensor[0].numel() ** 0.5
        else:
            made[name] = 0.5 * noise
    return made


def foreign(grid: Tensor, rows: int, columns: int) -> Tensor:
    """interpolate_pos_encoding of DINO, iBOT and DINOv2, whose 0.1 keeps the size from being
    rounded down. (1, D, G, G) in."""
    side = grid.shape[2]
    return F.interpolate(
        grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic"
    )


def foreign_with_registers(grid: Tensor, rows: int, columns: int) -> Tensor:
    """The same of DINOv2 with registers: interpolate_offset=0.0, interpolate_antialias=True."""
    return F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)


def _positions(embeddings: Any, rule: Any, _tokens: Tensor, height: int, width: int) -> Tensor:
    table: Tensor = embeddings.position_embeddings
    patch = embeddings.patch_embeddings.projection.kernel_size[0]
    rows, columns = height // patch, width // patch
    side = round((table.shape[1] - 1) ** 0.5)
    if rows == columns == side:
        return table
    grid = rule(table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2), rows, columns)
    assert grid.shape[2:] == (rows, columns)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


@torch.no_grad()
def see(model: Any, images: Tensor) -> Seen:
    """A reference's own forward, without the registers among its tokens."""
    if not hasattr(model, "config"):  # torchvision's
        maps: list[Tensor] = []
        hook = model.layer4.register_forward_hook(
            lambda _module, _inputs, output: maps.append(output)
        )
        pooled: list[Tensor] = []
        other = model.fc.register_forward_pre_hook(lambda _module, inputs: pooled.append(inputs[0]))
        model(images)
        hook.remove()
        other.remove()
        return Seen(pooled[0], maps[0].flatten(2).transpose(1, 2))
    options = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    tokens = model(images, **options).last_hidden_state
    return Seen(tokens[:, 0], tokens[:, 1 + getattr(model.config, "num_register_tokens", 0) :])


def official(name: str, model: Any) -> dict[str, Tensor]:
    """The network's weights by the names of the released code, with everything else that its files
    hold."""
    state: dict[str, Tensor] = model.state_dict()
    if name == "dino_resnet50":  # the released network has no classifier
        return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    if "convnext" in name:
        return _official_convnext(state)
    family = name.partition("_")[0]
    blocks = {"dinov2": "encoder.layer", "dinov3": "model.layer"}.get(family, "layers")
    gated = f"{blocks}.0.mlp.gate_proj.weight" in state
    names = OFFICIAL | {
        r"embeddings\.register_tokens": (
            "storage_tokens" if family == "dinov3" else "register_tokens"
        )
    }
    in_block = OFFICIAL_BLOCK | (({} if family == "dinov2" else GATED_MLP) if gated else PLAIN_MLP)
    made: dict[str, Tensor] = {}
    for key, tensor in state.items():
        block = re.match(rf"{re.escape(blocks)}\.(\d+)\.", key)
        if block is None:
            made[_renamed(key, names)] = tensor
        elif not re.search(r"[qkv]_proj", key) and not (
            family == "dinov2" and gated and "mlp." in key
        ):
            made[f"blocks.{block[1]}.{_renamed(key[block.end() :], in_block)}"] = tensor
    for number in range(model.config.num_hidden_layers):
        theirs, block_name = f"{blocks}.{number}.", f"blocks.{number}."
        for kind in ("weight", "bias"):
            parts = [state.get(f"{theirs}attention.{letter}_proj.{kind}") for letter in "qkv"]
            if parts[0] is None:
                continue
            if parts[1] is None:  # DINOv3's masked keys: whatever stands there is multiplied by 0
                parts[1] = torch.full_like(parts[0], 3.0)
                mask = torch.cat(
                    [
                        torch.ones_like(parts[0]),
                        torch.zeros_like(parts[0]),
                        torch.ones_like(parts[0]),
                    ]
                )
                made[f"{block_name}attn.qkv.bias_mask"] = mask
            made[f"{block_name}attn.qkv.{kind}"] = torch.cat(
                [part for part in parts if part is not None]
            )
            if family == "dinov2" and gated:  # SwiGLUFFNFused
                both = [state[f"{theirs}mlp.{half}_proj.{kind}"] for half in ("gate", "up")]
                made[f"{block_name}mlp.w12.{kind}"] = torch.cat(both)
                made[f"{block_name}mlp.w3.{kind}"] = state[f"{theirs}mlp.down_proj.{kind}"]
    if "mask_token" in made:
        made["mask_token"] = made["mask_token"].reshape(1, -1)
    if family == "dinov3":
        head_width = model.config.hidden_size // model.config.num_attention_heads
        made["rope_embed.periods"] = 100.0 ** (
            torch.arange(head_width // 4, device=made["cls_token"].device) * 4 / head_width
        )
        if name.endswith("_sat") or "vit7b" in name:  # untie_global_and_local_cls_norm
            made |= {
                f"local_cls_norm.{kind}": torch.full_like(made[f"norm.{kind}"], 9.0)
                for kind in ("weight", "bias")
            }
    return made


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for pattern, new in names.items():
        if re.match(pattern, key):
            return re.sub(f"^{pattern}", new, key)
    raise KeyError(key)


def _official_convnext(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = {}
    for key, tensor in state.items():
        new = key.removeprefix("model.")
        new = re.sub(r"^stages\.(\d)\.downsample_layers\.", r"downsample_layers.\1.", new)
        new = re.sub(r"^stages\.(\d)\.layers\.(\d+)\.", r"stages.\1.\2.", new)
        new = re.sub(r"^layer_norm\.", "norm.", new)
        new = (
            new.replace("depthwise_conv", "dwconv")
            .replace("pointwise_conv", "pwconv")
            .replace(".layer_norm.", ".norm.")
        )
        made[new] = tensor
    return {**made, "norms.3.weight": made["norm.weight"], "norms.3.bias": made["norm.bias"]}


def in_chunks(state: Mapping[str, Tensor], *, blocks_a_chunk: int) -> dict[str, Tensor]:
    """The names that DINOv2's BlockChunk makes: blocks.0.3 of blocks.3, counted on through all
    chunks."""
    return {
        re.sub(
            r"^blocks\.(\d+)\.",
            lambda found: f"blocks.{int(found[1]) // blocks_a_chunk}.{found[1]}.",
            name,
        ): tensor
        for name, tensor in state.items()
    }


@torch.enable_grad()
def full_checkpoint(
    teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], *, masked: bool = False
) -> dict[str, Any]:
    """Return all that main_dino.py (main_ibot.py if `masked`) saves after an epoch.

    The student is wrapped for data parallelism, the teacher is not.
    """
    width = teacher["norm.weight"].shape[0]
    head = {
        "mlp.0.weight": torch.ones(32, width),
        "mlp.0.bias": torch.ones(32),
        "last_layer.weight_g": torch.ones(64, 1),
        "last_layer.weight_v": torch.ones(64, 32),
    }
    parameter = nn.Parameter(torch.ones(4, 4))
    groups: list[dict[str, Any]] = [
        {"params": [parameter]},
        {"params": [nn.Parameter(torch.ones(4))], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    parameter.square().sum().backward()
    optimizer.step()
    prefixed = {"backbone." + name: tensor for name, tensor in student.items()}
    if masked:
        prefixed["backbone.masked_embed"] = torch.ones(1, width)
    return {
        "student": {
            f"module.{name}": tensor
            for name, tensor in [*prefixed.items(), *_headed(head, 2.0).items()]
        },
        "teacher": {
            **{"backbone." + name: tensor for name, tensor in teacher.items()},
            **_headed(head, 3.0),
        },
        "optimizer": optimizer.state_dict(),
        "epoch": 100,
        "args": argparse.Namespace(
            arch="vit_small",
            patch_size=16,
            lr=5e-4,
            global_crops_scale=(0.4, 1.0),
            use_fp16=True,
            output_dir=PosixPath("/logs"),
        ),
        "fp16_scaler": {
            "scale": 65536.0,
            "growth_factor": 2.0,
            "growth_interval": 2000,
            "_growth_tracker": 7,
        },
        "dino_loss": {"center": torch.ones(1, 64)},
        "loss": np.float64(2.5),
        "best": np.float32(0.5),
    }


def _headed(head: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {f"head.{name}": factor * tensor for name, tensor in head.items()}


def draw_images(patch: int, rows: int, columns: int, *, batch: int = 1) -> Tensor:
    """Return normalized noise (B, 3, H, W) of the given height and width in patches."""
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(batch, 3, patch * rows, patch * columns, generator=generator)


def assert_same(features: tuple[Tensor, Tensor], expected: Seen) -> None:
    """Features of featkit's, and a reference's of the same images, within 1e-5 of their scale."""
    class_token, patch_tokens = features
    for ours, theirs in (
        (class_token, expected.class_token),
        (patch_tokens.flatten(1, 2), expected.patch_tokens),
    ):
        scale = theirs.std()
        assert scale > 0.1
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=1e-4, atol=2e-5)
