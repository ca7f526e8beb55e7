"""Promises of sealing: the fingerprint covers exactly what determines a vector, and external
weights cannot be confused.

Weights beyond protobuf's limit of 2 GB go into a second file. Here the limit is low, so that small
files have one, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from featkit.embedder import Embedder
from featkit.modelfile import ExternalWeights, copy_model_file, read_manifest
from featkit.models import default_model_path
from featkit_export.export import export_backbone
from featkit_export.graph import EmbeddingGraph, trace
from featkit_export.recipe import Recipe
from featkit_export.report import ExportReport
from featkit_export.seal import fingerprint
from featkit_export.traced import Traced
from featkit_export.verify import ParityError, draw_images
from tests.export.backbones import CONFIGS, drawn_backbone, file_of, info_for
from tests.sentences import refused

NAME = "dinov2_reg_swiglu"
RECIPE = Recipe(feature="cls")


def export_beside(out: Path, *, seed: int = 0) -> ExportReport:
    """Export a drawn backbone with its weights in a second file."""
    config = CONFIGS[NAME]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featkit_export.graph.MAX_INLINE_BYTES", 10_000)
        return export_backbone(
            drawn_backbone(config, seed=seed), info_for(config, family=NAME), out, recipe=RECIPE
        )


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with external weights, alone in its folder; do not change it."""
    out = tmp_path_factory.mktemp("external") / "m.onnx"
    export_beside(out)
    return out


def external_of(model: Path) -> ExternalWeights:
    external = read_manifest(model).external
    assert external is not None
    return external


def copied(model: Path, folder: Path) -> Path:
    """Both files in another folder."""
    copy_model_file(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_large_weights_are_one_file_with_a_sum_in_the_manifest(
    beside: Path,
) -> None:
    external = external_of(beside)
    weights = beside.parent / external.file
    assert sorted(path.name for path in beside.parent.iterdir()) == sorted(
        [beside.name, external.file]
    )
    assert external.file == f"{read_manifest(beside).fingerprint[:16]}.weights"
    assert external.num_bytes == weights.stat().st_size > 100_000
    assert external.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert beside.stat().st_size < 60_000
    outside = [
        tensor
        for tensor in onnx.load(beside, load_external_data=False).graph.initializer
        if external_data_helper.uses_external_data(tensor)
    ]
    assert {external_data_helper.ExternalDataInfo(tensor).location for tensor in outside} == {
        external.file
    }


def test_external_weights_change_no_fingerprint_or_vector(beside: Path) -> None:
    inline, report = file_of(NAME, RECIPE)
    assert report.manifest.external is None
    assert read_manifest(beside).fingerprint == report.manifest.fingerprint
    images = draw_images(3, height=70, width=42)
    np.testing.assert_allclose(
        Embedder(beside).infer(images), Embedder(inline).infer(images), rtol=0, atol=1e-7
    )


def test_the_fingerprint_of_weights_beside_is_of_their_numbers(
    beside: Path, tmp_path: Path
) -> None:
    geometry = read_manifest(beside).geometry
    model = copied(beside, tmp_path)
    proto = onnx.load(model, load_external_data=False)
    assert fingerprint(proto, geometry, folder=tmp_path) == read_manifest(beside).fingerprint
    weights = tmp_path / external_of(model).file
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    weights.write_bytes(changed)
    assert fingerprint(proto, geometry, folder=tmp_path) != read_manifest(beside).fingerprint


def test_a_copy_takes_the_weights_along_and_works(beside: Path, tmp_path: Path) -> None:
    model = copied(beside, tmp_path / "there" / "too")
    assert (model.parent / external_of(beside).file).read_bytes() == (
        beside.parent / external_of(beside).file
    ).read_bytes()
    images = draw_images(2, height=56, width=56)
    np.testing.assert_array_equal(Embedder(model).infer(images), Embedder(beside).infer(images))


@pytest.mark.parametrize("harm", ["missing", "short", "damaged"])
def test_weights_that_are_not_those_of_the_file_are_refused(
    beside: Path, tmp_path: Path, harm: str
) -> None:
    model = copied(beside, tmp_path / "there")
    external = external_of(model)
    weights = model.parent / external.file
    whole = weights.read_bytes()
    if harm == "missing":
        weights.unlink()
    else:
        weights.write_bytes(whole[:-1] if harm == "short" else bytes([whole[0] ^ 1]) + whole[1:])
    words = {
        "missing": "is missing",
        "short": f"have {external.num_bytes:,}",
        "damaged": "is damaged",
    }
    with refused(external.file, words[harm]):
        copy_model_file(model, tmp_path / "again" / "m.onnx")
    assert not (tmp_path / "again" / "m.onnx").exists()
    # a sum over gigabytes is taken where they are copied, not at every opening
    if harm != "damaged":
        with refused(external.file):
            Embedder(model)


def test_an_older_file_beside_keeps_its_own_weights(beside: Path, tmp_path: Path) -> None:
    model = copied(beside, tmp_path)
    images = draw_images(2, height=56, width=56)
    before = Embedder(model).infer(images)
    other = tmp_path / "other.onnx"
    export_beside(other, seed=1)
    assert external_of(other).file != external_of(model).file
    np.testing.assert_array_equal(Embedder(model).infer(images), before)
    assert np.abs(Embedder(other).infer(images) - before).max() > 0.01
    assert len(list(tmp_path.iterdir())) == 4
    # Written again under the first one's name, the file names its new weights.
    copy_model_file(other, model)
    np.testing.assert_array_equal(Embedder(model).infer(images), Embedder(other).infer(images))


def test_failed_export_with_external_weights_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced_in: list[Path] = []

    def spoilt(
        module: EmbeddingGraph, folder: Path, *, size: tuple[int, int] | None = None
    ) -> Traced:
        traced = trace(module, folder, size=size)
        assert traced.path is not None
        (weights,) = [path for path in folder.iterdir() if path != traced.path]
        numbers = np.fromfile(weights, np.float32)
        numbers[:: len(numbers) // 400] += 1
        numbers.tofile(weights)
        traced_in.append(folder)
        return traced

    monkeypatch.setattr("featkit_export.export.trace", spoilt)
    with refused("nothing was written", error=ParityError):
        export_beside(tmp_path / "m.onnx")
    assert traced_in
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_knows_no_names_notes_or_dates() -> None:
    out, report = file_of(NAME, RECIPE)
    geometry, model = report.manifest.geometry, onnx.load(out)
    assert fingerprint(model, geometry) == report.manifest.fingerprint
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.producer_name, other.producer_version, other.doc_string, other.model_version = (
        "another",
        "9",
        "said",
        3,
    )
    del other.metadata_props[:]
    new = {
        name: f"n{number}"
        for number, name in enumerate(sorted({tensor.name for tensor in other.graph.initializer}))
    }
    for tensor in other.graph.initializer:
        tensor.name, tensor.doc_string = new[tensor.name], "a weight"
    for node in other.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.name, node.doc_string = f"{node.name}_", "a node"
    onnx.checker.check_model(other)
    assert fingerprint(other, geometry) == report.manifest.fingerprint


def test_fingerprint_covers_graph_weights_and_geometry() -> None:
    out, report = file_of(NAME, RECIPE)
    geometry, model = report.manifest.geometry, onnx.load(out)
    found = {
        report.manifest.fingerprint,
        fingerprint(model, dataclasses.replace(geometry, resize_to=geometry.resize_to + 8)),
    }

    def changed() -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy

    weight = changed()
    large = max(weight.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    large.raw_data = large.raw_data[:-1] + bytes([large.raw_data[-1] ^ 1])
    opset = changed()
    opset.opset_import[0].version += 1
    operator = changed()
    next(node for node in operator.graph.node if node.op_type == "Softmax").op_type = "LogSoftmax"
    attribute = changed()
    next(node for node in attribute.graph.node if node.op_type == "LayerNormalization").attribute[
        0
    ].f = 1e-5
    wire = changed()
    node = next(node for node in wire.graph.node if node.op_type == "Div")
    node.input[:] = reversed(node.input)
    for other in (weight, opset, operator, attribute, wire):
        found.add(fingerprint(other, geometry))
    assert len(found) == 7


def test_shipped_model_has_the_fingerprint_computed_now() -> None:
    path = default_model_path()
    assert path.name == "featkit-tiny.onnx"
    manifest = read_manifest(path)
    assert fingerprint(onnx.load(path), manifest.geometry) == manifest.fingerprint
