"""Promises of adopting a graph that normalizes itself: nothing is normalized twice, and vectors are
the plain graph's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from featkit.geometry import Geometry
from featkit.modelfile import read_manifest
from featkit_export.adopt import AdoptOptions, adopt_file
from featkit_export.built_in import find_normalization
from featkit_export.report import ExportReport
from featkit_export.verify import draw_images
from tests.export.published import GEOMETRY, NATIVE, PATCH, build, publish
from tests.sentences import refused

MEAN, STD = np.array(GEOMETRY.mean), np.array(GEOMETRY.std)
# do_rescale and do_normalize false
RAW = dataclasses.replace(GEOMETRY, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
# do_normalize false
RESCALED = dataclasses.replace(GEOMETRY, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def with_prefix(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """The same network behind nodes that normalize: from pixels of 0 .. 255, of 0 .. 1, of bytes,
    or in other ways."""
    graph, source = model.graph, model.graph.input[0].name
    kind = TensorProto.FLOAT
    per_channel = {
        name: value.reshape(1, 3, 1, 1) for name, value in (("mean", MEAN), ("std", STD))
    }
    constants: dict[str, np.ndarray] = {
        "full": np.array(255.0),
        "two": np.array(2.0),
        "one": np.array(1.0),
        **per_channel,
    }
    forms: dict[str, list[tuple[str, tuple[str, ...], dict[str, Any]]]] = {
        "pixels": [("Div", ("full",), {}), ("Sub", ("mean",), {}), ("Div", ("std",), {})],
        "unit": [("Sub", ("mean",), {}), ("Div", ("std",), {})],
        "multiplied": [("Mul", ("scale",), {}), ("Add", ("shift",), {})],
        "bytes": [
            ("Cast", (), {"to": kind}),
            ("Div", ("full",), {}),
            ("Sub", ("mean",), {}),
            ("Div", ("std",), {}),
        ],
        "last": [
            ("Cast", (), {"to": kind}),
            ("Transpose", (), {"perm": [0, 3, 1, 2]}),
            ("Div", ("full",), {}),
            ("Sub", ("mean",), {}),
            ("Div", ("std",), {}),
        ],
        "scale": [("Div", ("full",), {})],
        "norm": [("BatchNormalization", ("ones", "zeros", "mean3", "var3"), {"epsilon": 0.0})],
        "centered": [("Mul", ("two",), {}), ("Sub", ("one",), {})],
        "plain": [],
    }
    steps = forms[form]
    constants |= {
        "scale": 1 / (255 * per_channel["std"]),
        "shift": -per_channel["mean"] / per_channel["std"],
    }
    constants |= {"ones": np.ones(3), "zeros": np.zeros(3), "mean3": MEAN, "var3": STD**2}
    nodes, value = [], source
    for place, (operator, names, attributes) in enumerate(steps):
        given = [value, *(f"prefix/{name}" for name in names)]
        nodes.append(helper.make_node(operator, given, [f"prefix/{place}"], **attributes))
        value = f"prefix/{place}"
    for node in graph.node:
        node.input[:] = [value if name == source else name for name in node.input]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, np.float32), f"prefix/{name}")
        for name, array in constants.items()
        if f"prefix/{name}" in used
    )
    if form in ("bytes", "last"):
        shape: list[str | int] = (
            ["batch", "height", "width", 3] if form == "last" else ["batch", 3, "height", "width"]
        )
        graph.input[0].CopyFrom(helper.make_tensor_value_info(source, TensorProto.UINT8, shape))
    return model


def adopted(folder: Path, form: str, geometry: Geometry, *, extra: str = "") -> ExportReport:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(with_prefix(build(extra=extra), form), folder / "m.onnx")
    return adopt_file(
        folder / "m.onnx",
        folder / "out.onnx",
        AdoptOptions(license="CC0-1.0", geometry=geometry, num_registers=0),
    )


def run(path: Path, images: np.ndarray) -> np.ndarray:
    vectors: np.ndarray = ort.InferenceSession(str(path)).run(["embedding"], {"images": images})[0]
    return vectors


FORMS = ["pixels", "unit", "multiplied", "bytes", "last", "norm"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("told", ["normalized", "raw", "rescaled"])
def test_nothing_is_normalized_twice(tmp_path: Path, form: str, told: str) -> None:
    geometry = {"normalized": GEOMETRY, "raw": RAW, "rescaled": RESCALED}[told]
    adopted(tmp_path / "plain", "plain", GEOMETRY)
    report = adopted(tmp_path / "own", form, geometry)
    images = draw_images(3, height=2 * PATCH, width=3 * PATCH)
    expected = run(tmp_path / "plain" / "out.onnx", images)
    np.testing.assert_allclose(run(tmp_path / "own" / "out.onnx", images), expected, atol=1e-5)
    assert any("normalizes images itself" in note for note in report.remarks)
    recorded = read_manifest(tmp_path / "own" / "out.onnx").geometry
    np.testing.assert_allclose(recorded.mean, GEOMETRY.mean, atol=1e-3)
    np.testing.assert_allclose(recorded.std, GEOMETRY.std, rtol=1e-3)


def test_a_scale_alone_is_made_up_for(tmp_path: Path) -> None:
    adopted(tmp_path / "plain", "plain", GEOMETRY)
    report = adopted(tmp_path / "own", "scale", GEOMETRY)
    images = draw_images(3, height=2 * PATCH, width=3 * PATCH)
    np.testing.assert_allclose(
        run(tmp_path / "own" / "out.onnx", images),
        run(tmp_path / "plain" / "out.onnx", images),
        atol=1e-5,
    )
    assert any("multiplies its input by 0.003922 itself" in note for note in report.remarks)


def test_graph_that_normalizes_gives_the_published_vectors(
    tmp_path: Path,
) -> None:
    made = publish(tmp_path / "p", num_registers=4)
    adopt_file(made.folder, tmp_path / "plain.onnx", AdoptOptions(license="x"))
    file = made.folder / "onnx" / "model.onnx"
    onnx.save(with_prefix(onnx.load(file), "pixels"), file)
    report = adopt_file(made.folder, tmp_path / "own.onnx", AdoptOptions(license="x"))
    images = draw_images(2, height=NATIVE, width=NATIVE)
    np.testing.assert_allclose(
        run(tmp_path / "own.onnx", images), run(tmp_path / "plain.onnx", images), atol=1e-5
    )
    assert any("as in its preprocessing; it is not done twice" in note for note in report.remarks)


def test_a_graph_that_contradicts_its_preprocessing_is_refused(tmp_path: Path) -> None:
    with refused(
        "normalizes images itself", "x · (2, 2, 2) + (-1, -1, -1)", "set do_normalize to false"
    ):
        adopted(tmp_path, "centered", GEOMETRY)
    assert not (tmp_path / "out.onnx").exists()


def test_a_plain_graph_is_found_to_do_nothing() -> None:
    for extra in ("", "quantized", "branch"):
        model = build(extra=extra)
        shape = (1, 3, NATIVE, NATIVE)
        assert (
            find_normalization(model, "pixel_values", kind=TensorProto.FLOAT, shape=shape) is None
        )


def test_first_nodes_that_are_no_normalization_are_left_alone(tmp_path: Path) -> None:
    model = build()
    model.graph.node[0].input[0] = "bent"
    model.graph.node.insert(0, helper.make_node("Tanh", ["pixel_values"], ["bent"]))
    assert (
        find_normalization(
            model, "pixel_values", kind=TensorProto.FLOAT, shape=(1, 3, NATIVE, NATIVE)
        )
        is None
    )
    onnx.save(model, tmp_path / "m.onnx")
    adopt_file(
        tmp_path / "m.onnx",
        tmp_path / "out.onnx",
        AdoptOptions(license="x", geometry=GEOMETRY, num_registers=0),
    )


def test_factor_and_offset_of_each_channel_are_measured() -> None:
    found = find_normalization(
        with_prefix(build(), "multiplied"),
        "pixel_values",
        kind=TensorProto.FLOAT,
        shape=(1, 3, NATIVE, NATIVE),
    )
    assert found is not None
    np.testing.assert_allclose(found.factor, 1 / (255 * STD), rtol=1e-3)
    np.testing.assert_allclose(found.offset, -MEAN / STD, rtol=1e-5)
