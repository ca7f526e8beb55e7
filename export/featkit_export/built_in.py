"""Detect the normalization inside a graph by running its first nodes, so that nothing is normalized
twice.

Some exporters put `x / 255`, `(x - mean) / std` or a cast of uint8 pixels into the graph. The nodes
between the input and the first product run on a few drawn images. If they apply one factor and one
offset to each channel, the normalization is known.

Letters: N images, (H, W) pixels, x the graph's input, p pixels of 0 .. 255.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit_export import verify

# The first nodes end at a product, or at a node that already quantizes for one.
PRODUCTS = frozenset(
    "Conv MatMul Gemm Einsum ConvInteger MatMulInteger QLinearConv QLinearMatMul QuantizeLinear"
    " DynamicQuantizeLinear FusedConv FusedMatMul LayerNormalization".split()
)
SIZE_READERS = frozenset(("Shape", "Size"))  # they read sizes, not values
# Relative for a factor, in standard deviations for an offset. Files round their constants, and fp16
# rounds further.
TOLERANCE = 0.02
PLAUSIBLE_WIDTH = (0.9, 12.0)  # width of the interval of normalized pixels


@dataclass(frozen=True)
class Affine:
    """The effect of the first nodes on a channel: factor · x + offset, each (3,)."""

    factor: np.ndarray
    offset: np.ndarray

    def __str__(self) -> str:
        factor, offset = (
            ", ".join(f"{number:.4g}" for number in numbers)
            for numbers in (self.factor, self.offset)
        )
        return f"x · ({factor}) + ({offset})"

    @property
    def is_scale_alone(self) -> bool:
        """True if this is a single factor for all channels without an offset, such as 1/255."""
        return bool(
            np.allclose(self.offset, 0, atol=1e-4)
            and np.ptp(self.factor) <= 1e-3 * abs(self.factor[0])
        )


@dataclass(frozen=True)
class Feed:
    """The normalization to apply before the graph: x = (p - mean) / std, each (3,).

    geometry: for the manifest, with the normalization of feed and graph together.
    note: a sentence on what was found.
    """

    mean: np.ndarray
    std: np.ndarray
    geometry: Geometry
    note: str = ""


def find_normalization(
    model: onnx.ModelProto, source: str, *, kind: int, shape: tuple[int, int, int, int]
) -> Affine | None:
    """Return the effect of the nodes between the input and the first product.

    None if they do nothing, or anything but one factor and one offset per channel.
    source: the input's name. kind: its element type. shape: of one image as the input takes it.
    """
    cut = _first_product_input(model.graph, source)
    if cut is None or cut == source:
        return None
    try:
        session = verify.open_session(_prefix(model, source, cut).SerializeToString())
        return _measured(session, source, kind=kind, shape=shape)
    # The first nodes may not run by themselves; onnxruntime's exceptions share no base class.
    except Exception:
        return None


def _first_product_input(graph: onnx.GraphProto, source: str) -> str | None:
    """Return the input of the first product that depends on the images."""
    reached = {source}
    for node in graph.node:
        inputs: list[str] = [name for name in node.input if name in reached]
        if not inputs:
            continue
        if node.op_type in PRODUCTS:
            return inputs[0]
        if node.op_type not in SIZE_READERS:
            reached.update(node.output)
    return None


def _prefix(model: onnx.ModelProto, source: str, cut: str) -> onnx.ModelProto:
    """Return the nodes that compute `cut`, as a model whose only output is `cut`."""
    wanted: set[str] = {cut}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.insert(0, node)
            wanted.update(node.input)
    prefix = onnx.ModelProto(ir_version=max(4, model.ir_version))
    prefix.opset_import.extend(model.opset_import)
    graph = prefix.graph
    graph.name = "prefix"
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    graph.input.extend(value for value in model.graph.input if value.name == source)
    types = {
        value.name: value.type
        for value in onnx.shape_inference.infer_shapes(prefix).graph.value_info
    }
    kind = types[cut].tensor_type.elem_type if cut in types else TensorProto.FLOAT
    graph.output.append(helper.make_tensor_value_info(cut, kind, None))
    return prefix


def _measured(
    session: ort.InferenceSession, source: str, *, kind: int, shape: tuple[int, int, int, int]
) -> Affine | None:
    """Measure factor and offset of each channel on images of one color; None if the nodes do
    anything else."""
    element = helper.tensor_dtype_to_np_dtype(kind)
    axis = 1 if shape[1] == 3 else 3

    def run(values: np.ndarray) -> np.ndarray:
        output: np.ndarray = session.run(None, {source: values.astype(element)})[0]
        return output.astype(np.float64)

    black = run(np.zeros(shape))
    factors, offsets = np.zeros(3), np.zeros(3)
    for channel in range(3):
        one_channel = np.zeros(shape)
        np.moveaxis(one_channel, axis, 0)[channel] = 1
        change = run(one_channel) - black
        belongs = change != 0  # wherever the nodes put this channel
        if (
            not belongs.any()
            or _spread(change[belongs]) > TOLERANCE
            or np.ptp(black[belongs]) > TOLERANCE
        ):
            return None
        factors[channel], offsets[channel] = change[belongs].mean(), black[belongs].mean()
    rng = np.random.default_rng(0)
    high = 120 if kind == TensorProto.UINT8 else 1
    first, second = (
        rng.integers(0, high + 1, shape) if high > 1 else rng.random(shape) for _ in range(2)
    )
    first, second = (values.astype(element).astype(np.float64) for values in (first, second))
    # An affine function f satisfies f(a) + f(b) = f(0) + f(a + b).
    error = run(first) + run(second) - black - run(first + second)
    if np.abs(error).max() > TOLERANCE * max(1.0, np.abs(factors).max() * high):
        return None
    is_identity = np.allclose(factors, 1, rtol=1e-4) and np.allclose(offsets, 0, atol=1e-4)
    return None if is_identity else Affine(factors, offsets)


def _spread(values: np.ndarray) -> float:
    return float(np.ptp(values) / np.abs(values).max())


def feed_for(built_in: Affine | None, geometry: Geometry, *, name: str, takes_bytes: bool) -> Feed:
    """Return how to normalize pixels before a graph that applies `built_in` itself.

    geometry: the normalization of the published preprocessing. takes_bytes: the input is uint8, so
    it can only take pixels. Raises InputError if graph and preprocessing contradict each other.
    """
    mean, std = (255 * np.asarray(numbers, np.float64) for numbers in (geometry.mean, geometry.std))
    pixels = Feed(np.zeros(3), np.ones(3), geometry)
    if built_in is None:
        note = (
            f"{name} takes uint8 pixels and normalizes them itself, in a way that could not be"
            " measured."
        )
        return dataclasses.replace(pixels, note=note) if takes_bytes else Feed(mean, std, geometry)
    feeds = [pixels] if takes_bytes else [pixels, Feed(np.zeros(3), np.full(3, 255.0), geometry)]
    itself = f"{name} normalizes images itself, by {built_in} of "
    for feed in feeds:
        factor, offset = _total(built_in, feed)
        if np.allclose(factor * std, 1, rtol=TOLERANCE) and np.allclose(
            offset, -mean / std, atol=TOLERANCE
        ):
            return dataclasses.replace(
                feed,
                note=f"{itself}{_units(feed)}, as in its preprocessing; it is not done twice.",
            )
    # A mean of 0 and equal stds mean that the preprocessing leaves normalization to the graph.
    if np.allclose(mean, 0) and np.ptp(std) == 0:
        fitting = [feed for feed in feeds if _is_plausible(built_in, feed)]
        if len(fitting) == 1:
            (feed,) = fitting
            factor, offset = _total(built_in, feed)  # factor · p + offset = (p / 255 - mean) / std
            effective = dataclasses.replace(
                geometry,
                std=tuple((1 / (255 * factor)).tolist()),
                mean=tuple((-offset / (255 * factor)).tolist()),
            )
            return Feed(
                feed.mean,
                feed.std,
                effective,
                f"{itself}{_units(feed)}; its preprocessing has no normalization.",
            )
    if built_in.is_scale_alone and not takes_bytes:
        scale = float(built_in.factor.mean())
        note = (
            f"{name} multiplies its input by {scale:.4g} itself; the normalization of images"
            " compensates for it."
        )
        return Feed(mean, std * scale, geometry, note)
    published_mean, published_std = (
        ", ".join(f"{value:.4g}" for value in values) for values in (geometry.mean, geometry.std)
    )
    raise InputError(
        f"{name} normalizes images itself, by {built_in}, which contradicts the mean"
        f" {published_mean} and std {published_std} of its preprocessing. If the graph is right,"
        " set do_normalize to false in its preprocessor_config.json; otherwise export it again"
        " without its normalization."
    )


def _total(built_in: Affine, feed: Feed) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and offset (3,) from pixels through the feed and the graph."""
    return built_in.factor / feed.std, built_in.offset - built_in.factor * feed.mean / feed.std


def _is_plausible(built_in: Affine, feed: Feed) -> bool:
    factor, offset = _total(built_in, feed)
    width = 255 * np.abs(factor)
    least, most = PLAUSIBLE_WIDTH
    return bool((width >= least).all() and (width <= most).all() and (np.abs(offset) <= most).all())


def _units(feed: Feed) -> str:
    return "pixels of 0 to 255" if feed.std[0] == 1 else "pixels of 0 to 1"
