"""Nodes to add before and after an ONNX graph, in the form that its opset requires.

Letters: N images, (H, W) pixels, (h, w) patches, T tokens (class, R registers, then patches), D
width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featkit.modelfile import EMBEDDING, INPUT, PATCHES

GEM_POWER, GEM_FLOOR = 3.0, 1e-6  # Radenović et al., arXiv 1711.02512, eq. 3
NORM_FLOOR = 1e-12  # torch's F.normalize
MIN_OPSET = 11  # older opsets lack the forms of Cast, Slice and Max used here
AXES_AS_INPUT_SINCE = {"ReduceSum": 13, "ReduceMean": 18}
ALLOWZERO_SINCE = 14  # before, Reshape took a size of 0 for "keep the input's"
OWN = "featkit/"  # prefix of added names, so that they cannot collide with the file's
GUARD = f"{OWN}guard/"
GUARDED = f"{GUARD}{INPUT}"  # the images after the guard
END = np.iinfo(np.int64).max


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a graph and of the subgraphs in its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from all_nodes(inner)


class Nodes:
    """Nodes and constants to add to a graph, with names of their own, for one opset.

    section: the first part of their names. half: whether the graph's values are fp16.
    """

    def __init__(self, section: str, opset: int, *, half: bool = False) -> None:
        self.prefix, self.opset, self.half = f"{OWN}{section}/", opset, half
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, into: str | None = None, **attributes: Any) -> str:
        """Append a node and return its output's name."""
        output = into or f"{self.prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(
                operator, inputs, [output], f"{self.prefix}node_{len(self.nodes)}", **attributes
            )
        )
        return output

    def constant(self, values: Any, kind: type[np.generic] = np.float32) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def reduce(self, operator: str, values: str, *, axis: int, keepdims: int) -> str:
        """Append a reduction over one axis, which is an input in newer opsets and an attribute in
        older ones."""
        if self.opset >= AXES_AS_INPUT_SINCE[operator]:
            return self.add(operator, values, self.constant([axis], np.int64), keepdims=keepdims)
        return self.add(operator, values, axes=[axis], keepdims=keepdims)

    def to_float(self, values: str) -> str:
        """Append a cast of fp16 values to float32, and return its output's name.

        Call it on the output of a node that only moves values. Directly after the file's last
        operator, ONNX Runtime would merge the cast with one of its own and lose the original's
        rounding to fp16.
        """
        return self.add("Cast", values, to=TensorProto.FLOAT) if self.half else values

    def unit_length(self, vectors: str) -> str:
        """Divide each vector of (N, D) by its length, but by at least NORM_FLOOR."""
        squares = self.reduce("ReduceSum", self.add("Mul", vectors, vectors), axis=-1, keepdims=1)
        length = self.add("Max", self.add("Sqrt", squares), self.constant([NORM_FLOOR]))
        return self.add("Div", vectors, length)


def add_guard(graph: onnx.GraphProto, patch: int, *, opset: int) -> None:
    """Make a graph of dynamic size fail, in every runtime, on images whose sides the patch does not
    divide.

    Its convolution would ignore the rows and columns beyond the last whole patch. The guard
    reshapes the images to the size of their whole patches. This fails if that size has fewer
    pixels, and changes nothing otherwise.
    """
    # In older opsets, a side smaller than a patch passes here and fails in the convolution.
    options: dict[str, Any] = {"allowzero": 1} if opset >= ALLOWZERO_SINCE else {}
    for node in all_nodes(graph):
        node.input[:] = [GUARDED if name == INPUT else name for name in node.input]
    shape, grid, target, sides = (f"{GUARD}{name}" for name in ("shape", "grid", "whole", "patch"))
    guard = [
        helper.make_node("Shape", [INPUT], [shape], f"{GUARD}Shape"),
        helper.make_node("Div", [shape, sides], [grid], f"{GUARD}Div"),
        helper.make_node("Mul", [grid, sides], [target], f"{GUARD}Mul"),
        helper.make_node("Reshape", [INPUT, target], [GUARDED], f"{GUARD}Reshape", **options),
    ]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*guard, *nodes])
    graph.initializer.append(
        numpy_helper.from_array(np.array([1, patch, patch, 1], np.int64), sides)
    )


class Guard(NamedTuple):
    """The guard of a graph: the indices of its four nodes, its constant, and the name of the images
    after it."""

    nodes: frozenset[int]
    constant: str
    guarded: str


def find_guard(graph: onnx.GraphProto) -> Guard | None:
    """Return the nodes that `add_guard` added, or None. They are recognized by their wiring, since
    names may change."""
    if len(graph.input) != 1:
        return None
    images = graph.input[0].name
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output}
    for index, reshape in enumerate(graph.node):
        if reshape.op_type != "Reshape" or reshape.input[0] != images:
            continue
        chain, value = [index], reshape.input[1]
        for operator in ("Mul", "Div", "Shape"):
            node = graph.node[maker[value]] if value in maker else None
            if node is None or node.op_type != operator:
                break
            chain.append(maker[value])
            value = node.input[0]
        else:
            constants = {graph.node[each].input[1] for each in chain[1:3]}
            if value == images and len(constants) == 1:
                return Guard(frozenset(chain), constants.pop(), reshape.output[0])
    return None


def add_pixels(
    nodes: Nodes,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    into: str,
    kind: int = TensorProto.FLOAT,
    channels_last: bool = False,
) -> None:
    """Convert images (N, H, W, 3) uint8 to the file's input: (pixels - mean) / std, each (3,) in
    units of 0 .. 255.

    kind: the input's element type; uint8 takes the pixels unchanged.
    channels_last: whether the input is (N, H, W, 3).
    """
    values = INPUT
    if kind != TensorProto.UINT8:
        mean, std = (np.asarray(numbers, np.float64).reshape(1, 1, 1, 3) for numbers in (mean, std))
        centered = nodes.add(
            "Sub", nodes.add("Cast", INPUT, to=TensorProto.FLOAT), nodes.constant(mean)
        )
        values = nodes.add("Div", centered, nodes.constant(std))
    if kind == TensorProto.FLOAT16:
        values = nodes.add("Cast", values, to=TensorProto.FLOAT16)
    if channels_last:
        nodes.add("Identity", values, into=into)
    else:
        nodes.add("Transpose", values, into=into, perm=[0, 3, 1, 2])


def add_feature(nodes: Nodes, hidden: str, *, feature: str, is_pooled: bool, skip: int) -> None:
    """Compute `embedding` from last_hidden_state (N, T, D), or from pooler_output (N, D)."""
    parts = []
    for pooling in feature.split("+"):
        if is_pooled or pooling == "cls":
            first = nodes.constant(0, np.int64)
            class_token = (
                nodes.add("Flatten", hidden, axis=1)
                if is_pooled
                else nodes.add("Gather", hidden, first, axis=1)
            )
            pooled = nodes.to_float(class_token)
        else:
            tokens = _patch_tokens(nodes, hidden, skip=skip)
            if pooling == "gem":
                tokens = nodes.add(
                    "Pow",
                    nodes.add("Max", tokens, nodes.constant([GEM_FLOOR])),
                    nodes.constant([GEM_POWER]),
                )
            pooled = nodes.reduce("ReduceMean", tokens, axis=1, keepdims=0)
            if pooling == "gem":
                pooled = nodes.add("Pow", pooled, nodes.constant([1 / GEM_POWER]))
        parts.append(nodes.unit_length(pooled))
    if len(parts) == 1:
        nodes.add("Identity", parts[0], into=EMBEDDING)
    else:  # the concatenation of unit vectors has length sqrt(len(parts))
        nodes.add(
            "Div",
            nodes.add("Concat", *parts, axis=1),
            nodes.constant([len(parts) ** 0.5]),
            into=EMBEDDING,
        )


def add_patches(nodes: Nodes, hidden: str, *, patch: int, skip: int) -> None:
    """Compute `patches` (N, h, w, D) from last_hidden_state (N, T, D)."""
    shape = nodes.add(
        "Slice",
        nodes.add("Shape", INPUT),
        nodes.constant([0], np.int64),
        nodes.constant([3], np.int64),
    )
    grid = nodes.add("Div", shape, nodes.constant([1, patch, patch], np.int64))
    target = nodes.add("Concat", grid, nodes.constant([-1], np.int64), axis=0)
    nodes.add("Reshape", _patch_tokens(nodes, hidden, skip=skip), target, into=PATCHES)


def _patch_tokens(nodes: Nodes, hidden: str, *, skip: int) -> str:
    bounds = (nodes.constant([value], np.int64) for value in (skip, END, 1))  # start, end, axis
    return nodes.to_float(nodes.add("Slice", hidden, *bounds))


def make_room(graph: onnx.GraphProto) -> dict[str, str]:
    """Rename values whose names a model file reserves, and return a map from old to new names."""
    values = [*graph.input, *graph.initializer]
    names = {value.name for value in values} | {
        output for node in all_nodes(graph) for output in node.output
    }
    renamed = {
        name: f"original/{name}"
        for name in names
        if name in (INPUT, EMBEDDING, PATCHES) or name.startswith(OWN)
    }
    for value in values:
        value.name = renamed.get(value.name, value.name)
    _rename_edges(graph, renamed)
    return renamed


def _rename_edges(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for node in all_nodes(graph):
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                for value in (*inner.input, *inner.output, *inner.initializer):
                    value.name = renamed.get(value.name, value.name)
