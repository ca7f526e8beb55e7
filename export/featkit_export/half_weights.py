"""Store the large weights of a graph in half precision; the graph still computes in float32.

A weight becomes an fp16 constant and a Cast to float32 that has the weight's name, so no other node
changes. Engines compute these casts once, when they load the file. Then they run the same operators
as for the original in float32, at its speed: only the file is smaller.

In its normal range, 6.1e-5 to 65,504, fp16 changes a value by at most 2 ** -11 of itself. Weights
that are mostly outside this range, and small ones, stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featkit_export.surgery import OWN

# Smaller weights stay float32: a cast takes about 150 bytes.
MIN_VALUES = 4096
MAX_ROUNDING = 2.0**-11  # see `rounding`
PREFIX = f"{OWN}half/"
HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def large_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the float32 weights that are large enough to be stored in fp16.

    Biases, scales and statistics are vectors, and stay as they are whatever their length. So do
    weights that a caller may replace, as in files before ONNX IR 4, or that are outputs.
    """
    graph = model.graph
    open_names = {value.name for value in (*graph.input, *graph.output)}
    return [
        tensor
        for tensor in graph.initializer
        if tensor.data_type == FLOAT
        and prod(tensor.dims) >= MIN_VALUES
        and sum(side > 1 for side in tensor.dims) > 1
        and tensor.name not in open_names
    ]


def rounding(values: np.ndarray) -> float:
    """Return the root mean square of the changes by rounding to fp16, relative to the values'.

    It is at most 2 ** -11 if all values are zero or in fp16's normal range, and infinite or NaN if
    one exceeds 65,504.
    """
    exact = values.astype(np.float64)
    if not exact.any():
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        error = values.astype(np.float16).astype(np.float64) - exact
    return float(np.linalg.norm(error) / np.linalg.norm(exact))


def in_range(tensor: onnx.TensorProto) -> bool:
    """Return whether fp16 represents a weight as precisely as values in its normal range."""
    return rounding(numpy_helper.to_array(tensor)) <= MAX_ROUNDING  # False for NaN


def with_half_weights(full: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Return the graph with these weights stored in fp16, each followed by a Cast to float32."""
    model = _with_weights(full, names, _halved)
    casts = [
        helper.make_node("Cast", [PREFIX + name], [name], f"{PREFIX}cast/{name}", to=FLOAT)
        for name in (tensor.name for tensor in full.graph.initializer)
        if name in names
    ]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def with_rounded_weights(full: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Return the graph with these weights rounded to fp16 and stored in float32: the reference of
    `with_half_weights`."""
    return _with_weights(full, names, _rounded)


def with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of `with_half_weights` with its weights in float32, without the casts.

    Any other graph is returned unchanged.
    """
    weights = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.name.startswith(PREFIX) and tensor.data_type == HALF
    }
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    nodes = [
        node for node in graph.node if not (node.op_type == "Cast" and node.input[0] in weights)
    ]
    floats = [
        _widened(tensor) if tensor.name in weights else tensor for tensor in graph.initializer
    ]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(floats)
    return plain


def _with_weights(
    full: onnx.ModelProto, names: set[str], change: Callable[[onnx.TensorProto], onnx.TensorProto]
) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(full)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(change(tensor))
    return model


def _halved(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float16)
    return numpy_helper.from_array(values, PREFIX + tensor.name)


def _rounded(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
    return numpy_helper.from_array(values, tensor.name)


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.from_array(values, tensor.name.removeprefix(PREFIX))
