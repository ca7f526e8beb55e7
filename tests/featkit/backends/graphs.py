"""Model files for tests of the engines: with every output, of a fixed size, or so deep that a call
takes a while."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featkit.geometry import Geometry
from featkit.modelfile import ATTENTION, EMBEDDING, INPUT, OUTPUTS, PATCHES, Manifest
from featkit_export.seal import seal

OPSET, PATCH, WIDTH, HEADS = 20, 8, 32, 2


def make_layered_file(
    path: Path,
    *,
    depth: int = 2,
    outputs: tuple[str, ...] = OUTPUTS,
    fixed_size: tuple[int, int] | None = None,
    precision: str = "fp32",
    size: int = 32,
) -> Path:
    """Write a seeded file of `depth` residual products over patches; `outputs` in this order.

    Its vectors distinguish even small images.
    """
    rng = np.random.default_rng(3)
    weights: dict[str, np.ndarray] = {
        "filters": rng.standard_normal((WIDTH, 3, PATCH, PATCH)).astype(np.float32) / PATCH,
        "queries": rng.standard_normal((WIDTH, HEADS)).astype(np.float32) / WIDTH,
        "half": np.array(127.5, np.float32),
        "axes": np.array([1, 2], np.int64),
        "rows": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "half"], ["centered"]),
        helper.make_node("Div", ["centered", "half"], ["normalized"]),
        helper.make_node("Transpose", ["normalized"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "filters"], ["columns"], strides=[PATCH, PATCH]),
        helper.make_node("Transpose", ["columns"], ["tokens_0"], perm=[0, 2, 3, 1]),
    ]
    for layer in range(depth):
        weights[f"weight_{layer}"] = (
            rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        )
        nodes += [
            helper.make_node("MatMul", [f"tokens_{layer}", f"weight_{layer}"], [f"mixed_{layer}"]),
            helper.make_node("Tanh", [f"mixed_{layer}"], [f"bent_{layer}"]),
            helper.make_node("Add", [f"tokens_{layer}", f"bent_{layer}"], [f"tokens_{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"tokens_{depth}", "axes"], ["mean"], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], [EMBEDDING], axis=1, p=2),
    ]
    if PATCHES in outputs:
        nodes.append(helper.make_node("Identity", [f"tokens_{depth}"], [PATCHES]))
    if ATTENTION in outputs:
        nodes += [
            helper.make_node("MatMul", [f"tokens_{depth}", "queries"], ["logits_last"]),
            helper.make_node("Transpose", ["logits_last"], ["logits"], perm=[0, 3, 1, 2]),
            helper.make_node("Exp", ["logits"], ["powers"]),
            helper.make_node("ReduceSum", ["powers", "rows"], ["sums"], keepdims=1),
            helper.make_node("Div", ["powers", "sums"], [ATTENTION]),
        ]
    shapes: dict[str, list[str | int]] = {
        EMBEDDING: ["N", WIDTH],
        PATCHES: ["N", "h", "w", WIDTH],
        ATTENTION: ["N", HEADS, "h", "w"],
    }
    height, width = fixed_size or ("H", "W")
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", height, width, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    native = fixed_size or (size, size)
    geometry = Geometry(
        height=native[0],
        width=native[1],
        resize="stretch",
        resize_to=native[0],
        interpolation="bilinear",
        patch=PATCH,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    manifest = Manifest(
        family="test",
        name="layers",
        patch=PATCH,
        width=WIDTH,
        feature="mean",
        geometry=geometry,
        fixed_size=fixed_size,
        outputs=outputs,
        precision=precision,
        license="CC0-1.0",
        opset=OPSET,
    )
    seal(model, manifest, path)
    return path
