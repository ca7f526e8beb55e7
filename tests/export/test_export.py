"""Promises of export: the file is the torch model at every size, says what it is, and is not written when it lies."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from featkit.cli.app import main
from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.modelfile import read_manifest
from featkit_export.export import export_model
from featkit_export.graph import FEATURES, EmbeddingGraph, check_graph, to_onnx
from featkit_export.seal import fingerprint
from featkit_export.verify import MAX_ABS, MIN_COSINE, Parity, ParityError, compare, draw_pictures, require_parity
from featkit_train.weights import load_backbone
from tests.export.backbones import CONFIGS, drawn_backbone, geometry_for, make_run
from tests.sentences import refused


@cache  # tracing a graph takes seconds, and nothing here changes one that it shares
def traced(name: str) -> tuple[EmbeddingGraph, onnx.ModelProto]:
    """A backbone of CONFIGS in torch and as a graph."""
    module = EmbeddingGraph(drawn_backbone(CONFIGS[name]), geometry_for(CONFIGS[name]), feature="cls+mean").eval()
    return module, to_onnx(module)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_equals_torch_at_every_size_and_batch(name: str) -> None:
    config = CONFIGS[name]
    module, model = traced(name)
    cases = compare(module, model, height=4 * config.patch, width=4 * config.patch)
    assert len({(case.height, case.width) for case in cases}) == 3
    assert {case.batch for case in cases} == {1, 3, 8}
    assert all(case.holds for case in cases), cases
    assert sum(node.op_type in ("If", "Loop", "Scan") for node in model.graph.node) == 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def exported(run_folder: Path) -> dict[str, Path]:
    """The run's model file for each feature."""
    files = {feature: run_folder / f"{feature}.onnx" for feature in FEATURES}
    for feature, file in files.items():
        export_model(run_folder, file, feature=feature, name=f"drawn-{feature}")  # type: ignore[arg-type]
    return files


@pytest.mark.parametrize("feature", FEATURES)
def test_an_exported_file_embeds_as_the_backbone_does(run_folder: Path, exported: dict[str, Path], feature: str) -> None:
    backbone, info = load_backbone(run_folder)
    images = draw_pictures(3, height=40, width=56)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (info.geometry.mean, info.geometry.std))
    with torch.no_grad():
        features = backbone((pixels - mean) / std)
    cls = F.normalize(features.class_token, dim=-1)
    pooled = F.normalize(features.patch_tokens.flatten(1, 2).mean(dim=1), dim=-1)
    expected = {"cls": cls, "mean": pooled, "cls+mean": F.normalize(torch.cat([cls, pooled], dim=-1), dim=-1)}[feature]
    embedder = Embedder(exported[feature])
    np.testing.assert_allclose(embedder.infer(images), expected.numpy(), atol=1e-5)
    assert embedder.width == expected.shape[1]


def test_the_manifest_says_what_the_file_is(exported: dict[str, Path]) -> None:
    manifest = read_manifest(exported["cls"])
    assert (manifest.name, manifest.family, manifest.patch, manifest.licence) == ("drawn-cls", "dino", 8, "CC0-1.0")
    assert manifest.parity["min_cosine"] >= 0.99999
    model = onnx.load(exported["cls"])
    assert [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim][:3] == ["N", "H", "W"]
    assert model.opset_import[0].version == manifest.opset


def test_the_fingerprint_is_of_weights_feature_and_geometry_alone(
    run_folder: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    prints = {feature: read_manifest(file).fingerprint for feature, file in exported.items()}
    assert len(set(prints.values())) == 3
    again = export_model(run_folder, tmp_path / "again.onnx", name="another", notes="said later").manifest
    assert again.fingerprint == prints["cls"]
    other = export_model(make_run(tmp_path / "other", seed=1), tmp_path / "other.onnx").manifest
    assert other.fingerprint != prints["cls"]
    taller = dataclasses.replace(again.geometry, resize_to=again.geometry.resize_to + 8)
    assert fingerprint(onnx.load(exported["cls"]), taller) != prints["cls"]
    assert fingerprint(onnx.load(exported["cls"]), again.geometry) == prints["cls"]


def test_a_graph_that_disagrees_is_not_written(
    run_folder: Path,
    exported: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoilt(module: EmbeddingGraph) -> onnx.ModelProto:
        assert module.feature == "cls"
        model = onnx.load(exported["cls"])
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(weight.raw_data, np.float32).copy()
        values[: len(values) // 20] *= 1.05
        weight.raw_data = values.tobytes()
        return model

    monkeypatch.setattr("featkit_export.export.to_onnx", spoilt)
    assert main(["export", str(run_folder), "--out", str(tmp_path / "m.onnx")]) == ParityError.exit_code
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def parity(min_cosine: float, max_abs: float) -> Parity:
    """A comparison with these figures."""
    return Parity(batch=3, height=16, width=24, min_cosine=min_cosine, max_abs=max_abs)


@pytest.mark.parametrize(("min_cosine", "max_abs"), [(1.0, 0.0), (MIN_COSINE, 0.0), (1.0, MAX_ABS), (MIN_COSINE, MAX_ABS)])
def test_parity_holds_up_to_its_bounds_and_the_worst_figures_are_kept(min_cosine: float, max_abs: float) -> None:
    case = parity(min_cosine, max_abs)
    assert case.holds
    assert require_parity([parity(1.0, 0.0), case]) == {"min_cosine": min_cosine, "max_abs": max_abs}


@pytest.mark.parametrize(
    ("min_cosine", "max_abs"),
    [
        (math.nextafter(MIN_COSINE, 0), 0.0),
        (1.0, math.nextafter(MAX_ABS, 1)),
        (-1.0, 0.0),
        (1.0, math.inf),
        (math.nan, 0.0),
        (1.0, math.nan),
    ],
)
def test_parity_does_not_hold_just_beyond_a_bound_or_where_a_figure_is_no_number(min_cosine: float, max_abs: float) -> None:
    case = parity(min_cosine, max_abs)
    assert not case.holds
    for cases in ([case], [parity(1.0, 0.0), case]):
        with refused("batch 3, 16×24", "nothing was written", error=ParityError):
            require_parity(cases)


def test_a_fixed_size_is_refused() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(traced("dino")[1])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    with pytest.raises(ValueError, match="fixed H"):
        check_graph(model)


def test_a_folder_without_a_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no backbone\.safetensors"):
        export_model(tmp_path, tmp_path / "m.onnx")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "backbone.safetensors")
    with pytest.raises(InputError, match="was not written by featkit"):
        export_model(tmp_path, tmp_path / "m.onnx")
    (tmp_path / "backbone.safetensors").write_bytes(b"text")
    with pytest.raises(InputError, match="not a safetensors file"):
        export_model(tmp_path, tmp_path / "m.onnx")
