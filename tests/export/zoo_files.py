"""Rows of the zoo with drawn weights, as their authors and Hugging Face write them: the names of
key_maps the other way round.

Written by hand and by family, not by turning key_maps' rules over, so that a wrong rule there does
not meet itself here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featkit_train.published.zoo import Published
from featkit_train.weights import write_tensors

Renames = tuple[tuple[str, str], ...]
BLOCK = r"blocks\.(\d+)\."
OFFICIAL: Renames = (
    (r"class_token", "cls_token"),
    (r"patch_embed\.", "patch_embed.proj."),
    (r"rotary_periods", "rope_embed.periods"),
    (BLOCK + r"attention\.qkv\.", r"blocks.\1.attn.qkv."),
    (BLOCK + r"attention\.out\.", r"blocks.\1.attn.proj."),
    (BLOCK + r"scale(\d)\.gamma", r"blocks.\1.ls\2.gamma"),
    (BLOCK + r"mlp\.gate_and_value\.", r"blocks.\1.mlp.w12."),
    (BLOCK + r"mlp\.out\.", r"blocks.\1.mlp.w3."),
)
HUGGING_FACE: Renames = (
    (r"class_token", "embeddings.cls_token"),
    (r"registers", "embeddings.register_tokens"),
    (BLOCK + r"scale(\d)\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (BLOCK + r"attention\.out\.", r"encoder.layer.\1.attention.output.dense."),
    (BLOCK + r"attention\.([qkv]\w+)\.", r"encoder.layer.\1.attention.attention.\2."),
    (BLOCK + r"mlp\.gate_and_value\.", r"encoder.layer.\1.mlp.weights_in."),
    (BLOCK + r"mlp\.out\.", r"encoder.layer.\1.mlp.weights_out."),
    (BLOCK, r"encoder.layer.\1."),
    (r"patch_embed\.", "embeddings.patch_embeddings.projection."),
    (r"norm\.", "layernorm."),
)
HUGGING_FACE_DINOV3: Renames = (
    (r"class_token", "embeddings.cls_token"),
    (r"registers", "embeddings.register_tokens"),
    (BLOCK + r"scale(\d)\.gamma", r"layer.\1.layer_scale\2.lambda1"),
    (BLOCK + r"attention\.out\.", r"layer.\1.attention.o_proj."),
    (BLOCK + r"attention\.([qkv])\w+\.", r"layer.\1.attention.\2_proj."),
    (BLOCK + r"mlp\.fc1\.", r"layer.\1.mlp.up_proj."),
    (BLOCK + r"mlp\.(?:fc2|out)\.", r"layer.\1.mlp.down_proj."),
    (BLOCK, r"layer.\1."),
    (r"patch_embed\.", "embeddings.patch_embeddings."),
)
HUGGING_FACE_CONVNEXT: Renames = (
    (r"body\.stem\.(\d)\.", r"stages.0.downsample_layers.\1."),
    (r"body\.stages\.(\d)\.downsample\.(\d)\.", r"stages.\1.downsample_layers.\2."),
    (r"body\.stages\.(\d)\.blocks\.(\d+)\.conv_dw\.", r"stages.\1.layers.\2.depthwise_conv."),
    (r"body\.stages\.(\d)\.blocks\.(\d+)\.norm\.", r"stages.\1.layers.\2.layer_norm."),
    (r"body\.stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)\.", r"stages.\1.layers.\2.pointwise_conv\3."),
    (r"body\.stages\.(\d)\.blocks\.(\d+)\.gamma", r"stages.\1.layers.\2.gamma"),
    (r"norm\.", "layer_norm."),
)


def official_names(ours: Mapping[str, Tensor], published: Published) -> dict[str, Tensor]:
    """A ViT's or a ResNet's tensors as facebookresearch/dino, dinov2 and dinov3 and bytedance/ibot
    call them."""
    if published.kind == "resnet":
        return {name.removeprefix("body."): tensor for name, tensor in ours.items()}
    registers = "storage_tokens" if published.family == "dinov3" else "register_tokens"
    theirs = _renamed(_with_positions(ours, "pos_embed"), (*OFFICIAL, ("registers", registers)))
    # of the training objective; timm knows by it whose file it is
    if published.family.startswith("dinov"):
        theirs["mask_token"] = torch.zeros(1, published.width)
    if published.family == "dinov3":
        for name in [name for name in theirs if ".mlp.w12." in name]:
            halves = theirs.pop(name).chunk(2)
            theirs |= {
                name.replace("w12", part): half
                for part, half in zip(("w1", "w2"), halves, strict=True)
            }
        for name in [name for name in theirs if name.endswith("attn.qkv.bias")]:
            mask = torch.ones(3, published.width)
            mask[1] = 0.0
            theirs[f"{name}_mask"] = mask.flatten()
    return theirs


def hugging_face_names(ours: Mapping[str, Tensor], published: Published) -> dict[str, Tensor]:
    """The tensors of DINOv2, DINOv3 and its ConvNeXts as their repositories of Hugging Face call
    them."""
    if published.kind == "convnext":
        return _renamed(ours, HUGGING_FACE_CONVNEXT)
    parted: dict[str, Tensor] = {}
    for name, tensor in _with_positions(ours, "embeddings.position_embeddings").items():
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                parted[name.replace("qkv", part)] = third
        elif ".gate_and_value." in name and published.family == "dinov3":
            for part, half in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                parted[name.replace("gate_and_value", part)] = half
        elif name != "rotary_periods":
            parted[name] = tensor
    parted["embeddings.mask_token"] = torch.zeros(1, published.width)  # of the training objective
    if published.family != "dinov3":
        return _renamed(parted, HUGGING_FACE)
    theirs = _renamed(parted, HUGGING_FACE_DINOV3)
    return {name: tensor for name, tensor in theirs.items() if not name.endswith("k_proj.bias")}


def write_published(published: Published, ours: Mapping[str, Tensor], folder: Path) -> Path:
    """Write the tensors in the format that the row's publisher has, and return the file or folder
    for `weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    if (published.hub or "").startswith("facebook/"):
        config = hugging_face_config(published)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": list(published.geometry.mean)})
        )
        write_tensors(
            folder / "model.safetensors",
            hugging_face_names(ours, published),
            metadata={"format": "pt"},
        )
        return folder
    theirs = official_names(ours, published)
    path = folder / "pretrain.pth"
    torch.save({"state_dict": theirs} if published.family == "ibot" else theirs, path)
    return path


def hugging_face_config(published: Published) -> dict[str, Any]:
    """Return the content of a row's config.json."""
    arch = published.arch
    if published.kind == "convnext":
        return {
            "model_type": "dinov3_convnext",
            "hidden_sizes": list(arch["dims"]),
            "depths": list(arch["depths"]),
        }
    gated = arch.get("mlp") == "swiglu"
    common = {
        "hidden_size": arch["width"],
        "num_hidden_layers": arch["depth"],
        "num_attention_heads": arch["num_heads"],
        "patch_size": arch["patch"],
        "layer_norm_eps": arch.get("norm_eps", 1e-6),
        "num_register_tokens": arch.get("num_registers", 0),
    }
    if published.family == "dinov3":
        biased = arch.get("qkv_bias", True)
        return {
            **common,
            "model_type": "dinov3_vit",
            "intermediate_size": arch["mlp_width"],
            "use_gated_mlp": gated,
            "query_bias": biased,
            "value_bias": biased,
        } | ({"hidden_act": "silu"} if gated else {})
    kind = "dinov2_with_registers" if arch.get("num_registers") else "dinov2"
    return {
        **common,
        "model_type": kind,
        "mlp_ratio": 4,
        "use_swiglu_ffn": gated,
        "image_size": arch["position_grid"] * arch["patch"],
    }


def _with_positions(ours: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One table with the class token's row before the patches', and without an empty table of
    registers."""
    left = {key: tensor for key, tensor in ours.items() if "position" not in key and tensor.numel()}
    if "patch_positions" not in ours:
        return left
    return {
        **left,
        name: torch.cat(
            [ours["class_position"], ours["patch_positions"].flatten(0, 1)[None]], dim=1
        ),
    }


def _renamed(tensors: Mapping[str, Tensor], renames: Renames) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        fitting = next(
            ((pattern, new) for pattern, new in renames if re.match(pattern, name)), None
        )
        found[re.sub(f"^{fitting[0]}", fitting[1], name) if fitting else name] = tensor
    return found
