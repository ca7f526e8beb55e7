"""Small real model files for tests that need any model: seconds faster than training and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featkit.geometry import Geometry
from featkit.modelfile import EMBEDDING, INPUT, Manifest
from featkit_export.seal import seal

OPSET = 20


def make_model_file(
    path: Path,
    *,
    width: int = 16,
    size: int = 32,
    patch: int = 8,
    seed: int = 0,
    batch_invariant: bool = True,
) -> Path:
    """Write a model file: random patch filters, whose mean and spread are projected to a unit
    vector.

    It takes any batch, height and width. Different images get clearly different vectors.
    """
    rng = np.random.default_rng(seed)
    filters = rng.standard_normal((64, 3, patch, patch)).astype(np.float32) / patch
    projection = rng.standard_normal((128, width)).astype(np.float32)
    weights = {
        "filters": filters,
        "projection": projection,
        "half": np.float32(127.5),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "half"], ["centered"]),
        helper.make_node("Div", ["centered", "half"], ["normalized"]),
        helper.make_node("Transpose", ["normalized"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "filters"], ["patches"], strides=[patch, patch]),
        helper.make_node("ReduceMean", ["patches", "axes"], ["mean"], keepdims=0),
        helper.make_node("ReduceL2", ["patches", "axes"], ["spread"], keepdims=0),
        helper.make_node("Concat", ["mean", "spread"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "projection"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], [EMBEDDING], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    geometry = Geometry(
        height=size,
        width=size,
        resize="shorter_side",
        resize_to=size,
        interpolation="bilinear",
        patch=patch,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    manifest = Manifest(
        family="test",
        name=f"test-{seed}",
        patch=patch,
        width=width,
        feature="mean",
        geometry=geometry,
        license="CC0-1.0",
        opset=OPSET,
        batch_invariant=batch_invariant,
    )
    seal(model, manifest, path)
    return path
