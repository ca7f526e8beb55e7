"""Quantize a model file to static int8: QuantizeLinear and DequantizeLinear around its large matrix
products.

It quantizes every MatMul whose second input is a weight: the projections of attention and both
layers of the MLP. They take 80 to 85 % of a ViT-S/14's time at 224 pixels. The rest stays in float:

- the patch convolution takes 1 to 2 % of the time and is the one place where int8 costs accuracy:
  the worst cosine of a ViT of width 192 on 200 photos is 0.9985 with it and 0.9998 without;
- the attention products take 5 % of the time when the engine computes the rest in bf16. The
  probabilities of 257 tokens are about 1/257, which is one step of an 8-bit softmax, so that the
  cosine falls from 0.9999 to 0.998;
- the product of a whitening has one row for each image, so it takes no time, and it amplifies
  rounding in directions of little variance;
- norms, residual sums, softmax and GELU: OpenVINO fuses GELU and the next quantizer into the
  product.

All scales are constants, so that an image cannot change another image's vector. Activations are
uint8 with a zero point, because ONNX Runtime's kernels multiply unsigned by signed; OpenVINO is as
fast with either. Weights are int8, symmetric, with a scale for each output channel, and are stored
as integers. OpenVINO would treat unsigned weights as weight compression and compute in float.

Letters: N images, (H, W) pixels, C channels of a tensor's last axis, K and M a weight's rows and
columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

# SmoothQuant's alpha, the share of a channel's range that moves into the weights. Values between
# 0.3 and 0.7 gave the same accuracy.
SMOOTHING = 0.5


@dataclass(frozen=True)
class ChannelRange:
    """The smallest and largest value of each channel (C,) of a tensor during calibration."""

    low: np.ndarray
    high: np.ndarray

    @property
    def peak(self) -> np.ndarray:
        """The largest magnitude of each channel."""
        peak: np.ndarray = np.maximum(np.abs(self.low), np.abs(self.high))
        return peak

    def divided(self, factors: np.ndarray) -> ChannelRange:
        """Return the range after dividing the tensor's channels by positive factors (C,)."""
        return ChannelRange(self.low / factors, self.high / factors)


def quantizable_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the products that `quantize_static` converts, in the graph's order."""
    return [node.name for node in EditedGraph(model).products]


def observe_ranges(model: onnx.ModelProto, images: Iterable[np.ndarray]) -> dict[str, ChannelRange]:
    """Return the ranges of the products' input activations on the images, by tensor name.

    images: batches (N, H, W, 3) uint8. 64 photos are enough; use small batches, such as 4, because
    all activations of a batch are in memory at once. Ranges are plain minima and maxima; ranges
    of least squared error were no better (worst cosine 0.9984 instead of 0.9986).

    Raises ValueError without images, and if an activation is NaN or infinite.
    """
    return _observe(
        model, list(dict.fromkeys(node.input[0] for node in EditedGraph(model).products)), images
    )


def quantize_static(
    model: onnx.ModelProto, ranges: Mapping[str, ChannelRange], *, keep_float: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return a copy of the model with its products in int8, scaled by `ranges`.

    keep_float: names from `quantizable_nodes` to leave in float. Raises ValueError for any other
    name.
    """
    graph = EditedGraph(model)
    known = {node.name for node in graph.products}
    if unknown := sorted(set(keep_float) - known):
        raise ValueError(f"no such quantizable product: {', '.join(unknown)}")
    chosen = [node for node in graph.products if node.name not in set(keep_float)]
    smoothed = smooth(graph, chosen, ranges)
    for node in chosen:
        node.input[0] = _activation(graph, node.input[0], smoothed[node.input[0]])
        node.input[1] = _weight(graph, node.input[1])
    result = graph.finish()
    onnx.checker.check_model(result)
    return result


class EditedGraph:
    """A copy of a model during editing: constants by name, the readers of each value, and nodes to
    be inserted."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        for node in self.model.graph.node:  # a node's name is optional, its outputs are unique
            node.name = node.name or node.output[0]
        self.constants: dict[str, TensorProto] = {
            tensor.name: tensor for tensor in self.model.graph.initializer
        }
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        for output in self.model.graph.output:
            self.readers[output.name].append(NodeProto(op_type="(output)"))
        self._added: dict[str, list[NodeProto]] = {}  # by the tensor that they follow

    @property
    def products(self) -> list[NodeProto]:
        """Every MatMul with a float weight (K, M), except that of a whitening."""
        centered = {
            node.output[0]
            for node in self.model.graph.node
            if node.op_type == "Sub" and node.input[1] in self.constants
        }
        return [
            node
            for node in self.model.graph.node
            if node.op_type == "MatMul"
            and self._is_weight(node.input[1])
            and node.input[0] not in centered
        ]

    def _is_weight(self, name: str) -> bool:
        tensor = self.constants.get(name)
        return (
            tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
        )

    def array(self, name: str) -> np.ndarray:
        """Return the value of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def set_constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant or change its value, and return its name."""
        # Not ascontiguousarray, which would turn a scalar into a vector.
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self.constants[name] = self.model.graph.initializer[-1]
        return name

    def follow(self, tensor: str, nodes: list[NodeProto]) -> str:
        """Insert nodes after a tensor and return the name of the last output. Repeated calls for a
        tensor insert nothing more."""
        name: str = self._added.setdefault(tensor, nodes)[-1].output[0]
        return name

    def finish(self) -> onnx.ModelProto:
        """Return the model with the added nodes in topological order, without unused constants."""
        graph = self.model.graph
        sources = [*self.constants, *(value.name for value in graph.input)]
        nodes = [new for name in sources for new in self._added.get(name, [])]
        for node in graph.node:
            nodes.append(node)
            nodes += [new for name in node.output for new in self._added.get(name, [])]
        read = {name for node in nodes for name in node.input} | {
            value.name for value in graph.output
        }
        constants = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(constants)
        return self.model


def _observe(
    model: onnx.ModelProto, tensors: Sequence[str], images: Iterable[np.ndarray]
) -> dict[str, ChannelRange]:
    """Run the float model and return the range of each channel of the tensors."""
    if not tensors:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ranges: dict[str, ChannelRange] = {}
    for batch in images:
        for name, value in zip(
            tensors, session.run(list(tensors), {session.get_inputs()[0].name: batch}), strict=True
        ):
            rows = value.reshape(-1, value.shape[-1])
            seen = ChannelRange(rows.min(axis=0), rows.max(axis=0))
            if not np.isfinite(seen.peak).all():
                raise ValueError(f"{name} is NaN or infinite on a calibration image")
            before = ranges.get(name, seen)
            ranges[name] = ChannelRange(
                np.minimum(before.low, seen.low), np.maximum(before.high, seen.high)
            )
    if not ranges:
        raise ValueError("no images to calibrate with")
    return ranges


def smooth(
    graph: EditedGraph, chosen: Sequence[NodeProto], ranges: Mapping[str, ChannelRange]
) -> dict[str, ChannelRange]:
    """Apply SmoothQuant (arXiv 2211.10438) between each LayerNormalization and its products, where
    it costs nothing at run time, and return the changed ranges.

    A single channel with large values would leave the others only a few steps of the common scale.
    Its values are divided by a factor in the norm's weight and bias, and the rows of the products'
    weights are multiplied by it. With four channels of a small ViT's norms made 40 times larger,
    like the outliers of large models, the mean cosine is 0.9999 with smoothing and 0.989 without.
    """
    smoothed = dict(ranges)
    names = {node.name for node in chosen}
    for norm in graph.model.graph.node:
        if (
            norm.op_type != "LayerNormalization"
            or len(norm.input) != 3
            or not {*norm.input[1:]} <= graph.constants.keys()
        ):
            continue
        normed = _with_token_slices(graph, norm.output[0])
        products = [
            reader
            for name in normed
            for reader in graph.readers[name]
            if not normed & {*reader.output}
        ]
        weights = [product.input[1] for product in products if product.name in names]
        # Only if nothing else reads these constants: it would see the factors.
        is_isolated = len(weights) == len(products) and all(
            len(graph.readers[name]) == 1 for name in (*norm.input[1:], *weights)
        )
        if not weights or not is_isolated:
            continue
        observed = [name for name in normed if name in ranges]
        peak = np.max([ranges[name].peak for name in observed], axis=0)
        rows = np.max([np.abs(graph.array(name)).max(axis=1) for name in weights], axis=0)
        usable = (peak > 0) & (rows > 0)
        factors = np.ones_like(peak)
        factors[usable] = peak[usable] ** SMOOTHING / rows[usable] ** (1 - SMOOTHING)
        for name in norm.input[1:]:
            graph.set_constant(name, graph.array(name) / factors)
        for name in weights:
            graph.set_constant(name, graph.array(name) * factors[:, None])
        for name in observed:
            smoothed[name] = ranges[name].divided(factors)
    return smoothed


def _with_token_slices(graph: EditedGraph, name: str) -> set[str]:
    """Return the names of a tensor (N, T, C) and of its slices along T, which have its channels:
    the last block's query may be computed for the class token alone."""
    slices = (
        reader.output[0]
        for reader in graph.readers[name]
        if reader.op_type == "Slice"
        and len(reader.input) > 3
        and reader.input[3] in graph.constants
        and graph.array(reader.input[3]).tolist() == [1]
    )
    return {name, *slices}


def _activation(graph: EditedGraph, name: str, seen: ChannelRange) -> str:
    """Round a tensor to uint8 and back, with one scale and zero point; return the result's name.

    The range includes 0, so that 0 stays exactly 0.
    """
    low, high = min(float(seen.low.min()), 0.0), max(float(seen.high.max()), 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    zero = np.uint8(np.clip(np.round(-low / scale), 0, 255))
    parameters = [
        graph.set_constant(f"{name}/scale", np.array(scale)),
        graph.set_constant(f"{name}/zero", np.array(zero)),
    ]
    integers, back = f"{name}/uint8", f"{name}/rounded"
    return graph.follow(
        name,
        [
            helper.make_node(
                "QuantizeLinear", [name, *parameters], [integers], name=f"{name}/quantize"
            ),
            helper.make_node(
                "DequantizeLinear", [integers, *parameters], [back], name=f"{name}/dequantize"
            ),
        ],
    )


def _weight(graph: EditedGraph, name: str) -> str:
    """Store a weight (K, M) as symmetric int8 with a scale per column; return the name of its float
    value. -128 is unused."""
    weight = graph.array(name)
    peak = np.abs(weight).max(axis=0)
    scale = np.where(peak > 0, peak / 127, 1.0).astype(np.float32)
    integers = graph.set_constant(
        f"{name}/int8", np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
    )
    parameters = [
        graph.set_constant(f"{name}/scale", scale),
        graph.set_constant(f"{name}/zero", np.zeros(scale.shape, np.int8)),
    ]
    node = helper.make_node(
        "DequantizeLinear",
        [integers, *parameters],
        [f"{name}/float"],
        name=f"{name}/dequantize",
        axis=1,
    )
    return graph.follow(integers, [node])
