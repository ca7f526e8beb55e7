"""ONNX files as others publish them: transformers' models by torch.onnx as on the Hub, and by hand
what can be odd."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from featkit.geometry import Geometry
from tests.torchvision_without_cuda import import_quietly

PATCH, NATIVE, WIDTH = 14, 56, 32
GEOMETRY = Geometry(
    height=NATIVE,
    width=NATIVE,
    resize="shorter_side",
    resize_to=64,
    interpolation="bicubic",
    patch=PATCH,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


class Published(NamedTuple):
    """A folder with onnx/model.onnx, config.json and preprocessor_config.json, and what it was made
    of."""

    folder: Path
    model: Any
    processor: Any
    num_registers: int


def publish(folder: Path, *, num_registers: int, baked: bool = False) -> Published:
    """A random Dinov2Model, or Dinov2WithRegistersModel, as optimum publishes it.

    baked: with what int() does to a symbolic size, which transformers calls in the latter; the file
    is right at NATIVE alone.
    """
    transformers = import_quietly("transformers")
    torch.manual_seed(num_registers)
    # LayerScale as it begins would hide what the blocks compute.
    options: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "layerscale_value": 0.7,
    }
    options |= {"image_size": NATIVE, "patch_size": PATCH}
    if num_registers:
        config = transformers.Dinov2WithRegistersConfig(
            **options, num_register_tokens=num_registers
        )
        model = transformers.Dinov2WithRegistersModel(config).eval()
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**options)).eval()
    for name, weight in model.named_parameters():
        # some begin as zeros, and would hide where a token came from
        if "token" in name or "position" in name:
            torch.nn.init.normal_(weight)
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": NATIVE, "width": NATIVE},
        image_mean=list(GEOMETRY.mean),
        image_std=list(GEOMETRY.std),
    )
    processor.save_pretrained(folder)
    model.config.save_pretrained(folder)
    (folder / "onnx").mkdir()
    onnx.save(_trace(model, baked=baked), folder / "onnx" / "model.onnx")
    return Published(folder, model, processor, num_registers)


def publish_siglip(
    folder: Path, *, file: str = "onnx/vision_model.onnx", pooled: bool = True
) -> Published:
    """A random SigLIP vision model, which has a token for each patch and no class token, as
    transformers.js publishes it."""
    transformers = import_quietly("transformers")
    torch.manual_seed(7)
    options = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.SiglipVisionConfig(**options, image_size=NATIVE, patch_size=PATCH)
    model = transformers.SiglipVisionModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    processor = transformers.SiglipImageProcessor(size={"height": NATIVE, "width": NATIVE})
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": config.to_dict()})
    )
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    module, names = _AsPublished(model), ["last_hidden_state", "pooler_output"]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (torch.zeros(2, 3, NATIVE, NATIVE),),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    made = program.model_proto
    if not pooled:
        del made.graph.output[1]
    onnx.save(made, path)
    return Published(folder, model, processor, 0)


class _AsPublished(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = self.model(pixel_values)
        return given.last_hidden_state, given.pooler_output


def _trace(model: torch.nn.Module, *, baked: bool) -> onnx.ModelProto:
    module = import_quietly(
        "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers"
    )
    sizes = (NATIVE, NATIVE) if baked else (3 * PATCH, 5 * PATCH)
    rows, columns = (
        torch.export.Dim("rows", min=1, max=64),
        torch.export.Dim("columns", min=1, max=64),
    )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        whole = (
            module.torch_int
            if baked
            else lambda number: number if isinstance(number, torch.SymInt) else int(number)
        )
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            mock.patch.object(module, "torch_int", whole),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _AsPublished(model),
                (torch.zeros(2, 3, *sizes),),
                dynamo=True,
                input_names=["pixel_values"],
                output_names=["last_hidden_state", "pooler_output"],
                dynamic_shapes=(
                    {0: torch.export.Dim("batch", min=1), 2: PATCH * rows, 3: PATCH * columns},
                ),
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model_proto


def build(
    *,
    opset: int = 17,
    kind: type[np.generic] = np.float32,
    shape: tuple[int | str, ...] = ("batch", 3, "height", "width"),
    baked: str = "",
    extra: str = "",
    names: tuple[str, str, str] = ("pixel_values", "tokens", "last_hidden_state"),
    seed: int = 0,
) -> onnx.ModelProto:
    """Patch filters, their tokens behind a class token that is the largest of each number, all
    through one more product.

    baked: "positions", a table of the native size; "batch", a reshape to one image. extra:
    "quantized", a dynamic scale over the batch; "idle", the same to no effect; "mixed", the mean
    over the batch taken away; "microsoft", an operator of onnxruntime's own; "branch", an If whose
    branches use outer values. names: of the input, of the tokens on their way, of the output.
    """
    rng = np.random.default_rng(seed)
    source, way, output = names
    grid = NATIVE // PATCH
    weights = {
        "filters": (rng.standard_normal((WIDTH, 3, PATCH, PATCH)) / PATCH).astype(kind),
        "mixing": (rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(kind),
        "flat": np.array([1 if baked == "batch" else 0, WIDTH, -1], np.int64),
        "table": rng.standard_normal((1, 1 + grid * grid, WIDTH)).astype(kind),
        "yes": np.array(True),
    }
    nodes = [
        helper.make_node("Conv", [source, "filters"], ["map"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["map", "flat"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["patch_tokens"], perm=[0, 2, 1]),
        _reduce_max(opset, weights),
        helper.make_node("Concat", ["class_token", "patch_tokens"], [way], axis=1),
        helper.make_node("MatMul", [way, "mixing"], ["mixed"]),
    ]
    last = "mixed"
    if baked == "positions":
        nodes.append(helper.make_node("Add", [last, "table"], ["placed"]))
        last = "placed"
    if extra == "quantized":
        nodes += [
            helper.make_node("DynamicQuantizeLinear", [last], ["small", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["rough"]),
        ]
        last = "rough"
    if extra == "idle":
        nodes.append(helper.make_node("DynamicQuantizeLinear", [last], ["small", "scale", "zero"]))
    if extra == "mixed":
        nodes += [
            helper.make_node("ReduceMean", [last], ["others"], axes=[0], keepdims=1),
            helper.make_node("Sub", [last, "others"], ["apart"]),
            helper.make_node("Add", ["apart", way], ["joined"]),
        ]
        last = "joined"
    if extra == "microsoft":
        nodes.append(helper.make_node("FastGelu", [last], ["bent"], domain="com.microsoft"))
        last = "bent"
    if extra == "branch":
        branches = {
            f"{name}_branch": helper.make_graph(
                [helper.make_node("Add", [last, way], [f"{name}_sum"])],
                name,
                [],
                [
                    helper.make_tensor_value_info(
                        f"{name}_sum", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), None
                    )
                ],
            )
            for name in ("then", "else")
        }
        nodes.append(helper.make_node("If", ["yes"], ["chosen"], **branches))
        last = "chosen"
    nodes.append(helper.make_node("Identity", [last], [output]))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    used = {name for node in nodes for name in node.input} | {"filters", "flat"}
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info(source, element, shape)],
        [helper.make_tensor_value_info(output, element, [shape[0], "tokens", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
    )
    opsets = [helper.make_opsetid("", opset)] + (
        [helper.make_opsetid("com.microsoft", 1)] if extra == "microsoft" else []
    )
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _reduce_max(opset: int, weights: dict[str, np.ndarray]) -> onnx.NodeProto:
    if opset < 18:
        return helper.make_node(
            "ReduceMax", ["patch_tokens"], ["class_token"], axes=[1], keepdims=1
        )
    weights["along"] = np.array([1], np.int64)
    return helper.make_node("ReduceMax", ["patch_tokens", "along"], ["class_token"], keepdims=1)


def tokens_of(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Compute the output of `build` (without extra) in numpy: (N, T, D) float64, from uint8 images
    normalized by GEOMETRY."""
    weights = {
        weight.name: numpy_helper.to_array(weight).astype(np.float64)
        for weight in model.graph.initializer
    }
    pixels = (images / 255 - np.array(GEOMETRY.mean)) / np.array(GEOMETRY.std)
    num, height, width = images.shape[:3]
    cut = pixels.reshape(num, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    patches = np.einsum("nhiwjc,dcij->nhwd", cut, weights["filters"]).reshape(num, -1, WIDTH)
    tokens: np.ndarray = (
        np.concatenate([patches.max(axis=1, keepdims=True), patches], axis=1) @ weights["mixing"]
    )
    return tokens + weights["table"] if "table" in weights else tokens
