"""The command `featkit export`: a run becomes one file, with the comparison that proves it; what is no run is refused."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import onnx
import pytest

from featkit.cli.app import main
from featkit.embedder import Embedder
from featkit.modelfile import read_manifest
from tests.export.backbones import make_run
from tests.pictures import draw_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` and its model file `out/m.onnx`."""
    folder = tmp_path_factory.mktemp("export")
    run = make_run(folder / "run")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["export", str(run), "--out", str(folder / "out" / "m.onnx"), "--name", "mine"]) == 0
    (folder / "said.txt").write_text(said.getvalue())
    return folder


def test_export_writes_one_file_prints_the_comparison_and_what_comes_next(folder: Path) -> None:
    (out,) = (folder / "out").iterdir()
    manifest = read_manifest(out)
    lines = [line.rstrip() for line in (folder / "said.txt").read_text().splitlines()]
    assert lines[0] == "Compared with torch"
    assert re.split(r"\s{2,}", lines[1]) == ["pictures", "least cosine", "largest difference"]
    # One picture at the native 32×32, three at a smaller and at a rectangular size, eight at the smaller.
    cases = [re.split(r"\s{2,}", line) for line in lines[2:6]]
    assert [case[0] for case in cases] == ["1 × 32×32", "3 × 16×16", "3 × 48×72", "8 × 16×16"]
    assert all(float(cosine) >= 0.99999 and float(largest) <= 1e-4 for _, cosine, largest in cases)
    size = out.stat().st_size / 1e6
    assert lines[6:] == [
        f"{out}: mine, 48 numbers a picture, {size:.1f} MB, fingerprint {manifest.fingerprint[:12]}.",
        f"Next: featkit embed pictures/ --model {out} --out emb/",
    ]
    vectors = Embedder(out).embed([draw_picture(0), draw_picture(1)])
    assert vectors.shape == (2, 48)
    assert abs(float(vectors[0] @ vectors[1])) < 0.999


def test_export_as_json_holds_every_figure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Tracing takes seconds; the graph is that of the file already written, and is compared anew.
    monkeypatch.setattr("featkit_export.export.to_onnx", lambda _module: onnx.load(folder / "out" / "m.onnx"))
    out = tmp_path / "m.onnx"
    assert main(["export", str(folder / "run" / "backbone.safetensors"), "--out", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    manifest = read_manifest(out)
    assert (figures["out"], figures["fingerprint"]) == (str(out), manifest.fingerprint)
    assert (manifest.name, manifest.feature, manifest.width) == ("drawn", "cls", 48)
    assert manifest.fingerprint == read_manifest(folder / "out" / "m.onnx").fingerprint  # which knows no names
    assert len(figures["comparisons"]) == 4
    assert min(case["min_cosine"] for case in figures["comparisons"]) == manifest.parity["min_cosine"]
    assert max(case["max_abs"] for case in figures["comparisons"]) == manifest.parity["max_abs"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "none has no backbone.safetensors"),
        ("pictures", "pictures has no backbone.safetensors; name a folder that `featkit train` has written"),
        ("pictures/a.jpg", "a.jpg is not a safetensors file"),
    ],
)
def test_what_is_no_run_ends_with_2_and_one_sentence(
    tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    draw_picture(0).save(tmp_path / "pictures" / "a.jpg")
    assert main(["export", str(tmp_path / name), "--out", str(tmp_path / "m.onnx")]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not (tmp_path / "m.onnx").exists()


def test_an_unknown_feature_is_refused_with_those_there_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(folder / "run"), "--out", str(tmp_path / "m.onnx"), "--feature", "max"]) == 2
    said = capsys.readouterr()
    assert all(feature in said.out + said.err for feature in ("cls", "mean", "cls+mean"))
