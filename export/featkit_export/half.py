"""A graph in half precision, for graphics cards: products in fp16, and in fp32 all that loses by
it.

What torch's autocast does, written into the file: matrix products and convolutions take and give
fp16, what only moves or bends numbers between them stays fp16, and the residual stream, LayerNorm,
softmax, pooling and the L2 norm are fp32. A node that takes or gives a number near the largest that
a half holds stays fp32 as well: half_proof.py observes which ones do.
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
# Half where everything they are given is.
FOLLOWERS = frozenset(
    "Add Mul Gelu Sigmoid Relu Neg MaxPool Reshape Transpose Slice Squeeze Unsqueeze Concat Split"
    " Expand Gather".split()
)
# Below it a half has fewer than its eleven bits: LayerScale's factors start at 1e-5.
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
LARGEST = float(np.finfo(np.float16).max)
# What a number may reach on the images that were tried: others may go further, and a product may
# be summed up in fp16.
MARGIN = 4.0


def to_half(
    full: onnx.ModelProto, folder: Path, peaks: Mapping[str, float] | None = None
) -> Traced:
    """The same graph with its products in fp16; pixels in and numbers out keep their types. Large
    weights go into `folder`.

    peaks: the largest magnitude of each value and weight by name, as `half_proof.observe_peaks` has
    them. A node that takes or gives one past LARGEST / MARGIN stays in fp32.
    """
    peaks = peaks or {}
    model = onnx.ModelProto()
    model.CopyFrom(full)
    graph = model.graph
    floats = _float_values(model)
    weights = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    halves: set[str] = set()  # values that are fp16
    casts: dict[tuple[str, int], str] = {}  # what a value is called in its other precision
    nodes: list[onnx.NodeProto] = []
    half_weights: dict[str, str] = {}

    def named(name: str, *, half: bool) -> str:
        """The name under which a node takes this value in that precision."""
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
    for value in graph.output:  # an output keeps its name: the node that makes it gets another
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
    """The products that `to_half` leaves in fp32, by `layer_name`, and the largest number that each
    takes or gives."""
    products = (node for node in full.graph.node if node.op_type in PRODUCTS)
    return {
        layer_name(node, full.graph): reached
        for node in products
        if (reached := exceeding(node, peaks))
    }


def layer_name(node: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    """What a product is called in messages: the module that its weight or bias is of, else the
    node's own name.

    Exporters transpose weights into constants of their own names; the bias that is added next still
    tells the module.
    """
    weights = {tensor.name for tensor in graph.initializer}
    readers = [
        other for other in graph.node if other.op_type == "Add" and node.output[0] in other.input
    ]
    names = [name for each in (node, *readers) for name in each.input if name in weights]
    modules = [name.rpartition(".")[0].removeprefix("backbone.") for name in names if "." in name]
    return next(iter(modules or names), node.name or node.output[0])


def exceeding(node: onnx.NodeProto, peaks: Mapping[str, float]) -> float:
    """The largest number that a node takes or gives where it is past LARGEST / MARGIN, else 0."""
    reached = max((peaks.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
    return reached if reached > LARGEST / MARGIN else 0.0


def _runs_in_half(
    node: onnx.NodeProto, floats: set[str], halves: set[str], weights: dict[str, onnx.TensorProto]
) -> bool:
    if node.op_type in PRODUCTS:
        return True
    given = [name for name in node.input if name in floats]
    constants = [weights[name] for name in given if name in weights]
    computed = [name for name in given if name not in weights]
    all_half = bool(computed) and all(name in halves for name in computed)
    return node.op_type in FOLLOWERS and all_half and all(map(_fits, constants))


def _fits(tensor: onnx.TensorProto) -> bool:
    """Whether half precision holds a constant's numbers with all its bits."""
    sizes = np.abs(numpy_helper.to_array(tensor))
    sizes = sizes[sizes > 0]
    return sizes.size == 0 or bool(np.median(sizes) >= SMALLEST_NORMAL and sizes.max() <= LARGEST)


def _float_values(model: onnx.ModelProto) -> set[str]:
    return values_of_type(model, TensorProto.FLOAT)


def values_of_type(model: onnx.ModelProto, kind: int) -> set[str]:
    """Names of all values and weights of the graph of one element type."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:  # shapes are all that inference needs of large weights
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
    """Weights that are taken in half precision stand in the file in half precision, and those that
    nobody takes go."""
    taken = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in taken]
    for old, new in half_weights.items():
        # infinite where a half cannot hold it: the file's vectors then show it
        with np.errstate(over="ignore"):
            kept.append(
                numpy_helper.from_array(numpy_helper.to_array(weights[old]).astype(np.float16), new)
            )
    del graph.initializer[:]
    graph.initializer.extend(kept)


def placed(model: onnx.ModelProto, folder: Path, name: str) -> Traced:
    """Whole in memory, or past protobuf's 2 GB in a file with its weights beside it."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= MAX_INLINE_BYTES:
        return Traced(model=model)
    path = folder / name
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{name}.data")
    return Traced(model=onnx.load(str(path), load_external_data=False), path=path)
