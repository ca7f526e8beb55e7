"""Write model files as their publishers do, with random weights. Independent of featkit.

Every tensor is drawn by a seed made from its name, so that one more tensor changes no other.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor

WIDTH, DEPTH, HEADS = 384, 12, 6  # of the smallest ViT of each family
CONVNEXT_DEPTHS, CONVNEXT_WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)
RESNET_DEPTHS = (3, 4, 6, 3)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
Shapes = dict[str, tuple[int, ...]]


def write_weights(folder: Path) -> None:
    """Write the files that EXPORTS in recording.py names below `folder`."""
    folder.mkdir(parents=True)
    dino = vit_shapes(patch=16, grid=14)
    torch.save(draw(dino), folder / "dino_vits16.pth")
    teacher = {f"module.backbone.{name}": tensor for name, tensor in draw(dino, seed=1).items()}
    torch.save({"teacher": teacher, "epoch": 100}, folder / "ibot_vits16.pth")
    torch.save(draw(resnet50_shapes()), folder / "dino_resnet50.pth")
    scaled = vit_shapes(patch=14, grid=37, layer_scale=True)
    torch.save(draw(scaled), folder / "dinov2_vits14.pth")
    write_hugging_face(
        folder / "dinov2_vits14_reg",
        draw(hugging_face_dinov2_shapes()),
        {"model_type": "dinov2_with_registers", "num_register_tokens": 4, "image_size": 518}
        | {"patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": False, "layer_norm_eps": 1e-6},
    )
    write_hugging_face(
        folder / "dinov3_vits16",
        draw(hugging_face_dinov3_shapes()),
        {"model_type": "dinov3_vit", "num_register_tokens": 4, "intermediate_size": 4 * WIDTH}
        | {"patch_size": 16, "use_gated_mlp": False, "query_bias": True, "value_bias": True}
        | {"layer_norm_eps": 1e-5},
    )
    write_hugging_face(
        folder / "dinov3_convnext_tiny",
        draw(convnext_shapes()),
        {
            "model_type": "dinov3_convnext",
            "hidden_sizes": list(CONVNEXT_WIDTHS),
            "depths": list(CONVNEXT_DEPTHS),
        },
    )
    write_own(folder / "small", mlp_width=96, position_grid=6)
    write_own(
        folder / "small_gated",
        mlp="swiglu",
        mlp_width=64,
        position="rotary",
        num_registers=4,
        layer_scale=1.0,
        key_bias=False,
    )
    write_onnx(folder / "adopted")


def draw(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, Tensor]:
    """Return tensors that let signals through: scales near 1, small biases, unit fan-in weights."""
    drawn = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            drawn[name] = 1 + 0.2 * noise.abs()
        elif name.endswith("num_batches_tracked"):
            drawn[name] = torch.tensor(1)
        elif len(shape) == 1 and name.endswith(("weight", "gamma", "lambda1")):
            drawn[name] = 1 + 0.2 * noise
        elif len(shape) > 1 and not re.search("pos_embed|position|token", name):
            drawn[name] = noise / noise[0].numel() ** 0.5
        else:
            drawn[name] = 0.3 * noise
    return drawn


def linear(name: str, *shape: int) -> Shapes:
    """Return the shapes of a weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def vit_shapes(*, patch: int, grid: int, layer_scale: bool = False) -> Shapes:
    """Return the tensors of a ViT-S by the names of facebookresearch/dino and dinov2."""
    shapes: Shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid * grid, WIDTH),
        **linear("patch_embed.proj", WIDTH, 3, patch, patch),
    }
    for i in range(DEPTH):
        block = f"blocks.{i}"
        shapes |= linear(f"{block}.norm1", WIDTH) | linear(f"{block}.norm2", WIDTH)
        shapes |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= linear(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
        if layer_scale:
            shapes |= {f"{block}.ls{j}.gamma": (WIDTH,) for j in (1, 2)}
    return shapes | linear("norm", WIDTH)


def hugging_face_dinov2_shapes() -> Shapes:
    """Return the tensors of DINOv2 ViT-S/14 with registers by the names of transformers' files."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.register_tokens": (1, 4, WIDTH),
        "embeddings.position_embeddings": (1, 1 + 37 * 37, WIDTH),
        **linear("embeddings.patch_embeddings.projection", WIDTH, 3, 14, 14),
    }
    for i in range(DEPTH):
        block = f"encoder.layer.{i}"
        shapes |= linear(f"{block}.norm1", WIDTH) | linear(f"{block}.norm2", WIDTH)
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= linear(f"{block}.attention.{part}", WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
        shapes |= {f"{block}.layer_scale{j}.lambda1": (WIDTH,) for j in (1, 2)}
    return shapes | linear("layernorm", WIDTH)


def hugging_face_dinov3_shapes() -> Shapes:
    """Return the tensors of DINOv3 ViT-S/16 by the names of transformers' files."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, 1, WIDTH),
        "embeddings.register_tokens": (1, 4, WIDTH),
        **linear("embeddings.patch_embeddings", WIDTH, 3, 16, 16),
    }
    for i in range(DEPTH):
        block = f"layer.{i}"
        shapes |= linear(f"{block}.norm1", WIDTH) | linear(f"{block}.norm2", WIDTH)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes |= linear(f"{block}.attention.{part}", WIDTH, WIDTH)
        del shapes[f"{block}.attention.k_proj.bias"]
        shapes |= linear(f"{block}.mlp.up_proj", 4 * WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.down_proj", WIDTH, 4 * WIDTH)
        shapes |= {f"{block}.layer_scale{j}.lambda1": (WIDTH,) for j in (1, 2)}
    return shapes | linear("norm", WIDTH)


def resnet50_shapes() -> Shapes:
    """Return the tensors of torchvision's ResNet-50 without its classifier."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **_batch_norm("bn1", 64)}
    channels = 64
    for stage, depth in enumerate(RESNET_DEPTHS, start=1):
        width = 32 * 2**stage
        for i in range(depth):
            block = f"layer{stage}.{i}"
            sizes = ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for j, size in enumerate(sizes, start=1):
                shapes |= {
                    f"{block}.conv{j}.weight": size,
                    **_batch_norm(f"{block}.bn{j}", size[0]),
                }
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                shapes |= _batch_norm(f"{block}.downsample.1", 4 * width)
            channels = 4 * width
    return shapes


def _batch_norm(name: str, width: int) -> Shapes:
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**linear(name, width), **statistics, f"{name}.num_batches_tracked": ()}


def convnext_shapes() -> Shapes:
    """Return the tensors of DINOv3's ConvNeXt tiny by the names of transformers' files."""
    shapes: Shapes = {}
    before = 3
    for stage, (depth, width) in enumerate(zip(CONVNEXT_DEPTHS, CONVNEXT_WIDTHS, strict=True)):
        down = f"stages.{stage}.downsample_layers"
        if stage == 0:
            shapes |= linear(f"{down}.0", width, before, 4, 4) | linear(f"{down}.1", width)
        else:
            shapes |= linear(f"{down}.0", before) | linear(f"{down}.1", width, before, 2, 2)
        for i in range(depth):
            block = f"stages.{stage}.layers.{i}"
            shapes |= linear(f"{block}.depthwise_conv", width, 1, 7, 7)
            shapes |= linear(f"{block}.layer_norm", width)
            shapes |= linear(f"{block}.pointwise_conv1", 4 * width, width)
            shapes |= linear(f"{block}.pointwise_conv2", width, 4 * width)
            shapes[f"{block}.gamma"] = (width,)
        before = width
    return shapes | linear("layer_norm", before)


def write_hugging_face(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write a folder as huggingface.co keeps it."""
    folder.mkdir(parents=True)
    if "hidden_sizes" not in config:
        config |= {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGENET))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_own(folder: Path, *, width: int = 48, depth: int = 2, **config: Any) -> None:
    """Write a run folder that holds only a backbone.safetensors of featkit's format 1."""
    patch, hidden = 16, config["mlp_width"]
    shapes: Shapes = {
        "class_token": (1, 1, width),
        "registers": (1, config.get("num_registers", 0), width),
        **linear("patch_embed", width, 3, patch, patch),
    }
    if "position_grid" in config:
        grid = config["position_grid"]
        shapes |= {"class_position": (1, 1, width), "patch_positions": (grid, grid, width)}
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= linear(f"{block}.norm1", width) | linear(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attention.qkv", 3 * width, width)
        shapes |= linear(f"{block}.attention.out", width, width)
        if config.get("mlp") == "swiglu":
            shapes |= linear(f"{block}.mlp.gate_and_value", 2 * hidden, width)
            shapes |= linear(f"{block}.mlp.out", width, hidden)
        else:
            shapes |= linear(f"{block}.mlp.fc1", hidden, width)
            shapes |= linear(f"{block}.mlp.fc2", width, hidden)
        if "layer_scale" in config:
            shapes |= {f"{block}.scale{j}.gamma": (width,) for j in (1, 2)}
    tensors = draw(shapes | linear("norm", width))
    if config.get("position") == "rotary":
        quarter = width // 3 // 4
        tensors["rotary_periods"] = 100.0 ** (torch.arange(quarter) / quarter)
    header = {
        "format": 1,
        "vit": {"patch": patch, "width": width, "depth": depth, "num_heads": 3, **config},
        "name": folder.name,
        "family": "dino",
        "geometry": {
            "height": 64,
            "width": 64,
            "resize": "shorter_side",
            "resize_to": 64,
            "interpolation": "bicubic",
            "patch": patch,
            "mean": IMAGENET["image_mean"],
            "std": IMAGENET["image_std"],
        },
        "licence": "CC0-1.0",  # quoted
        "origin": {"data": "drawn"},
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "backbone.safetensors", metadata={"featkit": json.dumps(header)})


def write_onnx(folder: Path, *, patch: int = 14, width: int = 32) -> None:
    """Write an ONNX file made elsewhere: patches, their maximum as class token, one product."""
    rng = np.random.default_rng(7)
    weights = {
        "filters": (rng.standard_normal((width, 3, patch, patch)) / patch).astype(np.float32),
        "mixing": (rng.standard_normal((width, width)) / width**0.5).astype(np.float32),
        "flat": np.array([0, width, -1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["pixel_values", "filters"], ["map"], strides=[patch, patch]),
        helper.make_node("Reshape", ["map", "flat"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["patches"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["patches"], ["class"], axes=[1], keepdims=1),
        helper.make_node("Concat", ["class", "patches"], ["tokens"], axis=1),
        helper.make_node("MatMul", ["tokens", "mixing"], ["last_hidden_state"]),
    ]
    kind = onnx.TensorProto.FLOAT
    outputs = helper.make_tensor_value_info("last_hidden_state", kind, ["batch", "n", width])
    inputs = helper.make_tensor_value_info("pixel_values", kind, ["batch", 3, "height", "width"])
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "drawn", [inputs], [outputs], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "onnx").mkdir(parents=True)
    onnx.save(model, folder / "onnx" / "model.onnx")
    config = {"model_type": "dinov2", "patch_size": patch, "hidden_size": width, "image_size": 56}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 56, "width": 56},
        **IMAGENET,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
