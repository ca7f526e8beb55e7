"""Promises of export: the file is the torch model at every size, says what it is, and is not
written when it lies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from featkit.cli.app import main
from featkit.embedder import Embedder
from featkit.modelfile import OUTPUTS, read_manifest
from featkit_export.graph import EmbeddingGraph
from featkit_export.request import ExportRequest, export
from featkit_export.seal import fingerprint
from featkit_export.traced import Traced
from featkit_export.verify import ParityError, compare, draw_images, open_session
from featkit_train.weights import load_backbone
from tests.export.backbones import (
    ALL_OUTPUTS,
    CONFIGS,
    drawn_backbone,
    file_of,
    geometry_for,
    make_run,
)
from tests.sentences import refused


@pytest.mark.parametrize("name", CONFIGS)
def test_graph_equals_torch_at_every_size_and_batch(name: str) -> None:
    out, report = file_of(name)
    patch = CONFIGS[name].patch
    # A table's own size is where a rule is likeliest to be off.
    large = CONFIGS[name].position_grid if CONFIGS[name].position == "learned" else 6
    cases = [(1, 4, 4), (3, 2, 2), (3, large, large), (3, 6, 9), (8, 2, 2)]
    assert [
        (case.batch, case.height // patch, case.width // patch, case.output)
        for case in report.comparisons
    ] == [(*case, output) for case in cases for output in OUTPUTS]
    assert all(case.holds for case in report.comparisons), report.comparisons
    assert report.remarks == ()
    assert report.fixed_speedup is None
    # Compare the file on disk again, at other sizes.
    module = EmbeddingGraph(
        drawn_backbone(CONFIGS[name]), geometry_for(CONFIGS[name]), ALL_OUTPUTS
    ).eval()
    found = compare(
        module.run, open_session(str(out)), [(2, 7 * patch, 5 * patch), (1, patch, 11 * patch)]
    )
    assert all(case.holds for case in found), found


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def exported(run_folder: Path) -> Path:
    """The run's model file, of its class token and mean."""
    export(
        ExportRequest(
            source=str(run_folder), out=run_folder / "m.onnx", feature="cls+mean", name="mine"
        )
    )
    return run_folder / "m.onnx"


def test_an_exported_file_embeds_as_the_backbone_does(run_folder: Path, exported: Path) -> None:
    backbone, info = load_backbone(run_folder)
    images = draw_images(3, height=40, width=56)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(value).view(1, 3, 1, 1) for value in (info.geometry.mean, info.geometry.std)
    )
    with torch.no_grad():
        features = backbone((pixels - mean) / std)
    cls = F.normalize(features.class_token, dim=-1)
    pooled = F.normalize(features.patch_tokens.flatten(1, 2).mean(dim=1), dim=-1)
    expected = F.normalize(torch.cat([cls, pooled], dim=-1), dim=-1)
    embedder = Embedder(exported)
    np.testing.assert_allclose(embedder.infer(images), expected.numpy(), atol=1e-5)
    assert embedder.width == expected.shape[1] == 96


def test_the_manifest_says_what_the_file_is(run_folder: Path, exported: Path) -> None:
    manifest = read_manifest(exported)
    assert (manifest.name, manifest.family, manifest.patch, manifest.license) == (
        "mine",
        "dino",
        8,
        "CC0-1.0",
    )
    assert (manifest.feature, manifest.layers, manifest.join, manifest.outputs) == (
        "cls+mean",
        (),
        "",
        ("embedding",),
    )
    assert (manifest.external, manifest.fixed_size, manifest.whitened) == (None, None, "")
    assert manifest.parity["min_cosine"] >= 0.99999
    assert 0 < manifest.parity["max_abs"] <= 1e-4
    model = onnx.load(exported)
    assert [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim][:3] == [
        "N",
        "H",
        "W",
    ]
    assert model.opset_import[0].version == manifest.opset
    # Weights without a sum in their origin are summed, so that a whitening knows whose vectors it
    # is for.
    assert len(manifest.origin["sha256"]) == 64
    assert manifest.made_of == f"dino {manifest.origin['sha256']} cls+mean"
    assert "sha256" not in load_backbone(run_folder)[1].origin


def test_fingerprint_depends_on_weights_feature_and_geometry(
    run_folder: Path, exported: Path, tmp_path: Path
) -> None:
    mine = read_manifest(exported).fingerprint
    again = export(
        ExportRequest(
            source=str(run_folder),
            out=tmp_path / "again.onnx",
            feature="cls+mean",
            name="another",
        )
    ).manifest
    assert again.fingerprint == mine
    other = export(
        ExportRequest(
            source=str(make_run(tmp_path / "other", seed=1)),
            out=tmp_path / "other.onnx",
            feature="cls+mean",
        )
    ).manifest
    feature = export(ExportRequest(source=str(run_folder), out=tmp_path / "feature.onnx")).manifest
    assert len({mine, other.fingerprint, feature.fingerprint}) == 3
    taller = dataclasses.replace(again.geometry, resize_to=again.geometry.resize_to + 8)
    assert fingerprint(onnx.load(exported), taller) != mine
    assert fingerprint(onnx.load(exported), again.geometry) == mine


def test_a_graph_that_disagrees_is_not_written(
    run_folder: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def spoilt(
        module: EmbeddingGraph, _folder: Path, *, size: tuple[int, int] | None = None
    ) -> Traced:
        assert (module.recipe.feature, size) == ("cls+mean", None)
        model = onnx.load(exported)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(weight.raw_data, np.float32).copy()
        values[: len(values) // 20] *= 1.05
        weight.raw_data = values.tobytes()
        return Traced(model=model)

    monkeypatch.setattr("featkit_export.export.trace", spoilt)
    command = [
        "export",
        str(run_folder),
        "--out",
        str(tmp_path / "m.onnx"),
        "--feature",
        "cls+mean",
    ]
    assert main(command) == ParityError.exit_code
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_step_is_said_as_it_begins(
    run_folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "featkit_export.export.trace", lambda *_, **__: Traced(model=onnx.load(exported))
    )
    steps: list[str] = []
    out = run_folder / "again.onnx"
    export(ExportRequest(source=str(run_folder), out=out, feature="cls+mean"), on_step=steps.append)
    assert steps == [
        "reading the weights",
        "tracing the graph",
        "comparing it with torch",
        "writing",
    ]
    assert read_manifest(out).fingerprint == read_manifest(exported).fingerprint


def test_what_is_no_run_or_model_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with refused(tmp_path, "config.json"):
        export(ExportRequest(source=str(tmp_path), out=tmp_path / "m.onnx"))
    save_file({"x": torch.zeros(1)}, tmp_path / "backbone.safetensors")
    with refused("was not written by featkit", "no `featkit` entry"):
        export(ExportRequest(source=str(tmp_path), out=tmp_path / "m.onnx"))
    (tmp_path / "backbone.safetensors").write_bytes(b"text")
    with pytest.raises(Exception, match="not a safetensors file"):
        export(ExportRequest(source=str(tmp_path), out=tmp_path / "m.onnx"))
    assert not (tmp_path / "m.onnx").exists()
