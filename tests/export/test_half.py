"""Promises of half precision: products in fp16, what loses by it in fp32, and pixels and vectors as
they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from featkit.embedder import Embedder
from featkit.modelfile import OUTPUTS, check_weights, read_manifest
from featkit_export import half
from featkit_export.half import PRODUCTS, to_half
from featkit_export.half_proof import MIN_HALF_COSINE
from featkit_export.original import load_onnx
from featkit_export.precision import lower
from featkit_export.seal import seal
from featkit_export.verify import draw_images
from tests.export.backbones import CONFIGS, file_of
from tests.model_files import make_model_file

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
IN_FLOAT = ("LayerNormalization", "Softmax", "ReduceL2")


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value, by ONNX's own inference."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    typed = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = [*graph.input, *graph.value_info, *graph.output]
    return typed | {value.name: value.type.tensor_type.elem_type for value in values}


def run(model: onnx.ModelProto | Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs, by ONNX Runtime on the processor."""
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(given, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def least_cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Return the least cosine of two sets of unit vectors."""
    return float(np.einsum("nd,nd->n", left, right, dtype=np.float64).min())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of CONFIGS in fp16, with patches and attention."""
    folder = tmp_path_factory.mktemp("half")
    for name in CONFIGS:
        lower(file_of(name)[0], folder / f"{name}.onnx", precision="fp16")
    return {name: folder / f"{name}.onnx" for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_products_are_fp16_and_norms_and_softmax_fp32(written: dict[str, Path], name: str) -> None:
    model = onnx.load(written[name])
    kinds = types_of(model)
    seen = set()
    for node in model.graph.node:
        if node.op_type in (*PRODUCTS, *IN_FLOAT):
            wanted = HALF if node.op_type in PRODUCTS else FLOAT
            # ReduceL2 takes its axes as int64.
            given = [
                kinds[value] for value in node.input if value and kinds[value] != TensorProto.INT64
            ]
            assert {*given, kinds[node.output[0]]} == {wanted}, node.name
            seen.add(node.op_type)
    assert {"MatMul", "Conv", *IN_FLOAT} <= seen


@pytest.mark.parametrize("name", CONFIGS)
def test_the_residual_stream_is_float(written: dict[str, Path], name: str) -> None:
    """Each LayerNormalization after the patches reads a float sum of a block's input and branch."""
    model = onnx.load(written[name])
    kinds, maker = (
        types_of(model),
        {value: node for node in model.graph.node for value in node.output},
    )
    sums = [
        maker[node.input[0]] for node in model.graph.node if node.op_type == "LayerNormalization"
    ]
    assert {node.op_type for node in sums[1:]} == {"Add"}
    assert {
        kinds[value]
        for node in sums
        for value in [*node.input, *node.output]
        if kinds[value] != TensorProto.INT64
    } == {FLOAT}


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_and_outputs_keep_their_types(written: dict[str, Path], name: str) -> None:
    model = onnx.load(written[name])
    onnx.checker.check_model(model, full_check=True)
    graph, before = model.graph, onnx.load(file_of(name)[0]).graph
    assert [value.SerializeToString() for value in (*graph.input, *graph.output)] == [
        value.SerializeToString() for value in (*before.input, *before.output)
    ]
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [value.type.tensor_type.elem_type for value in graph.output] == [FLOAT] * len(OUTPUTS)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_stay_near_the_full_file_at_any_size(written: dict[str, Path], name: str) -> None:
    patch = CONFIGS[name].patch
    for batch, rows, columns in ((1, 4, 4), (3, 2, 7)):
        images = draw_images(batch, height=rows * patch, width=columns * patch, seed=5)
        got, full = run(written[name], images), run(file_of(name)[0], images)
        assert {value.dtype for value in got.values()} == {np.dtype(np.float32)}
        assert {key: value.shape for key, value in got.items()} == {
            key: value.shape for key, value in full.items()
        }
        assert least_cosine(got["embedding"], full["embedding"]) > 0.9999
        assert not np.array_equal(got["embedding"], full["embedding"])
        np.testing.assert_allclose(got["patches"], full["patches"], atol=0.02)
        np.testing.assert_allclose(got["attention"], full["attention"], atol=2e-3)
        np.testing.assert_allclose(np.linalg.norm(got["embedding"], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_manifest_holds_figures_and_the_equal_file(written: dict[str, Path], name: str) -> None:
    manifest, full = read_manifest(written[name]), read_manifest(file_of(name)[0])
    assert manifest.precision == "fp16"
    assert manifest.fingerprint != full.fingerprint
    assert manifest.proven_equal_to == (full.fingerprint,)
    images = draw_images(8, height=full.geometry.height, width=full.geometry.width)
    got, expected = (
        Embedder(path, backend="onnxruntime").infer(images)
        for path in (written[name], file_of(name)[0])
    )
    figures = manifest.quantization
    # Rounded after every node, which the processor's engine, computing between casts in fp32, is
    # not.
    assert MIN_HALF_COSINE < figures["least_cosine"] <= least_cosine(got, expected) + 1e-4
    assert figures["compared_on"] == "8 drawn and 5 extreme images, in true half arithmetic"
    assert figures["kept_in_float"] == []
    own = ("precision", "fingerprint", "proven_equal_to", "quantization", "parity")
    assert dataclasses.replace(manifest, **{field: getattr(full, field) for field in own}) == full


def test_weights_take_half_the_room(written: dict[str, Path]) -> None:
    for name, path in written.items():
        sizes = [
            sum(
                len(tensor.raw_data)
                for tensor in onnx.load(file).graph.initializer
                if len(tensor.dims) > 1
            )
            for file in (path, file_of(name)[0])
        ]
        # positions stay float where they are added to floats
        assert 0.5 <= sizes[0] / sizes[1] < 0.62, name


def test_a_file_of_products_alone_is_half_as_large(tmp_path: Path) -> None:
    full = make_model_file(tmp_path / "m.onnx", width=512, patch=16)
    lower(full, tmp_path / "half.onnx", precision="fp16")
    assert 0.5 <= (tmp_path / "half.onnx").stat().st_size / full.stat().st_size < 0.52


# LayerScale ---------------------------------------------------------------------------------------


def with_tiny_layer_scale(folder: Path) -> Path:
    """The model file of a backbone whose large branches come into a small residual stream by
    factors of 6e-8 to 2e-7.

    LayerScale begins at 1e-5, where a half has 7 of its 11 bits; here it would have 1 or 2.
    """
    path, _ = file_of("dinov2")
    model = load_onnx(path)
    rng = np.random.default_rng(0)
    small, large, factors = 0, 0, 0
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name.endswith("gamma"):
            value = rng.uniform(6e-8, 2e-7, value.shape).astype(np.float32)
            factors += 1
        elif tensor.name in _last_weights(model):
            value = value * np.float32(6e3)
            large += 1
        elif (
            any(part in tensor.name for part in ("class_token", "position", "patch_embed"))
            and value.dtype == np.float32
        ):
            value = value * np.float32(5e-4)
            small += 1
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    assert factors == large == 4
    assert small
    seal(model, read_manifest(path), folder / "tiny.onnx")
    return folder / "tiny.onnx"


def _last_weights(model: onnx.ModelProto) -> set[str]:
    """Weights of the products whose sums with a bias LayerScale multiplies."""
    maker = {value: node for node in model.graph.node for value in node.output}
    scaled = [
        node
        for node in model.graph.node
        if node.op_type == "Mul" and any(name.endswith("gamma") for name in node.input)
    ]
    sums = [maker[name] for node in scaled for name in node.input if name in maker]
    products = [maker[name] for node in sums for name in node.input if name in maker]
    return {node.input[1] for node in products if node.op_type == "MatMul"}


def test_a_tiny_layer_scale_keeps_its_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = with_tiny_layer_scale(tmp_path)
    images = draw_images(4, height=56, width=56)
    expected = run(path, images)["embedding"]
    without = load_onnx(path)  # the branches matter: without them vectors are others
    for tensor in without.graph.initializer:
        if tensor.name.endswith("gamma"):
            tensor.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(tensor), tensor.name))
    assert least_cosine(run(without, images)["embedding"], expected) < 0.95

    lowered = to_half(load_onnx(path), tmp_path).model
    assert least_cosine(run(lowered, images)["embedding"], expected) > 0.9999
    kinds = types_of(lowered)
    scaled = [
        node for node in lowered.graph.node if any(name.endswith("gamma") for name in node.input)
    ]
    assert len(scaled) == 4
    assert {kinds[name] for node in scaled for name in [*node.input, *node.output]} == {FLOAT}

    # and the case shows it: as halves they are too coarse
    monkeypatch.setattr(half, "fits_half", lambda _tensor: True)
    assert (
        least_cosine(run(to_half(load_onnx(path), tmp_path).model, images)["embedding"], expected)
        < 0.999
    )


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ([0.0, 0.0], True),
        ([1.0, -0.5, 1e-9], True),  # one tiny value does not matter
        ([6.2e-5, -6.2e-5], True),
        ([6.0e-5, -6.0e-5], False),
        ([1e-5, 2e-5, 1.0], False),
        ([65504.0, 1.0], True),
        ([65520.0, 1.0], False),
    ],
)
def test_constant_fits_if_fp16_represents_most_of_it(values: list[float], fits: bool) -> None:
    assert half.fits_half(numpy_helper.from_array(np.array(values, np.float32), "c")) is fits


# The ends of a graph ------------------------------------------------------------------------------


def of_nodes(
    *nodes: onnx.NodeProto, outputs: tuple[str, ...], **weights: np.ndarray
) -> onnx.ModelProto:
    """A graph from `x`, float32 (N, 4), to outputs (N, 4)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, FLOAT, ["N", 4]) for name in outputs],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_output_of_a_product_is_cast_even_if_read_by_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    full = of_nodes(
        helper.make_node("MatMul", ["x", "a"], ["first"]),
        helper.make_node("MatMul", ["first", "b"], ["second"]),
        helper.make_node("Softmax", ["first"], ["third"]),
        outputs=("first", "second", "third"),
        a=rng.standard_normal((4, 4)),
        b=rng.standard_normal((4, 4)),
    )
    before = full.SerializeToString(deterministic=True)
    model = to_half(full, tmp_path).model
    assert full.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(model, full_check=True)
    kinds = types_of(model)
    assert [kinds[name] for name in ("x", "first", "second", "third")] == [FLOAT] * 4
    assert {
        kinds[name] for node in model.graph.node if node.op_type == "MatMul" for name in node.input
    } == {HALF}
    x = rng.standard_normal((3, 4)).astype(np.float32)
    sessions = [
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        for each in (full, model)
    ]
    for expected, got in zip(*(session.run(None, {"x": x}) for session in sessions), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=0.02)


def test_weight_used_in_both_precisions_is_stored_in_both(tmp_path: Path) -> None:
    full = of_nodes(
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Add", ["x", "w_row"], ["z"]),
        helper.make_node("Mul", ["y", "w_row"], ["v"]),
        helper.make_node("Add", ["z", "v"], ["out"]),
        outputs=("out",),
        w=np.eye(4),
        w_row=np.array([1.0, 2.0, 3.0, 4.0]),
        unused=np.ones(4),
    )
    model = to_half(full, tmp_path).model
    onnx.checker.check_model(model, full_check=True)
    held = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert held == {"w_half": HALF, "w_row": FLOAT, "w_row_half": HALF}
    kinds = types_of(model)
    assert [
        kinds[node.output[0]] for node in model.graph.node if node.op_type in ("Add", "Mul")
    ] == [FLOAT, HALF, FLOAT]


def test_weights_past_the_limit_lie_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = file_of("dinov2")[0]
    lower(full, tmp_path / "whole" / "m.onnx", precision="fp16")
    monkeypatch.setattr(half, "MAX_INLINE_BYTES", 10_000)
    manifest = lower(full, tmp_path / "apart" / "m.onnx", precision="fp16")
    whole = read_manifest(tmp_path / "whole" / "m.onnx")
    assert whole.external is None
    assert manifest.external is not None
    assert manifest.fingerprint == whole.fingerprint
    assert sorted(path.name for path in (tmp_path / "apart").iterdir()) == sorted(
        ["m.onnx", manifest.external.file]
    )
    check_weights(tmp_path / "apart" / "m.onnx", manifest, digest=True)
    images = draw_images(2, height=56, width=56)
    expected, got = (
        run(tmp_path / place / "m.onnx", images)["embedding"] for place in ("whole", "apart")
    )
    np.testing.assert_array_equal(got, expected)
