"""Convert a graph to half precision for GPUs: matrix products in fp16, and everything that would
lose accuracy in fp32.

This writes torch's autocast into the file. Matrix products and convolutions run in fp16, and so do
the element-wise and shape operators between them. The residual stream, LayerNorm, softmax, pooling
and the L2 norm run in fp32. A node with values near the largest fp16 number also stays in fp32;
half_proof.py measures these values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featkit.modelfile import MAX_INLINE_BYTES
from featkit_export.traced import Traced

PRODUCTS = frozenset(("MatMul", "Gemm", "Conv"))
# These run in fp16 if all their inputs are fp16.
FOLLOWERS = frozenset(
    "Add Mul Gelu Sigmoid Relu Neg MaxPool Reshape Transpose Slice Squeeze Unsqueeze Concat Split"
    " Expand Gather".split()
)
# Smaller fp16 numbers have fewer than eleven significant bits: LayerScale starts at 1e-5.
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
LARGEST = float(np.finfo(np.float16).max)
# Values may reach LARGEST / MARGIN on the images tried. Other images may exceed them, and an engine
# may accumulate a product in fp16.
MARGIN = 4.0


def to_half(
    full: onnx.ModelProto, folder: Path, peaks: Mapping[str, float] | None = None
) -> Traced:
    """Return the graph with its products in fp16. Its inputs and outputs keep their types.

    folder: where weights beyond 2 GB go.
    peaks: the largest magnitude of each value and weight by name, from `half_proof.observe_peaks`.
    A node with a peak beyond LARGEST / MARGIN stays in fp32.
    """
    peaks = peaks or {}
    model = onnx.ModelProto()
    model.CopyFrom(full)
    graph = model.graph
    floats = _float_values(model)
    weights = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    halves: set[str] = set()  # names of the values in fp16
    casts: dict[tuple[str, int], str] = {}  # (value, type) to the name of its cast
    nodes: list[onnx.NodeProto] = []
    half_weights: dict[str, str] = {}

    def named(name: str, *, half: bool) -> str:
        """Return the name of the value in this precision, and add a cast if it needs one."""
        if name not in floats:
            return name
        if name in weights:
            if half and name not in half_weights:
                half_weights[name] = f"{name}_half"
            return half_weights[name] if half else name
        if (name in halves) == half:
            return name
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        if (name, kind) not in casts:
            casts[name, kind] = f"{name}_{'half' if half else 'float'}"
            nodes.append(helper.make_node("Cast", [name], [casts[name, kind]], to=kind))
        return casts[name, kind]

    for node in graph.node:
        half = _runs_in_half(node, floats, halves, weights) and not exceeding(node, peaks)
        node.input[:] = [named(name, half=half) for name in node.input]
        nodes.append(node)
        if half:
            halves.update(name for name in node.output if name in floats)
    for value in graph.output:  # the graph's output keeps its name; the fp16 value is renamed
        if value.name in halves:
            inner = f"{value.name}_half"
            for node in nodes:
                node.input[:] = [inner if name == value.name else name for name in node.input]
                node.output[:] = [inner if name == value.name else name for name in node.output]
            nodes.append(helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT))
    _replace_weights(graph, nodes, half_weights, weights)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return placed(model, folder, "half.onnx")


def kept_in_float(full: onnx.ModelProto, peaks: Mapping[str, float]) -> dict[str, float]:
    """Return the products that `to_half` leaves in fp32, by `layer_name`, with the largest value
    of each."""
    products = (node for node in full.graph.node if node.op_type in PRODUCTS)
    return {
        layer_name(node, full.graph): peak for node in products if (peak := exceeding(node, peaks))
    }


def layer_name(node: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    """Return the name of a product for messages: the module of its weight or bias, or the node's
    own name.

    Exporters transpose weights into constants with other names. The bias, which is added next,
    still has the module's name.
    """
    weights = {tensor.name for tensor in graph.initializer}
    readers = [
        other for other in graph.node if other.op_type == "Add" and node.output[0] in other.input
    ]
    names = [name for each in (node, *readers) for name in each.input if name in weights]
    modules = [name.rpartition(".")[0].removeprefix("backbone.") for name in names if "." in name]
    return next(iter(modules or names), node.name or node.output[0])


def exceeding(node: onnx.NodeProto, peaks: Mapping[str, float]) -> float:
    """Return the largest value that a node reads or writes if it exceeds LARGEST / MARGIN, else
    0."""
    peak = max((peaks.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
    return peak if peak > LARGEST / MARGIN else 0.0


def _runs_in_half(
    node: onnx.NodeProto, floats: set[str], halves: set[str], weights: dict[str, onnx.TensorProto]
) -> bool:
    if node.op_type in PRODUCTS:
        return True
    given = [name for name in node.input if name in floats]
    constants = [weights[name] for name in given if name in weights]
    computed = [name for name in given if name not in weights]
    all_half = bool(computed) and all(name in halves for name in computed)
    return node.op_type in FOLLOWERS and all_half and all(map(fits_half, constants))


def fits_half(tensor: onnx.TensorProto) -> bool:
    """Return whether fp16 represents a constant's values with full precision."""
    sizes = np.abs(numpy_helper.to_array(tensor))
    sizes = sizes[sizes > 0]
    return sizes.size == 0 or bool(np.median(sizes) >= SMALLEST_NORMAL and sizes.max() <= LARGEST)


def _float_values(model: onnx.ModelProto) -> set[str]:
    return values_of_type(model, TensorProto.FLOAT)


def values_of_type(model: onnx.ModelProto, kind: int) -> set[str]:
    """Return the names of all values and weights that have this element type."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:  # shape inference does not need the large weights
        if len(tensor.raw_data) > 1024:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="elsewhere")
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    typed: Iterator[onnx.ValueInfoProto] = iter(
        [*inferred.input, *inferred.value_info, *inferred.output]
    )
    names = {value.name for value in typed if value.type.tensor_type.elem_type == kind}
    return names | {tensor.name for tensor in model.graph.initializer if tensor.data_type == kind}


def _replace_weights(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    half_weights: dict[str, str],
    weights: dict[str, onnx.TensorProto],
) -> None:
    """Store the weights used in fp16 as fp16, and remove weights that no node uses."""
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for old, new in half_weights.items():
        # A weight too large for fp16 becomes infinite; the comparison of vectors then fails.
        with np.errstate(over="ignore"):
            kept.append(
                numpy_helper.from_array(numpy_helper.to_array(weights[old]).astype(np.float16), new)
            )
    del graph.initializer[:]
    graph.initializer.extend(kept)


def placed(model: onnx.ModelProto, folder: Path, name: str) -> Traced:
    """Return the graph in memory, or saved to `folder` if it exceeds protobuf's 2 GB."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= MAX_INLINE_BYTES:
        return Traced(model=model)
    path = folder / name
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{name}.data")
    return Traced(model=onnx.load(str(path), load_external_data=False), path=path)
