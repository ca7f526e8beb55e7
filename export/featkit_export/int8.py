"""Static int8 for a model file: QuantizeLinear and DequantizeLinear around the big matrix products,
nothing else.

What is quantized: every MatMul whose second input is a weight (projections of attention, both
layers of the MLP). They are 80 to 85 % of a ViT-S/14's time at 224. What stays float, and why:

- the patch convolution: 1 to 2 % of the time, and the one place where int8 costs accuracy
(featkit-tiny's worst cosine of 200
  photographs 0.9985 with it, 0.9998 without);
- the attention products: probabilities of 257 tokens are about 1/257, the size of one step of an
8-bit softmax (cosine 0.998
  instead of 0.9999), for 5 % of the time where the engine computes the rest in bf16;
- norms, residual sums, softmax, GELU: OpenVINO fuses GELU and the next quantizer into the product.

All scales are constants, so no image can change another's vector through them. Activations are
uint8 with a zero point: ONNX Runtime's kernels want unsigned by signed, OpenVINO is as fast with
either. Weights are int8, symmetric, a scale for each output channel, stored as integers: with
unsigned weights OpenVINO takes them for weight compression and computes in float.

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

# SmoothQuant's alpha: how much of a channel's range moves into the weights. 0.3 to 0.7 were alike.
SMOOTHING = 0.5


@dataclass(frozen=True)
class ChannelRange:
    """The smallest and largest value that calibration saw in each channel (C,) of a tensor."""

    low: np.ndarray
    high: np.ndarray

    @property
    def peak(self) -> np.ndarray:
        """Largest magnitude of each channel."""
        peak: np.ndarray = np.maximum(np.abs(self.low), np.abs(self.high))
        return peak

    def divided(self, factors: np.ndarray) -> ChannelRange:
        """The range of the same tensor divided channel by channel by positive factors (C,)."""
        return ChannelRange(self.low / factors, self.high / factors)


def quantizable_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the products that `quantize_static` turns to int8, in the graph's order."""
    return [node.name for node in _Graph(model).products]


def observe_ranges(model: onnx.ModelProto, images: Iterable[np.ndarray]) -> dict[str, ChannelRange]:
    """What the images make of the activations that products take, by the tensor's name.

    images: batches (N, H, W, 3) uint8 as the model takes them; 64 photographs are enough, in
    batches of 4, say: all activations of one batch are held at once. Plain minima and maxima:
    ranges with least squared error were no better (worst cosine 0.9984 against 0.9986). ValueError
    for no images, and for values that are not finite.
    """
    return _observe(
        model, list(dict.fromkeys(node.input[0] for node in _Graph(model).products)), images
    )


def quantize_static(
    model: onnx.ModelProto, ranges: Mapping[str, ChannelRange], *, keep_float: Sequence[str] = ()
) -> onnx.ModelProto:
    """A copy of the model with its products in int8, its scales set by `observe_ranges`.

    keep_float: names of products to leave alone, of `quantizable_nodes`. ValueError for a name that
    is none.
    """
    graph = _Graph(model)
    known = {node.name for node in graph.products}
    if unknown := sorted(set(keep_float) - known):
        raise ValueError(f"no quantizable product is called {', '.join(unknown)}")
    chosen = [node for node in graph.products if node.name not in set(keep_float)]
    smooth = _smooth(graph, chosen, ranges)
    for node in chosen:
        node.input[0] = _activation(graph, node.input[0], smooth[node.input[0]])
        node.input[1] = _weight(graph, node.input[1])
    result = graph.finish()
    onnx.checker.check_model(result)
    return result


class _Graph:
    """A model under change: who reads what, constants by name, and nodes that wait for their place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        for node in self.model.graph.node:  # names are optional in ONNX; outputs are unique
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
        self._added: dict[str, list[NodeProto]] = {}  # by the tensor they follow

    @property
    def products(self) -> list[NodeProto]:
        """Every MatMul by a float weight (K, M)."""
        return [
            node
            for node in self.model.graph.node
            if node.op_type == "MatMul" and self._is_weight(node.input[1])
        ]

    def _is_weight(self, name: str) -> bool:
        tensor = self.constants.get(name)
        return (
            tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
        )

    def array(self, name: str) -> np.ndarray:
        """The value of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def set_constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant or change its value; its name."""
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)  # a scalar stays one
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.model.graph.initializer.append(tensor)
            self.constants[name] = self.model.graph.initializer[-1]
        return name

    def follow(self, tensor: str, nodes: list[NodeProto]) -> str:
        """Put nodes behind the tensor, once however often asked; the name of what the last one
        gives."""
        name: str = self._added.setdefault(tensor, nodes)[-1].output[0]
        return name

    def finish(self) -> onnx.ModelProto:
        """The model with the added nodes in a valid order and without constants that nobody reads
        any more."""
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
    """Run the float model and keep each channel's extremes of the tensors. One pass serves
    smoothing and quantizing."""
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
                raise ValueError(f"{name} is not finite on an image for calibration")
            before = ranges.get(name, seen)
            ranges[name] = ChannelRange(
                np.minimum(before.low, seen.low), np.maximum(before.high, seen.high)
            )
    if not ranges:
        raise ValueError("no images to calibrate with")
    return ranges


def _smooth(
    graph: _Graph, chosen: Sequence[NodeProto], ranges: Mapping[str, ChannelRange]
) -> dict[str, ChannelRange]:
    """SmoothQuant (arXiv 2211.10438) where it costs nothing at run time: between a
    LayerNormalization and its products.

    One loud channel would leave the others a few steps of the common scale. It is divided in the
    norm's weight and bias and multiplied back in the rows of the products' weights. With four
    channels of featkit-tiny's norms made 40 times as loud, as outliers of large models are, the
    mean cosine is 0.9999 with it and 0.989 without. The ranges (returned) change alike.
    """
    result = dict(ranges)
    names = {node.name for node in chosen}
    for norm in graph.model.graph.node:
        if (
            norm.op_type != "LayerNormalization"
            or len(norm.input) != 3
            or not {*norm.input[1:]} <= graph.constants.keys()
        ):
            continue
        products = graph.readers[norm.output[0]]
        weights = [product.input[1] for product in products if product.name in names]
        ours = len(weights) == len(products) and all(
            len(graph.readers[name]) == 1 for name in (*norm.input[1:], *weights)
        )
        if not weights or not ours:
            continue
        peak = ranges[norm.output[0]].peak
        rows = np.max([np.abs(graph.array(name)).max(axis=1) for name in weights], axis=0)
        usable = (peak > 0) & (rows > 0)
        factors = np.ones_like(peak)
        factors[usable] = peak[usable] ** SMOOTHING / rows[usable] ** (1 - SMOOTHING)
        for name in norm.input[1:]:
            graph.set_constant(name, graph.array(name) / factors)
        for name in weights:
            graph.set_constant(name, graph.array(name) * factors[:, None])
        result[norm.output[0]] = ranges[norm.output[0]].divided(factors)
    return result


def _activation(graph: _Graph, name: str, seen: ChannelRange) -> str:
    """The tensor rounded to uint8 and back, one scale and zero point for all of it. Zero stays
    exactly zero."""
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


def _weight(graph: _Graph, name: str) -> str:
    """The weight (K, M) stored as int8 with a scale for each column; symmetric, -128 unused."""
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
