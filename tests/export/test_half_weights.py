"""Promises of weights stored in fp16: rounded as IEEE 754 says, and nothing else changes, in no
engine."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from featkit.backends import Run, is_installed, open_backend
from featkit.backends.no_telemetry import no_telemetry
from featkit.evaluate.speed import multiply_adds
from featkit_export.export import export_backbone
from featkit_export.half_weights import (
    MAX_ROUNDING,
    MIN_VALUES,
    PREFIX,
    large_weights,
    rounding,
    with_float_weights,
    with_half_weights,
    with_rounded_weights,
)
from featkit_export.half_weights_proof import halve_weights
from featkit_export.recipe import Recipe
from featkit_export.verify import draw_images
from featkit_train.networks.classifier import build_backbone
from tests.export.backbones import CONFIGS, file_of
from tests.export.test_stages import INFO
from tests.train.networks.networks import config, drawn

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
NAMES = ("dino", "dinov2_reg_swiglu", "convnet")
PATCHES = {"convnet": 8, **{name: CONFIGS[name].patch for name in NAMES if name in CONFIGS}}
SMALLEST_NORMAL, LARGEST = 2.0**-14, 65504.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Two transformers and featkit's convnet with drawn weights: in fp32, and with half weights."""
    folder = tmp_path_factory.mktemp("half-weights")
    fulls = {name: file_of(name)[0] for name in NAMES if name in CONFIGS}
    network = config("featkit:convnet", stem=8, widths=[16, 32], blocks=[1, 2])
    recipe = Recipe(feature="gem", layers=(1, 2), outputs=("embedding", "patches"))
    fulls["convnet"] = folder / "full-convnet.onnx"
    export_backbone(drawn(build_backbone(network)), INFO, fulls["convnet"], recipe=recipe)
    for name, full in fulls.items():
        halve_weights(full, folder / f"{name}.onnx")
    return {name: (full, folder / f"{name}.onnx") for name, full in fulls.items()}


def rounded_one_by_one(values: np.ndarray) -> bytes:
    """Return the bytes of the values in half precision, by Python's own rounding."""
    return b"".join(struct.pack("<e", value) for value in values.ravel().tolist())


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def sizes(name: str) -> Iterator[np.ndarray]:
    """Images of several batches, heights and widths."""
    for batch, rows, columns in ((1, 4, 4), (3, 2, 7), (5, 3, 1)):
        yield draw_images(
            batch, height=rows * PATCHES[name], width=columns * PATCHES[name], seed=batch
        )


@pytest.mark.parametrize("name", NAMES)
def test_large_weights_are_rounded_and_others_untouched(
    files: dict[str, tuple[Path, Path]], name: str
) -> None:
    full, half = (onnx.load(path) for path in files[name])
    before, after = weights_of(full), weights_of(half)
    halved = {key.removeprefix(PREFIX) for key, value in after.items() if value.data_type == HALF}
    assert len(halved) >= 3
    for key, tensor in before.items():
        values = numpy_helper.to_array(tensor)
        is_large = values.dtype == np.float32 and values.size >= MIN_VALUES
        assert (key in halved) == is_large, key
        if is_large:
            assert after[PREFIX + key].raw_data == rounded_one_by_one(values)
        else:
            assert after[key] == tensor
    casts = half.graph.node[: len(halved)]
    assert {(node.op_type, *node.input, *node.output) for node in casts} == {
        ("Cast", PREFIX + key, key) for key in halved
    }
    assert list(half.graph.node)[len(halved) :] == list(full.graph.node)
    assert (list(half.graph.input), list(half.graph.output)) == (
        list(full.graph.input),
        list(full.graph.output),
    )
    onnx.checker.check_model(half, full_check=True)


def with_weights_rounded_here(path: Path, out: Path) -> Path:
    """Write the graph with the float32 values that the large weights have in half precision."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= MIN_VALUES:
            halves = struct.unpack(f"<{values.size}e", rounded_one_by_one(values))
            rounded = np.array(halves, np.float32).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_those_of_rounded_weights(
    files: dict[str, tuple[Path, Path]], name: str, engine: str, tmp_path: Path
) -> None:
    if not is_installed(engine):
        pytest.skip(f"{engine} is not installed")
    full, half = files[name]
    reference = with_weights_rounded_here(full, tmp_path / "rounded.onnx")
    backends = [open_backend(path, Run(engine, "fp32"), threads=1) for path in (reference, half)]
    outputs = [value.name for value in onnx.load(half).graph.output]
    for images in sizes(name):
        expected, got = (backend.run(images, outputs=outputs) for backend in backends)
        for output in outputs:
            np.testing.assert_array_equal(got[output], expected[output])


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_runs_the_same_graph_without_casts(
    files: dict[str, tuple[Path, Path]], name: str, tmp_path: Path
) -> None:
    kinds = []
    for index, path in enumerate(files[name]):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / f"{index}.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
        assert HALF not in {tensor.data_type for tensor in graph.initializer}
        kinds.append(Counter(node.op_type for node in graph.node))
    assert kinds[0] == kinds[1]


@pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_openvino_runs_the_same_graph_without_casts(
    files: dict[str, tuple[Path, Path]], name: str
) -> None:
    with no_telemetry():
        import openvino as ov

    def executed(path: Path, precision: str) -> Counter[str]:
        compiled = ov.Core().compile_model(
            str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
        )
        nodes = compiled.get_runtime_model().get_ordered_ops()
        return Counter(str(node.get_rt_info()["layerType"].value) for node in nodes)

    for precision in ("f32", "bf16"):
        full, half = (executed(path, precision) for path in files[name])
        assert full == half
    assert multiply_adds(files[name][0]) == multiply_adds(files[name][1])


@pytest.mark.parametrize("name", NAMES)
def test_vectors_do_not_depend_on_the_batch(files: dict[str, tuple[Path, Path]], name: str) -> None:
    backend = open_backend(files[name][1], Run("onnxruntime", "fp32"), threads=1)
    side = 4 * PATCHES[name]
    images = draw_images(5, height=side, width=side)
    together = backend.run(images)["embedding"]
    alone = np.concatenate([backend.run(image[None])["embedding"] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)


# Which weights ------------------------------------------------------------------------------------


def graph_of(
    weights: dict[str, np.ndarray], nodes: list[onnx.NodeProto], **inputs: np.ndarray
) -> onnx.ModelProto:
    """A graph from x (N, 64) to y; `inputs` are weights that a caller may replace."""
    values = {**weights, **inputs}
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info("x", FLOAT, ["N", 64]),
            *(
                helper.make_tensor_value_info(key, FLOAT, each.shape)
                for key, each in inputs.items()
            ),
        ],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(value, key) for key, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def drawn_values(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return values


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["y"], {"x": x})[0]
    return result


def test_vectors_small_and_open_weights_are_not_large() -> None:
    weights = {
        "matrix": drawn_values(64, 64),
        "filters": drawn_values(16, 16, 4, 4),
        "small": drawn_values(63, 64),
        "bias": drawn_values(5000),
        "variance": drawn_values(1, 5000, 1, 1),
        "doubles": drawn_values(64, 64, dtype=np.float64),
        "indices": np.zeros((64, 64), np.int64),
        "y": drawn_values(64, 64),
    }
    model = graph_of(weights, [], replaced=drawn_values(64, 64))
    assert [tensor.name for tensor in large_weights(model)] == ["matrix", "filters"]


def test_a_weight_shared_by_two_nodes_is_cast_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["first"]),
        helper.make_node("MatMul", ["first", "w"], ["y"]),
    ]
    model, x = graph_of({"w": drawn_values(64, 64)}, nodes), drawn_values(3, 64)
    half = with_half_weights(model, {"w"})
    assert [node.op_type for node in half.graph.node] == ["Cast", "MatMul", "MatMul"]
    w = drawn_values(64, 64).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(run(half, x), x @ w @ w, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run(half, x), run(with_rounded_weights(model, {"w"}), x))


def test_float_weights_come_back_rounded_and_without_casts() -> None:
    model = onnx.load(file_of("dino")[0])
    names = {tensor.name for tensor in large_weights(model)}
    back = with_float_weights(with_half_weights(model, names))
    assert back == with_rounded_weights(model, names) != model
    assert with_float_weights(model) == model


# Rounding -----------------------------------------------------------------------------------------


@given(
    st.lists(
        st.floats(SMALLEST_NORMAL, LARGEST, width=32).flatmap(
            lambda size: st.sampled_from((size, -size, 0.0))
        ),
        min_size=1,
        max_size=30,
    )
)
def test_normal_values_lose_at_most_a_half_of_their_last_bit(values: list[float]) -> None:
    array = np.array(values, np.float32)
    errors = [struct.unpack("<e", struct.pack("<e", value))[0] - value for value in array.tolist()]
    length = math.hypot(*array.tolist())
    expected = math.hypot(*errors) / length if length else 0.0
    assert rounding(array) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert rounding(array) <= MAX_ROUNDING


@pytest.mark.parametrize("size", [1e-5, 1e-7, 1e-9, 1e6, math.inf, math.nan])
def test_other_values_lose_more(size: float) -> None:
    assert not rounding(np.full(8, size, np.float32) * np.float32(1.01)) <= MAX_ROUNDING
