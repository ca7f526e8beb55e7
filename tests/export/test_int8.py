"""Promises of int8: which products it is, that scales are a plain loop's, that no image changes
another's vector."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from featkit.embedder import Embedder
from featkit.modelfile import read_manifest
from featkit_export import int8
from featkit_export.int8 import ChannelRange, observe_ranges, quantizable_nodes, quantize_static
from featkit_export.original import load_onnx
from featkit_export.seal import seal
from featkit_export.verify import draw_images
from tests.export.backbones import CONFIGS, file_of
from tests.featkit.backends.engines import needs_openvino

SIDE = 56
LOUD = 40.0


def batches(images: np.ndarray, size: int = 4) -> Iterator[np.ndarray]:
    return (images[start : start + size] for start in range(0, len(images), size))


def run(model: onnx.ModelProto, images: np.ndarray, *names: str) -> list[np.ndarray]:
    """Outputs, `embedding` by default, and any value inside that is named."""
    probe = copy.deepcopy(model)
    given = {value.name for value in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in given
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[np.ndarray] = session.run(list(names) or ["embedding"], {"images": images})
    return results


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    return result


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The graph's constants."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node that makes each value."""
    return {value: node for node in model.graph.node for value in node.output}


def set_array(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return draw_images(12, height=SIDE, width=SIDE, seed=1)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return load_onnx(file_of("dinov2")[0])


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto, images: np.ndarray) -> dict[str, ChannelRange]:
    return observe_ranges(model, batches(images))


@pytest.fixture(scope="module")
def quantized(model: onnx.ModelProto, ranges: dict[str, ChannelRange]) -> onnx.ModelProto:
    return quantize_static(model, ranges)


# What is quantized --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_products_are_the_four_of_each_block(name: str) -> None:
    """Queries, keys and values at once; the projection; and both layers of the MLP. Not those that
    resample positions."""
    model = load_onnx(file_of(name)[0])
    constants, found = arrays(model), quantizable_nodes(model)
    shapes = [constants[node.input[1]].shape for node in model.graph.node if node.name in found]
    config = CONFIGS[name]
    inner = (2 if config.mlp == "swiglu" else 1) * config.mlp_width
    width = config.width
    block = [(width, 3 * width), (width, width), (width, inner), (config.mlp_width, width)]
    assert sorted(shapes) == sorted(block * config.depth)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("num_kept", [0, 1, 5, 8])
def test_only_products_not_kept_take_rounded_inputs(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange], num_kept: int
) -> None:
    names = quantizable_nodes(model)
    kept = names[::-1][:num_kept]
    lowered = quantize_static(model, ranges, keep_float=kept)
    onnx.checker.check_model(lowered, full_check=True)
    constants, made_by = arrays(lowered), makers(lowered)
    originals = arrays(model)
    rounded: set[str] = set()
    for node in lowered.graph.node:
        makes = [made_by[name].op_type if name in made_by else "" for name in node.input]
        if node.op_type == "MatMul" and node.name in names and node.name not in kept:
            assert makes == ["DequantizeLinear", "DequantizeLinear"]
            activation, weight = (made_by[name] for name in node.input)
            quantize = made_by[activation.input[0]]
            assert quantize.op_type == "QuantizeLinear"
            assert quantize.input[1:] == activation.input[1:]
            assert (constants[quantize.input[1]].shape, constants[quantize.input[2]].dtype) == (
                (),
                np.dtype(np.uint8),
            )
            assert constants[weight.input[0]].dtype == np.dtype(np.int8)
            rounded.add(quantize.input[0])
        else:
            assert node.op_type == "DequantizeLinear" or not {
                "QuantizeLinear",
                "DequantizeLinear",
            } & set(makes), node.name
        if node.name in kept:
            np.testing.assert_array_equal(constants[node.input[1]], originals[node.input[1]])
    others = [
        node.op_type
        for node in lowered.graph.node
        if not node.op_type.endswith("quantizeLinear") and node.op_type[0] != "Q"
    ]
    assert [name for name in others if name != "DequantizeLinear"] == [
        node.op_type for node in model.graph.node
    ]
    assert (
        sum(node.op_type == "QuantizeLinear" for node in lowered.graph.node)
        == len(rounded)
        == 8 - num_kept
    )
    assert {"Conv", "LayerNormalization", "Softmax"} <= set(others)
    # attention's own are among them
    assert sum(node.op_type == "MatMul" for node in lowered.graph.node) > 8


def test_all_kept_in_float_is_the_float_model_to_the_last_bit(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange], images: np.ndarray
) -> None:
    same = quantize_static(model, ranges, keep_float=quantizable_nodes(model))
    outputs = ("embedding", "patches", "attention")
    for expected, got in zip(
        run(model, images, *outputs), run(same, images, *outputs), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_the_model_itself_is_left_as_it_is(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange]
) -> None:
    before = model.SerializeToString(deterministic=True)
    quantize_static(model, ranges)
    assert model.SerializeToString(deterministic=True) == before


def test_a_name_that_is_no_product_is_an_error(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange]
) -> None:
    softmax = next(node.name for node in model.graph.node if node.op_type == "Softmax")
    with pytest.raises(ValueError, match=f"no such quantizable product: {softmax}, zzz"):
        quantize_static(model, ranges, keep_float=[quantizable_nodes(model)[0], "zzz", softmax])


def test_products_without_a_name_are_called_as_what_they_give(
    model: onnx.ModelProto,
    ranges: dict[str, ChannelRange],
    quantized: onnx.ModelProto,
    images: np.ndarray,
) -> None:
    """Names of nodes are optional in ONNX, and files made elsewhere may have none."""
    bare = copy.deepcopy(model)
    for node in bare.graph.node:
        node.name = ""
    names = quantizable_nodes(bare)
    assert set(names) == {
        node.output[0] for node in model.graph.node if node.name in quantizable_nodes(model)
    }
    np.testing.assert_array_equal(
        run(quantize_static(bare, ranges), images)[0], run(quantized, images)[0]
    )
    one = quantize_static(bare, ranges, keep_float=names[:1])
    assert sum(node.op_type == "QuantizeLinear" for node in one.graph.node) == 7


# The numbers --------------------------------------------------------------------------------------


def test_ranges_are_the_extremes_of_each_channel_over_all_images(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange], images: np.ndarray
) -> None:
    products = [node for node in model.graph.node if node.name in quantizable_nodes(model)]
    assert set(ranges) == {node.input[0] for node in products}
    values = [run(model, image[None], *ranges) for image in images]
    for number, seen in enumerate(ranges.values()):
        low, high = np.full(len(seen.low), np.inf), np.full(len(seen.low), -np.inf)
        for found in values:
            for row in found[number].reshape(-1, len(low)):
                low, high = np.minimum(low, row), np.maximum(high, row)
        np.testing.assert_allclose(seen.low, low, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(seen.high, high, rtol=1e-4, atol=1e-5)


def test_an_activations_scale_spans_all_channels_and_zero(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange], quantized: onnx.ModelProto
) -> None:
    constants, made_by, before = arrays(quantized), makers(model), arrays(model)
    products = [node for node in model.graph.node if node.name in quantizable_nodes(model)]
    for product in products:
        name = product.input[0]
        factors = [1.0] * len(ranges[name].low)
        if made_by[name].op_type == "LayerNormalization":  # SmoothQuant, eq. 4
            for channel in range(len(factors)):
                peak = max(
                    abs(float(ranges[name].low[channel])), abs(float(ranges[name].high[channel]))
                )
                largest = max(abs(float(value)) for value in before[product.input[1]][channel])
                factors[channel] = peak**0.5 / largest**0.5
        low = high = 0.0
        for channel, factor in enumerate(factors):
            low = min(low, float(ranges[name].low[channel]) / factor)
            high = max(high, float(ranges[name].high[channel]) / factor)
        scale = (high - low) / 255
        quantize = next(
            node
            for node in quantized.graph.node
            if node.op_type == "QuantizeLinear" and node.input[0] == name
        )
        assert float(constants[quantize.input[1]]) == pytest.approx(scale, rel=1e-5)
        assert int(constants[quantize.input[2]]) == pytest.approx(-low / scale, abs=0.51)
        assert [str(constants[name].dtype) for name in quantize.input[1:]] == ["float32", "uint8"]


def test_range_includes_zero_and_a_constant_0_has_a_scale() -> None:
    """Zero stays exactly zero, and no scale is zero."""
    for low, high, scale, zero in (
        ([0.5, 1.0], [2.0, 5.1], 0.02, 0),
        ([-5.1], [-1.0], 0.02, 255),
        ([0.0], [0.0], 1.0, 0),
    ):
        graph = int8.EditedGraph(onnx.ModelProto())
        int8._activation(graph, "t", ChannelRange(np.array(low), np.array(high)))
        assert float(graph.array("t/scale")) == pytest.approx(scale)
        assert int(graph.array("t/zero")) == zero


def test_weights_are_symmetric_with_a_scale_a_column(
    model: onnx.ModelProto, quantized: onnx.ModelProto
) -> None:
    constants, made_by, before = arrays(quantized), makers(quantized), arrays(model)
    normed = {name for name, node in makers(model).items() if node.op_type == "LayerNormalization"}
    products = {
        node.name: node for node in model.graph.node if node.name in quantizable_nodes(model)
    }
    for node in quantized.graph.node:
        if node.name not in products:
            continue
        dequantize = made_by[node.input[1]]
        assert helper.get_node_attr_value(dequantize, "axis") == 1
        integers, scale, zero = (constants[name] for name in dequantize.input)
        weight = before[products[node.name].input[1]]
        assert [str(constants[name].dtype) for name in dequantize.input] == [
            "int8",
            "float32",
            "int8",
        ]
        assert (integers.shape, scale.shape) == (weight.shape, weight.shape[1:])
        assert not zero.any()
        assert integers.min() >= -127  # -128 would have no opposite
        np.testing.assert_array_equal(np.abs(integers.astype(int)).max(axis=0), 127)
        # rows of the others were multiplied by their channel's factor
        if products[node.name].input[0] not in normed:
            for column in range(weight.shape[1]):
                assert scale[column] == pytest.approx(
                    max(abs(float(value)) for value in weight[:, column]) / 127
                )
            assert np.abs(integers * scale - weight).max() <= scale.max() / 2 * 1.001


def test_a_column_of_zeros_stays_zero(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange], images: np.ndarray
) -> None:
    emptied = copy.deepcopy(model)
    product = [node for node in emptied.graph.node if node.name in quantizable_nodes(emptied)][1]
    weight = arrays(emptied)[product.input[1]].copy()
    weight[:, 3] = 0
    set_array(emptied, product.input[1], weight)
    lowered = quantize_static(emptied, ranges)
    (got,) = run(lowered, images, product.output[0])
    assert not got[..., 3].any()
    assert np.isfinite(got).all()


def test_vectors_stay_near_those_of_the_float_model(
    model: onnx.ModelProto, quantized: onnx.ModelProto, images: np.ndarray
) -> None:
    new = draw_images(8, height=SIDE, width=SIDE, seed=9)  # not those it was calibrated on
    for drawn in (images, new):
        found = cosines(run(model, drawn)[0], run(quantized, drawn)[0])
        assert found.min() > 0.998
        assert found.max() < 1 - 1e-7  # it was rounded


# SmoothQuant --------------------------------------------------------------------------------------


def with_loud_channel(model: onnx.ModelProto, *, channel: int = 5) -> onnx.ModelProto:
    """The same function, one channel of every block's norms LOUD times as large and its rows of the
    weights as much smaller."""
    loud = copy.deepcopy(model)
    chosen = quantizable_nodes(loud)
    count = 0
    for norm in [node for node in loud.graph.node if node.op_type == "LayerNormalization"]:
        products = [
            node
            for node in loud.graph.node
            if node.name in chosen and node.input[0] == norm.output[0]
        ]
        for name in norm.input[1:] if products else ():
            value = arrays(loud)[name].copy()
            value[channel] *= LOUD
            set_array(loud, name, value)
        for product in products:
            weight = arrays(loud)[product.input[1]].copy()
            weight[channel] /= LOUD
            set_array(loud, product.input[1], weight)
            count += 1
    assert count == 4
    return loud


def smoothed_alone(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange]
) -> tuple[onnx.ModelProto, dict[str, ChannelRange]]:
    """The model after SmoothQuant and before any rounding, and what it says of the ranges then."""
    graph = int8.EditedGraph(model)
    changed = int8.smooth(graph, graph.products, ranges)
    return graph.finish(), changed


@pytest.mark.parametrize("is_loud", [False, True])
def test_smoothing_alone_changes_weights_and_not_the_function(
    model: onnx.ModelProto, images: np.ndarray, is_loud: bool
) -> None:
    full = with_loud_channel(model) if is_loud else model
    ranges = observe_ranges(full, batches(images))
    smooth, changed = smoothed_alone(full, ranges)
    outputs = ("embedding", "patches", "attention")
    for expected, got in zip(
        run(full, images, *outputs), run(smooth, images, *outputs), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=2e-4 if is_loud else 5e-5)
    before, after = arrays(full), arrays(smooth)
    different = [name for name in before if not np.array_equal(before[name], after[name])]
    # weight and bias of four norms, and the four products that follow them
    assert len(different) == 4 * 2 + 4
    seen = observe_ranges(smooth, batches(images))
    for name in ranges:
        np.testing.assert_allclose(changed[name].low, seen[name].low, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(changed[name].high, seen[name].high, rtol=1e-3, atol=1e-4)


def test_smoothing_balances_a_channel_and_its_weights(
    model: onnx.ModelProto, images: np.ndarray
) -> None:
    """At alpha 1/2: the largest activation of a channel equals the largest weight of its row."""
    loud = with_loud_channel(model)
    smooth, changed = smoothed_alone(loud, observe_ranges(loud, batches(images)))
    made_by = makers(smooth)
    products = [node for node in smooth.graph.node if node.name in quantizable_nodes(smooth)]
    normed = [node for node in products if made_by[node.input[0]].op_type == "LayerNormalization"]
    assert len(normed) == 4
    for product in normed:
        rows = np.abs(arrays(smooth)[product.input[1]]).max(axis=1)
        np.testing.assert_allclose(changed[product.input[0]].peak, rows, rtol=1e-4)


def test_outlier_channel_costs_nothing_with_smoothing(
    model: onnx.ModelProto, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = with_loud_channel(model)
    ranges = observe_ranges(loud, batches(images))
    expected = run(loud, images)[0]
    np.testing.assert_allclose(expected, run(model, images)[0], atol=1e-4)
    smoothed = cosines(run(quantize_static(loud, ranges), images)[0], expected)
    assert smoothed.min() > 0.999
    monkeypatch.setattr(int8, "smooth", lambda _graph, _chosen, ranges: dict(ranges))
    plain = cosines(run(quantize_static(loud, ranges), images)[0], expected)
    assert 1 - plain.mean() > 10 * (1 - smoothed.mean())


def test_a_norm_that_something_else_reads_is_left_alone(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange], images: np.ndarray
) -> None:
    """A product that stays in float, or an output: divided channels would reach it."""
    first = quantizable_nodes(model)[0]
    kept = quantize_static(model, ranges, keep_float=[first])
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    for name in norm.input[1:]:
        np.testing.assert_array_equal(arrays(kept)[name], arrays(model)[name])

    shown = copy.deepcopy(model)
    shown.graph.output.append(
        helper.make_tensor_value_info(norm.output[0], TensorProto.FLOAT, None)
    )
    graph = int8.EditedGraph(shown)
    int8.smooth(graph, graph.products, ranges)
    np.testing.assert_allclose(
        run(graph.finish(), images, norm.output[0])[0],
        run(model, images, norm.output[0])[0],
        atol=1e-6,
    )


def test_channels_without_any_signal_or_weight_stay_finite(
    model: onnx.ModelProto, images: np.ndarray
) -> None:
    silent = copy.deepcopy(model)
    norm = next(node for node in silent.graph.node if node.op_type == "LayerNormalization")
    product = next(node for node in silent.graph.node if node.input[:1] == [norm.output[0]])
    # channel 2 is silent, row 7 empty
    for name, place in ((norm.input[1], 2), (norm.input[2], 2), (product.input[1], 7)):
        value = arrays(silent)[name].copy()
        value[place] = 0
        set_array(silent, name, value)
    lowered = quantize_static(silent, observe_ranges(silent, batches(images)))
    assert all(
        np.isfinite(value).all() for value in arrays(lowered).values() if value.dtype == np.float32
    )
    assert cosines(run(lowered, images)[0], run(silent, images)[0]).min() > 0.998


# Calibration --------------------------------------------------------------------------------------


def test_no_images_are_an_error(model: onnx.ModelProto) -> None:
    with pytest.raises(ValueError, match="no images to calibrate with"):
        observe_ranges(model, [])


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_values_that_are_not_finite_are_an_error_naming_where(
    model: onnx.ModelProto, images: np.ndarray, bad: float
) -> None:
    spoilt = copy.deepcopy(model)
    norm = next(node for node in spoilt.graph.node if node.op_type == "LayerNormalization")
    bias = arrays(spoilt)[norm.input[2]].copy()
    bias[0] = bad
    set_array(spoilt, norm.input[2], bias)
    with pytest.raises(
        ValueError, match=f"^{norm.output[0]} is NaN or infinite on a calibration image"
    ):
        observe_ranges(spoilt, batches(images))


def test_more_images_only_widen_ranges(
    model: onnx.ModelProto, ranges: dict[str, ChannelRange], images: np.ndarray
) -> None:
    fewer = observe_ranges(model, batches(images[:4]))
    for name, seen in ranges.items():
        assert (fewer[name].low >= seen.low - 1e-6).all()
        assert (fewer[name].high <= seen.high + 1e-6).all()
    assert any((fewer[name].high < seen.high - 1e-3).any() for name, seen in ranges.items())


# Images side by side ----------------------------------------------------------------------------


def checkerboard() -> np.ndarray:
    """Return alternating pixels 0 and 255 (1, H, W, 3), more extreme than any calibration image."""
    rows, columns = np.indices((SIDE, SIDE))
    board = (255 * ((rows + columns) % 2)).astype(np.uint8)
    return np.repeat(board[None, :, :, None], 3, axis=3)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_no_neighbor_in_a_batch_changes_a_bit_of_a_vector(
    quantized: onnx.ModelProto, images: np.ndarray, tmp_path: Path, backend: str
) -> None:
    manifest = dataclasses.replace(read_manifest(file_of("dinov2")[0]), precision="int8", parity={})
    seal(quantized, manifest, tmp_path / "m.onnx")
    embedder = Embedder(tmp_path / "m.onnx", backend=backend, threads=1)
    assert embedder.batch_size >= 4
    image, board = images[:1], checkerboard()
    # The file is of class token and gem of both blocks. ONNX Runtime's powers in gem depend on a
    # number's place in memory, in float as in int8.
    width = CONFIGS["dinov2"].width
    classes = [*range(width), *range(2 * width, 3 * width)]
    alone = embedder.infer(image)[0]
    assert np.isfinite(alone).all()
    for before, after in ((0, 1), (1, 0), (1, 2), (3, 0)):
        together = embedder.infer(np.concatenate([*[board] * before, image, *[board] * after]))
        np.testing.assert_array_equal(together[before][classes], alone[classes])
        np.testing.assert_allclose(
            together[before], alone, rtol=0, atol=0 if backend == "openvino" else 1e-7
        )
    assert abs(float(embedder.infer(board)[0] @ alone)) < 0.999
