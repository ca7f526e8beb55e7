"""The command `featkit export`: a model becomes one file, with the comparison that proves it; what is no model is refused."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from featkit.cli.app import main
from featkit.cli.export import parse_layers, parse_outputs, parse_size
from featkit.embedder import Embedder
from featkit.modelfile import OUTPUTS, read_manifest
from featkit.whitening import Whitening
from featkit_export.graph import Traced
from featkit_train.zoo import PUBLISHED
from tests.commands import is_one_sentence, run_featkit
from tests.export.backbones import make_run
from tests.pictures import draw_picture
from tests.processes import run_python
from tests.sentences import refused

# One picture at the native 32×32; three at a smaller square, the position table's own size and a rectangle; eight smaller.
CASES = ["1 × 32×32", "3 × 16×16", "3 × 48×48", "3 × 48×72", "8 × 16×16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` and its model file `out/m.onnx`."""
    folder = tmp_path_factory.mktemp("export")
    run = make_run(folder / "run")
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as steps:
        assert main(["export", str(run), "--out", str(folder / "out" / "m.onnx"), "--name", "mine"]) == 0
    (folder / "said.txt").write_text(said.getvalue())
    (folder / "steps.txt").write_text(steps.getvalue())
    return folder


def test_export_writes_one_file_prints_the_comparison_and_what_comes_next(folder: Path) -> None:
    (out,) = (folder / "out").iterdir()
    manifest = read_manifest(out)
    lines = [line.rstrip() for line in (folder / "said.txt").read_text().splitlines()]
    assert lines[0] == "Compared with torch"
    assert re.split(r"\s{2,}", lines[1]) == ["pictures", "output", "least cosine", "largest difference"]
    cases = [re.split(r"\s{2,}", line) for line in lines[2:7]]
    assert [case[:2] for case in cases] == [[case, "embedding"] for case in CASES]
    assert all(float(cosine) >= 0.99999 and float(largest) <= 1e-4 for _, _, cosine, largest in cases)
    size = out.stat().st_size / 1e6
    assert lines[7:] == [
        f"{out}: mine, 48 numbers a picture, {size:.1f} MB, licence CC0-1.0, fingerprint {manifest.fingerprint[:12]}.",
        f"Next: featkit embed pictures/ --model {out} --out emb/",
    ]
    vectors = Embedder(out).embed([draw_picture(0), draw_picture(1)])
    assert vectors.shape == (2, 48)
    assert abs(float(vectors[0] @ vectors[1])) < 0.999


def test_export_says_each_step_as_it_begins_and_nothing_of_the_exporters(folder: Path) -> None:
    steps = (folder / "steps.txt").read_text().splitlines()
    assert steps == [
        "reading the weights ...",
        "tracing the graph ...",
        "comparing it with torch ...",
        "writing ...",
    ]


def test_export_as_json_holds_every_figure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Tracing takes seconds; the graph is that of the file already written, and is compared anew.
    monkeypatch.setattr("featkit_export.export.trace", lambda *_, **__: Traced(model=onnx.load(folder / "out" / "m.onnx")))
    out = tmp_path / "m.onnx"
    assert main(["export", str(folder / "run" / "backbone.safetensors"), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    figures = json.loads(said.out)
    manifest = read_manifest(out)
    assert (figures["out"], figures["fingerprint"]) == (str(out), manifest.fingerprint)
    assert (figures["fixed_speedup"], figures["remarks"]) == (None, [])
    assert (manifest.name, manifest.feature, manifest.width) == ("drawn", "cls", 48)
    assert manifest.fingerprint == read_manifest(folder / "out" / "m.onnx").fingerprint  # which knows no names
    assert [f"{case['batch']} × {case['height']}×{case['width']}" for case in figures["comparisons"]] == CASES
    assert min(case["min_cosine"] for case in figures["comparisons"]) == manifest.parity["min_cosine"]
    assert max(case["max_abs"] for case in figures["comparisons"]) == manifest.parity["max_abs"]


def test_every_flag_reaches_the_file_and_one_size_says_how_much_faster_it_is(folder: Path, tmp_path: Path) -> None:
    origin = read_manifest(folder / "out" / "m.onnx").origin
    rng = np.random.default_rng(0)
    Whitening(
        mean=rng.normal(0, 0.1, 96).astype(np.float32),
        components=rng.standard_normal((10, 96)).astype(np.float32),
        num_vectors=500,
        explained=0.5,
        model=f"dino {origin['sha256']} cls+gem of blocks 1, 2 (mean)",
    ).save(tmp_path / "w.npz")
    flags = "--feature cls+gem --layers 1,2 --join mean --outputs attention,patches --size 40x56 --quiet".split()
    out = tmp_path / "m.onnx"
    said = run_featkit("export", folder / "run", "--out", out, "--whiten", tmp_path / "w.npz", *flags)
    assert (said.code, said.error) == (0, "")
    manifest = read_manifest(out)
    assert (manifest.feature, manifest.layers, manifest.join) == ("cls+gem", (1, 2), "mean")
    assert (manifest.outputs, manifest.fixed_size, manifest.width) == (OUTPUTS, (40, 56), 10)
    assert manifest.whitened == "500 vectors, 50.0% of the variance kept"
    assert manifest.geometry.resize == "cover"
    cases = [re.split(r"\s{2,}", line)[:2] for line in said.out.splitlines()[2:11]]
    assert cases == [[f"{batch} × 40×56", output] for batch in (1, 3, 8) for output in OUTPUTS]
    assert re.search(r"^One size only is \d+\.\d\d times as fast as every size, one picture a call\.$", said.out, re.MULTILINE)
    embedder = Embedder(out)
    assert embedder.embed(draw_picture(0)).shape == (1, 10)
    with refused("40×56"):
        embedder.infer(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--size 100", "use 96 or 104 by 96 or 104"),
        ("--size 0", "--size 0 is no size in pixels"),
        ("--layers 3", "has layers 1 to 2, each to be named once, not [3]"),
        ("--layers 1,1", "not [1, 1]"),
        ("--layers last", "--layers last is no list of block numbers"),
        ("--outputs tokens", "--outputs tokens do not exist"),
        ("--whiten none.npz", "none.npz does not exist; make it with `featkit whiten`"),
    ],
)
def test_flags_that_do_not_go_with_the_model_end_with_2_and_one_sentence(
    folder: Path, tmp_path: Path, flags: str, words: str
) -> None:
    said = run_featkit("export", folder / "run", "--out", tmp_path / "m.onnx", "--quiet", *flags.split())
    assert said.code == 2
    assert is_one_sentence(said)
    assert words in said.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "none is neither a published backbone (featkit export --list shows them)"),
        ("dinov2_vits", "near to it: dinov2_vits14"),
        ("pictures", "pictures has neither backbone.safetensors nor config.json"),
        ("pictures/a.jpg", "a.jpg does not say which model it is of"),
    ],
)
def test_what_is_no_model_ends_with_2_and_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "pictures").mkdir()
    draw_picture(0).save(tmp_path / "pictures" / "a.jpg")
    said = run_featkit("export", tmp_path / name if name != "dinov2_vits" else name, "--out", tmp_path / "m.onnx", "--quiet")
    assert said.code == 2
    assert words in said.error
    assert is_one_sentence(said)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("arguments", [[], ["run"], ["--out", "m.onnx"]])
def test_without_a_model_or_a_place_one_sentence_says_how(arguments: list[str]) -> None:
    said = run_featkit("export", *arguments)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "featkit export dinov2_vits14 --out m.onnx" in said.error


def test_an_unknown_feature_is_refused_with_those_there_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(folder / "run"), "--out", str(tmp_path / "m.onnx"), "--feature", "max"]) == 2
    said = capsys.readouterr()
    assert all(feature in said.out + said.err for feature in ("cls", "mean", "gem", "cls+mean", "cls+gem"))


def test_the_list_has_every_published_model_in_a_line_of_its_own() -> None:
    said = run_featkit("export", "--list")
    assert (said.code, said.error) == (0, "")
    lines = said.out.splitlines()
    assert re.split(r"\s{2,}", lines[1].strip()) == [
        "name", "parameters", "width", "patch", "native size", "licence", "weights from",
    ]  # fmt: skip
    for row, line in zip(PUBLISHED.values(), lines[2:-1], strict=True):
        cells = re.split(r"\s{2,}", line.strip())
        assert cells[0] == row.name
        assert float(cells[1].removesuffix(" M").replace(",", "")) == pytest.approx(row.num_parameters / 1e6, abs=0.05)
        assert cells[2:5] == [str(row.width), str(row.patch), "224×224"]
        assert cells[5] == row.licence + (" (gated)" if row.gated else "")
        assert cells[6] == (f"hf.co/{row.hub}" if row.hub else row.url)
    assert lines[-1].startswith("Also: timm:NAME")


def test_the_list_as_json_needs_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys; from featkit.cli.app import main; code = main(['export', '--list', '--json']); "
        "heavy = {'torch', 'timm', 'torchvision', 'onnx', 'onnxruntime', 'faiss'} & set(sys.modules); "
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    status, out, error = run_python(code)
    assert (status, error) == (0, "0 []\n")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == list(PUBLISHED)
    assert set(rows[0]) == {"name", "parameters", "width", "patch", "native_size", "licence", "weights_from"}


@pytest.mark.parametrize(
    ("text", "size"),
    [(None, None), ("224", (224, 224)), ("336x504", (336, 504)), ("336X504", (336, 504)), ("336×504", (336, 504))],
)
def test_a_size_is_a_side_or_height_times_width(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "x", "224x", "x224", "224x0", "-224", "224x224x3", "2e2", "224.0", "a"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with refused(f"--size {text} is no size in pixels; write 224, or 336x504"):
        parse_size(text)


def test_layers_are_numbers_in_the_order_written() -> None:
    assert parse_layers("") == ()
    assert parse_layers("12") == (12,)
    assert parse_layers("9, 12,10,") == (9, 12, 10)
    for text in ("last", "9;10", "9 10", "1.5"):
        with refused(f"--layers {text} is no list of block numbers; write it as 9,10,11,12."):
            parse_layers(text)


def test_outputs_always_have_the_embedding_and_one_order() -> None:
    assert parse_outputs("embedding") == parse_outputs("") == ("embedding",)
    assert parse_outputs("attention") == ("embedding", "attention")
    assert parse_outputs("attention, patches,embedding") == OUTPUTS
    with refused("--outputs tokens, words do not exist; write one or more of embedding,patches,attention."):
        parse_outputs("words,patches,tokens")
