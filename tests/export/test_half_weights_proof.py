"""Promises of a file with half weights: it was compared with rounded weights strictly, its cost was
measured and is in its manifest, and one that costs too much is not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from featkit.embedder import Embedder
from featkit.modelfile import FORMAT, Manifest, check_weights, read_manifest
from featkit_export import half, half_weights_proof, precision
from featkit_export.adopt import AdoptOptions, adopt_file
from featkit_export.half_proof import MIN_HALF_COSINE, proof_images
from featkit_export.half_weights import PREFIX, with_half_weights
from featkit_export.half_weights_proof import halve_weights
from featkit_export.int8 import quantizable_nodes
from featkit_export.original import load_onnx
from featkit_export.precision import GateError, lower
from featkit_export.request import ExportRequest, export
from featkit_export.seal import seal
from featkit_export.verify import ParityError
from tests.export import published as onnx_files
from tests.export.backbones import file_of, make_run
from tests.images import draw_folder
from tests.model_files import make_model_file
from tests.sentences import refused


@pytest.fixture
def full() -> Path:
    return file_of("dinov2")[0]


def test_the_manifest_has_the_measured_cost(full: Path, tmp_path: Path) -> None:
    manifest, before = halve_weights(full, tmp_path / "h.onnx"), read_manifest(full)
    assert read_manifest(tmp_path / "h.onnx") == manifest
    assert (manifest.precision, manifest.weight_precision) == ("fp32", "fp16")
    assert manifest.fingerprint != before.fingerprint
    assert manifest.proven_equal_to == (before.fingerprint,)
    images = proof_images(before.geometry.height, before.geometry.width)
    first, second = (Embedder(path).infer(images) for path in (full, tmp_path / "h.onnx"))
    cosines = (first.astype(np.float64) * second).sum(axis=1)
    figures = manifest.quantization
    assert figures["least_cosine"] == pytest.approx(cosines.min(), abs=1e-6)
    assert figures["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert 0.9999 < figures["least_cosine"] < figures["mean_cosine"]
    assert not np.array_equal(first, second)
    assert (figures["compared_on"], figures["kept_in_float"]) == (
        "8 drawn and 5 extreme images",
        [],
    )
    own = ("weight_precision", "fingerprint", "proven_equal_to", "quantization", "parity")
    assert dataclasses.replace(manifest, **{name: getattr(before, name) for name in own}) == before
    assert manifest.parity["min_cosine"] <= before.parity["min_cosine"]
    assert manifest.parity["max_abs"] >= before.parity["max_abs"]


def test_a_file_of_large_weights_is_half_as_large(tmp_path: Path) -> None:
    full = make_model_file(tmp_path / "m.onnx", width=512, patch=16)
    halve_weights(full, tmp_path / "h.onnx")
    assert 0.5 <= (tmp_path / "h.onnx").stat().st_size / full.stat().st_size < 0.52


def changed(path: Path, out: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Write the file with another `projection`."""
    model = load_onnx(path)
    for tensor in model.graph.initializer:
        if tensor.name == "projection":
            values = change(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    seal(model, read_manifest(path), out)
    return out


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_weights_out_of_range_stay_float_and_are_named(tmp_path: Path, factor: float) -> None:
    path = make_model_file(tmp_path / "m.onnx", width=64, patch=16)
    changed(path, path, lambda values: values * factor)
    manifest = halve_weights(path, tmp_path / "h.onnx")
    assert manifest.quantization["kept_in_float"] == ["projection"]
    names = {tensor.name for tensor in onnx.load(tmp_path / "h.onnx").graph.initializer}
    assert names == {f"{PREFIX}filters", "projection", "half", "axes"}


def test_weights_past_the_limit_lie_beside_the_file(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = halve_weights(full, tmp_path / "whole" / "m.onnx")
    monkeypatch.setattr(half, "MAX_INLINE_BYTES", 10_000)
    manifest = halve_weights(full, tmp_path / "apart" / "m.onnx")
    assert whole.external is None
    assert manifest.external is not None
    assert manifest.fingerprint == whole.fingerprint
    assert sorted(path.name for path in (tmp_path / "apart").iterdir()) == sorted(
        ["m.onnx", manifest.external.file]
    )
    check_weights(tmp_path / "apart" / "m.onnx", manifest, digest=True)
    again = halve_weights_of_apart(full, tmp_path)
    assert again.fingerprint == whole.fingerprint


def halve_weights_of_apart(full: Path, folder: Path) -> Manifest:
    """Halve the weights of a file in fp32 whose weights are in a second file."""
    draft = folder / "draft"
    draft.mkdir()
    onnx.save(onnx.load(full), draft / "m.onnx", save_as_external_data=True, location="weights")
    model = onnx.load(draft / "m.onnx", load_external_data=False)
    manifest = seal(model, read_manifest(full), folder / "full" / "m.onnx", folder=draft)
    assert manifest.external is not None
    return halve_weights(folder / "full" / "m.onnx", folder / "again" / "m.onnx")


# What is refused ----------------------------------------------------------------------------------


def with_canceling_weights(path: Path) -> Path:
    """Weights near 2,048, where fp16 has steps of 2, minus 2,048 in the next node."""
    make_model_file(path, width=64, patch=16)
    changed(path, path, lambda values: values + 2048)
    model, manifest = load_onnx(path), read_manifest(path)
    index = [node.op_type for node in model.graph.node].index("MatMul")
    product = model.graph.node[index]
    product.output[0] = "lifted"
    model.graph.initializer.append(
        numpy_helper.from_array(np.full((128, 64), 2048, np.float32), "lift")
    )
    model.graph.node.insert(index + 1, helper.make_node("MatMul", ["both", "lift"], ["offset"]))
    model.graph.node.insert(index + 2, helper.make_node("Sub", ["lifted", "offset"], ["projected"]))
    seal(model, manifest, path)
    return path


@pytest.mark.parametrize(
    ("whitened", "advice"),
    [("", "Use the file with its weights in fp32"), ("9 vectors", "keep fewer dimensions")],
)
def test_a_file_that_loses_too_much_is_refused(tmp_path: Path, whitened: str, advice: str) -> None:
    path = with_canceling_weights(tmp_path / "m.onnx")
    seal(load_onnx(path), dataclasses.replace(read_manifest(path), whitened=whitened), path)
    with refused(path, "loses accuracy", f"below the {MIN_HALF_COSINE}", advice, error=GateError):
        halve_weights(path, tmp_path / "h.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_vectors_that_differ_more_are_not_proven_equal(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_weights_proof, "LEAST_COSINE", 1.1)
    assert halve_weights(full, tmp_path / "h.onnx").proven_equal_to == ()


def test_a_graph_that_is_not_the_rounded_one_is_refused(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
        made = with_half_weights(model, names)
        tensor = next(each for each in made.graph.initializer if each.name.startswith(PREFIX))
        values = numpy_helper.to_array(tensor) * np.float16(1.01)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return made

    monkeypatch.setattr(half_weights_proof, "with_half_weights", wrong)
    with refused("differs from its model in", error=ParityError):
        halve_weights(full, tmp_path / "h.onnx")
    assert list(tmp_path.iterdir()) == []


def test_vectors_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = make_model_file(tmp_path / "m.onnx", width=64, patch=16)
    changed(path, path, lambda values: values * np.nan)
    with refused(path, "NaN or infinity even in fp32"):
        halve_weights(path, tmp_path / "h.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_without_large_weights_is_refused(tmp_path: Path) -> None:
    path = make_model_file(tmp_path / "m.onnx", width=16, patch=4)
    with refused(path, "no weight of 4,096 values or more in fp16's range", "use it in fp32"):
        halve_weights(path, tmp_path / "h.onnx")


def test_a_file_with_lower_weights_is_refused(full: Path, tmp_path: Path) -> None:
    halve_weights(full, tmp_path / "h.onnx")
    lower(full, tmp_path / "h16.onnx", precision="fp16")
    for name in ("h.onnx", "h16.onnx"):
        with refused(tmp_path / name, "already has weights in fp16; convert the fp32 file"):
            halve_weights(tmp_path / name, tmp_path / "again.onnx")


# Other ways in and out ----------------------------------------------------------------------------


def test_a_file_with_half_weights_can_be_lowered(full: Path, tmp_path: Path) -> None:
    source = halve_weights(full, tmp_path / "h.onnx")
    manifest = lower(tmp_path / "h.onnx", tmp_path / "h16.onnx", precision="fp16")
    assert (manifest.precision, manifest.weight_precision) == ("fp16", "")
    assert manifest.proven_equal_to == (source.fingerprint,)
    lower(full, tmp_path / "f16.onnx", precision="fp16")
    kinds = [
        [node.op_type for node in onnx.load(tmp_path / name).graph.node]
        for name in ("h16.onnx", "f16.onnx")
    ]
    assert kinds[0] == kinds[1]


def test_int8_calibrates_the_same_products_of_half_weights(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated: list[onnx.ModelProto] = []

    def stop(model: onnx.ModelProto, _batches: object) -> None:
        calibrated.append(model)
        raise GateError("enough.")

    monkeypatch.setattr(precision, "observe_ranges", stop)
    halve_weights(full, tmp_path / "h.onnx")
    photos = draw_folder(tmp_path / "photos", 2)
    with refused("enough", error=GateError):
        lower(tmp_path / "h.onnx", tmp_path / "m8.onnx", precision="int8", images=photos)
    assert quantizable_nodes(calibrated[0]) == quantizable_nodes(load_onnx(full)) != []


def test_files_of_an_older_format_get_the_current_one(full: Path, tmp_path: Path) -> None:
    model = onnx.load(full)
    text = dataclasses.replace(read_manifest(full), format=2).to_json()
    del model.metadata_props[:]
    helper.set_model_props(model, {"featkit": text.replace('"weight_precision": "", ', "")})
    onnx.save(model, tmp_path / "old.onnx")
    assert read_manifest(tmp_path / "old.onnx").format == 2
    assert halve_weights(tmp_path / "old.onnx", tmp_path / "h.onnx").format == FORMAT


def test_a_run_is_whitened_and_halved_at_once(tmp_path: Path) -> None:
    run, photos = make_run(tmp_path / "run"), draw_folder(tmp_path / "photos", 40)
    request = ExportRequest(
        source=str(run),
        out=tmp_path / "h.onnx",
        feature="cls+gem",
        layers=(1, 2),
        outputs=("embedding", "patches"),
        whiten_on=photos,
        dim=24,
        power=0.5,
        half_weights=True,
    )
    report = export(request)
    assert report.compared_with == "torch"
    assert any("whitening was fitted" in remark for remark in report.remarks)
    full = dataclasses.replace(request, out=tmp_path / "f.onnx", half_weights=False)
    in_full = export(full).manifest
    assert (report.manifest.width, report.manifest.whitened) == (24, in_full.whitened)
    assert report.manifest.proven_equal_to == (in_full.fingerprint,)
    by_file = export(
        ExportRequest(source=str(full.out), out=tmp_path / "g.onnx", half_weights=True)
    )
    assert by_file.manifest == report.manifest


def test_a_file_made_elsewhere_can_have_half_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featkit_export.half_weights.MIN_VALUES", 64)
    path = tmp_path / "m.onnx"
    onnx.save(onnx_files.build(), tmp_path / "original.onnx")
    options = AdoptOptions(license="x", geometry=onnx_files.GEOMETRY, num_registers=0)
    adopt_file(tmp_path / "original.onnx", path, options)
    manifest = halve_weights(path, tmp_path / "h.onnx")
    assert manifest.quantization["least_cosine"] > 0.9999
    assert manifest.proven_equal_to == (read_manifest(path).fingerprint,)


def test_half_weights_of_a_lower_precision_are_refused() -> None:
    with refused("--half-weights is for files that compute in fp32, and one in fp16"):
        ExportRequest(source="run", out=Path("m.onnx"), precision="fp16", half_weights=True)
