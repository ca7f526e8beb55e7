"""Test a graph in half precision on a CPU, whose engines compute fp16 nodes in fp32 and so hide
overflows.

Two functions rewrite the graph so that ONNX Runtime runs it in fp32. `observe_peaks` adds the
largest magnitude of every value to the outputs. `emulate` reproduces fp16 arithmetic: each fp16
node computes in fp32, and a cast to fp16 and back rounds its result. A GPU that accumulates
products in fp32 does the same. Values beyond 65,504 become infinite, and tiny ones become 0.

Letters: N images, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from featkit.modelfile import EMBEDDING, INPUT
from featkit_export.half import placed, values_of_type
from featkit_export.traced import Traced
from featkit_export.verify import draw_images, open_proven

MIN_HALF_COSINE = 0.999
NUM_DRAWN = 8
EXTREMES = ("black", "white", "noise", "checkerboard", "red")
# These only move values, so their results need no rounding.
MOVERS = frozenset(
    "Reshape Transpose Slice Squeeze Unsqueeze Concat Split Expand Gather Identity Flatten".split()
)
PEAK = "featkit/peak/"


def proof_images(height: int, width: int) -> np.ndarray:
    """Return images (N, H, W, 3) uint8: drawn ones, then EXTREMES, which cause larger activations
    than photos do."""
    shape = (height, width, 3)
    checkerboard = (
        np.indices((height, width)).sum(axis=0)[..., None] % 2 * np.ones(3, np.int64) * 255
    )
    extremes = [
        np.zeros(shape),
        np.full(shape, 255),
        np.random.default_rng(0).integers(0, 2, shape) * 255,
        checkerboard,
        np.broadcast_to(np.array([255, 0, 0]), shape),
    ]
    assert len(extremes) == len(EXTREMES)
    drawn = draw_images(NUM_DRAWN, height=height, width=width)
    return np.concatenate([drawn, np.stack(extremes).astype(np.uint8)])


def observe_peaks(
    model: onnx.ModelProto, images: Iterable[np.ndarray], folder: Path
) -> dict[str, float]:
    """Return the largest magnitude of every fp32 value on the images, and of every fp32 weight, by
    name.

    images: (H, W, 3) uint8 each, run one per call. A peak is infinite if a value is infinite or
    NaN.
    """
    floats = values_of_type(model, TensorProto.FLOAT)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in floats}
    computed = [name for node in model.graph.node for name in node.output if name in floats]
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    graph = observed.graph
    del graph.value_info[:], graph.output[:]
    for name in computed:
        graph.node.append(helper.make_node("Abs", [name], [f"{PEAK}abs/{name}"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"{PEAK}abs/{name}"], [PEAK + name], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(PEAK + name, TensorProto.FLOAT, []))
    session = open_proven(placed(observed, folder, "observed.onnx").session_input)
    peaks = {name: _largest(numpy_helper.to_array(tensor)) for name, tensor in weights.items()}
    for image in images:
        values = session.run([PEAK + name for name in computed], {INPUT: image[None]})
        for name, value in zip(computed, values, strict=True):
            peaks[name] = max(peaks.get(name, 0.0), _largest(value))
    return peaks


def _largest(values: np.ndarray) -> float:
    peak = float(np.abs(values).max(initial=0))
    return peak if np.isfinite(peak) else float("inf")


def emulate(half: onnx.ModelProto, folder: Path) -> Traced:
    """Return a graph of fp32 nodes that gives what `half` gives on hardware with fp16 arithmetic.

    half: a model with its weights in memory. Every result of an fp16 node is rounded to fp16.
    """
    halves = values_of_type(half, TensorProto.FLOAT16)
    model = onnx.ModelProto()
    model.CopyFrom(half)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_widened(tensor))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_widened(attribute.t))
        rounded = [name for name in node.output if name in halves]
        nodes.append(node)
        if not rounded or node.op_type in MOVERS or node.op_type == "Constant":
            continue
        for index, name in enumerate(node.output):
            if name not in halves:
                continue
            exact, small = f"{name}/exact", f"{name}/half"
            if node.op_type == "Cast":
                node.output[index] = small
            else:
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [small], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [small], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return placed(model, folder, "emulated.onnx")


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def first_overflow(emulated: onnx.ModelProto, images: Iterable[np.ndarray], folder: Path) -> str:
    """Return the name of the first node, in the graph's order, whose emulated values overflow fp16;
    "" if none does."""
    peaks = observe_peaks(emulated, images, folder)
    overflowing = (
        node
        for node in emulated.graph.node
        if any(peaks.get(name) == float("inf") for name in node.output)
    )
    node = next(overflowing, None)
    return "" if node is None else (node.name or node.output[0]).removesuffix("/half")


def embed_each(
    session: ort.InferenceSession, images: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    """Return the vectors (N, D) of images (H, W, 3) uint8, run one per call."""
    return np.concatenate([session.run([EMBEDDING], {INPUT: image[None]})[0] for image in images])
