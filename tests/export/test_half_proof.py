"""Promises of the proof of half precision: it rounds as fp16 does, what would overflow stays fp32,
what loses is refused."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from featkit.modelfile import Manifest, read_manifest
from featkit_export import half_proof, precision
from featkit_export.adopt import AdoptOptions, adopt_file
from featkit_export.half import LARGEST, MARGIN, exceeding, to_half
from featkit_export.half_proof import EXTREMES, NUM_DRAWN, emulate, observe_peaks, proof_images
from featkit_export.original import load_onnx
from featkit_export.precision import GateError, lower
from featkit_export.seal import seal
from tests.export.backbones import CONFIGS, file_of
from tests.export.published import GEOMETRY, build
from tests.model_files import make_model_file
from tests.sentences import refused

PATCH = CONFIGS["dinov2"].patch


def by_reference(path: Path, images: np.ndarray) -> np.ndarray:
    """The vectors by ONNX's own definition, which computes halves as halves."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        (vectors,) = ReferenceEvaluator(str(path)).run(["embedding"], {"images": images})
    return np.asarray(vectors)


def by_onnxruntime(model: onnx.ModelProto | Path, images: np.ndarray) -> np.ndarray:
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    vectors: np.ndarray = ort.InferenceSession(given).run(["embedding"], {"images": images})[0]
    return vectors


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("nd,nd->n", first, second, dtype=np.float64)
    return found


@pytest.fixture
def images() -> np.ndarray:
    return proof_images(2 * PATCH, 3 * PATCH)[[0, 8, 10]]


# Emulation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_emulated_graph_gives_what_the_reference_gives(name: str, tmp_path: Path) -> None:
    full = load_onnx(file_of(name)[0])
    lowered = to_half(full, tmp_path).model
    onnx.save(lowered, tmp_path / "half.onnx")
    patch = CONFIGS[name].patch
    images = proof_images(2 * patch, 3 * patch)[[0, 8, 10]]
    emulated = emulate(lowered, tmp_path).model
    onnx.checker.check_model(emulated, full_check=True)
    assert {tensor.data_type for tensor in emulated.graph.initializer} <= {
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    ours, theirs = by_onnxruntime(emulated, images), by_reference(tmp_path / "half.onnx", images)
    full_vectors = by_onnxruntime(full, images)
    assert cosines(ours, theirs).min() > 0.99999
    assert np.abs(ours - full_vectors).max() > 1e-5  # so rounding shows


def of_halves(*values: float) -> tuple[onnx.ModelProto, np.ndarray]:
    """`embedding` = (images · values[0]) · values[1], in fp16 throughout, of an image of one
    pixel; and that image."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["x", "first"], ["y"]),
        helper.make_node("Mul", ["y", "second"], ["z"]),
        helper.make_node("Cast", ["z"], ["embedding"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "halves",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(np.array(value, np.float16), name)
            for name, value in zip(("first", "second"), values, strict=True)
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, np.array([[1, 3, 255]], np.uint8)


@pytest.mark.parametrize(
    "values", [(0.1, 0.3), (1000.0, 1e-3), (1e-4, 1e-4), (1.0009765625, 1.0009765625)]
)
def test_values_round_overflow_and_vanish_as_in_fp16(
    tmp_path: Path, values: tuple[float, float]
) -> None:
    model, images = of_halves(*values)
    with np.errstate(all="ignore"):
        expected = (images.astype(np.float16) * np.float16(values[0])) * np.float16(values[1])
    np.testing.assert_array_equal(
        by_onnxruntime(emulate(model, tmp_path).model, images), expected.astype(np.float32)
    )


def test_the_processor_alone_hides_an_overflow(tmp_path: Path) -> None:
    model, images = of_halves(1000.0, 1e-3)
    # if this fails, onnxruntime computes halves and needs no emulation
    assert np.isfinite(by_onnxruntime(model, images)).all()
    assert np.isinf(by_onnxruntime(emulate(model, tmp_path).model, images)).any()


# Peaks --------------------------------------------------------------------------------------------


def test_peaks_are_the_largest_magnitudes_over_all_images(tmp_path: Path) -> None:
    model = load_onnx(make_model_file(tmp_path / "m.onnx", width=8))
    images = proof_images(32, 32)
    peaks = observe_peaks(model, images, tmp_path)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    normalized = (images.astype(np.float64) - 127.5) / 127.5
    cut = normalized.reshape(len(images), 4, 8, 4, 8, 3)
    patches = np.einsum("nhiwjc,dcij->ndhw", cut, weights["filters"].astype(np.float64))
    assert peaks["normalized"] == pytest.approx(np.abs(normalized).max())
    assert peaks["patches"] == pytest.approx(np.abs(patches).max(), rel=1e-5)
    assert peaks["projection"] == np.abs(weights["projection"]).max()
    assert "axes" not in peaks


def test_the_proofs_images_are_drawn_and_extreme() -> None:
    images = proof_images(28, 42)
    assert images.shape == (NUM_DRAWN + len(EXTREMES), 28, 42, 3)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    assert {0, 255} == set(np.unique(images[NUM_DRAWN:]))


# What would overflow ------------------------------------------------------------------------------


def weight_of(model: onnx.ModelProto, place: int, kind: str = "MatMul") -> str:
    """The weight of the place-th product by a weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    name: str = [
        node.input[1]
        for node in model.graph.node
        if node.op_type == kind and node.input[1] in weights
    ][place]
    return name


def scaled(model: onnx.ModelProto, name: str, factor: float) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name)
            )


def loud_product(model: onnx.ModelProto) -> None:
    """The queries and keys are large, and their products past everything."""
    scaled(model, weight_of(model, 0), 3e3)


def loud_weights(model: onnx.ModelProto) -> None:
    scaled(model, weight_of(model, 2), 1e6)


def loud_hidden_channel(model: onnx.ModelProto) -> None:
    """One hidden channel of 200,000, whose effect on the output is small."""
    (bias,) = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name.endswith("blocks.0.mlp.fc1.bias")
    ]
    values = numpy_helper.to_array(bias).copy()
    values[0] = 2e5
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    (name,) = [weight_of(model, 3)]
    for tensor in model.graph.initializer:
        if tensor.name == name:
            weights = numpy_helper.to_array(tensor).copy()
            assert weights.shape[0] == CONFIGS["dinov2"].mlp_width
            weights[0] *= 1e-6
            tensor.CopyFrom(numpy_helper.from_array(weights, name))


def loud_patches(model: onnx.ModelProto) -> None:
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    scaled(model, conv.input[1], 1e5)


@pytest.mark.parametrize("spoil", [loud_product, loud_weights, loud_hidden_channel, loud_patches])
def test_what_would_overflow_stays_in_float_and_is_named(
    tmp_path: Path, images: np.ndarray, spoil: Callable[[onnx.ModelProto], None]
) -> None:
    path, _ = file_of("dinov2")
    model = load_onnx(path)
    spoil(model)
    seal(model, read_manifest(path), tmp_path / "m.onnx")
    naive = to_half(model, tmp_path).model
    onnx.save(naive, tmp_path / "naive.onnx")
    expected = by_onnxruntime(tmp_path / "m.onnx", images)
    # so it matters
    assert not cosines(by_reference(tmp_path / "naive.onnx", images), expected).min() > 0.999

    manifest = lower(tmp_path / "m.onnx", tmp_path / "h.onnx", precision="fp16")
    assert cosines(by_reference(tmp_path / "h.onnx", images), expected).min() > 0.999
    assert manifest.quantization["least_cosine"] > 0.999
    kept = manifest.quantization["kept_in_float"]
    assert kept
    assert {"loud_product": "node_matmul", "loud_weights": "blocks.0.mlp.fc1"}.get(
        spoil.__name__, kept[0]
    ) in kept
    written = onnx.load(tmp_path / "h.onnx")
    floats = [
        n
        for n in written.graph.node
        if n.op_type in ("MatMul", "Conv") and not n.input[1].endswith("_half")
    ]
    assert len(floats) >= len(kept)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_node_stays_in_float_from_a_quarter_of_the_largest_on() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert exceeding(node, {"x": LARGEST / MARGIN, "w": 1.0, "y": 2.0}) == 0
    for name in ("x", "w", "y"):
        assert exceeding(node, {name: LARGEST / MARGIN + 1}) == LARGEST / MARGIN + 1


def test_a_file_whose_vectors_are_no_numbers_is_refused(tmp_path: Path) -> None:
    path, _ = file_of("dinov2")
    model = load_onnx(path)
    scaled(model, weight_of(model, 0), np.inf)
    seal(model, read_manifest(path), tmp_path / "m.onnx")
    with refused(tmp_path / "m.onnx", "NaN or infinity even in fp32"):
        lower(tmp_path / "m.onnx", tmp_path / "h.onnx", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("factor", [1.0, 3e4])
def test_fp16_file_is_adopted_only_if_it_holds_in_true_fp16(tmp_path: Path, factor: float) -> None:
    model = build(kind=np.float16)
    last = model.graph.node.pop()
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["mixed", "factor"], ["loud"]),
            helper.make_node("Div", ["loud", "factor"], ["quiet"]),
            helper.make_node("Identity", ["quiet"], list(last.output)),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float16), "factor"))
    onnx.save(model, tmp_path / "m.onnx")
    options: dict[str, Any] = {"license": "x", "geometry": GEOMETRY, "num_registers": 0}
    if factor == 1:
        report = adopt_file(tmp_path / "m.onnx", tmp_path / "out.onnx", AdoptOptions(**options))
        assert any("In true half arithmetic the least cosine" in note for note in report.remarks)
        return
    with refused(
        tmp_path / "m.onnx",
        "in true half arithmetic",
        "values first exceed fp16's 65,504 at loud",
        "Use the file in fp32",
    ):
        adopt_file(tmp_path / "m.onnx", tmp_path / "out.onnx", AdoptOptions(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


# What loses ---------------------------------------------------------------------------------------


def test_file_that_loses_too_much_is_refused_by_layer(tmp_path: Path) -> None:
    """Numbers near 8,000 with differences of 1, which is less than the step of a half there."""
    path = make_model_file(tmp_path / "m.onnx", width=16)
    model, manifest = load_onnx(path), read_manifest(path)
    (product,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    product.op_type, product.output[0] = "Gemm", "lifted"
    product.input.append("eight_thousand")
    model.graph.initializer.append(
        numpy_helper.from_array(np.full(16, 8000, np.float32), "eight_thousand")
    )
    scaled(model, "projection", 0.03)
    place = [node.op_type for node in model.graph.node].index("LpNormalization")
    model.graph.node.insert(
        place, helper.make_node("Sub", ["lifted", "eight_thousand"], ["projected"])
    )
    seal(model, dataclasses.replace(manifest, name="lifted"), path)
    with refused(
        path,
        "loses accuracy in fp16",
        "below the 0.999 required",
        "at projection; fp16 reaches 65,504",
        error=GateError,
    ):
        lower(path, tmp_path / "h.onnx", precision="fp16")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_the_gate_sees_vectors_that_are_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = file_of("dinov2")
    calls = iter([1.0, np.nan])
    monkeypatch.setattr(
        precision,
        "embed_each",
        lambda session, images: half_proof.embed_each(session, images) * next(calls),
    )
    with refused(path, "some vectors are NaN or infinite", error=GateError):
        lower(path, tmp_path / "h.onnx", precision="fp16")
