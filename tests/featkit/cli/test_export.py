"""The command `featkit export`: a model becomes one file with the comparison that proves it, and
anything else is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import onnx
import pytest
import torch

from featkit.backends import Run, reference_run
from featkit.cli.app import main
from featkit.cli.export import export, parse_layers, parse_outputs, parse_size, shown
from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem
from featkit.modelfile import OUTPUTS, read_manifest
from featkit.whitening import Whitening
from featkit_export import precision
from featkit_export.request import ExportRequest, is_model_file, is_onnx
from featkit_export.traced import Traced
from featkit_export.verify import draw_images
from featkit_train.networks.classifier import build_backbone
from featkit_train.published.zoo import PUBLISHED
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone
from tests.commands import is_one_sentence, run_featkit
from tests.export import published as onnx_files
from tests.export.backbones import CONFIGS as VITS
from tests.export.backbones import geometry_for, make_run
from tests.images import draw_folder, draw_image
from tests.processes import run_python
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.networks.networks import CONFIGS, drawn

# One image at the native 32×32; three at a smaller square, the position table's own size and a
# rectangle; eight smaller.
CASES = ["1 × 32×32", "3 × 16×16", "3 × 48×48", "3 × 48×72", "8 × 16×16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` and its model file `out/m.onnx`."""
    folder = tmp_path_factory.mktemp("export")
    run = make_run(folder / "run")
    with (
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.redirect_stderr(io.StringIO()) as steps,
    ):
        assert (
            main(["export", str(run), "--out", str(folder / "out" / "m.onnx"), "--name", "mine"])
            == 0
        )
    (folder / "said.txt").write_text(said.getvalue())
    (folder / "steps.txt").write_text(steps.getvalue())
    return folder


def test_export_prints_the_comparison_and_the_next_command(folder: Path) -> None:
    (out,) = (folder / "out").iterdir()
    manifest = read_manifest(out)
    lines = [line.rstrip() for line in (folder / "said.txt").read_text().splitlines()]
    assert lines[0] == "Compared with torch"
    assert re.split(r"\s{2,}", lines[1]) == [
        "images",
        "output",
        "least cosine",
        "largest difference",
    ]
    cases = [re.split(r"\s{2,}", line) for line in lines[2:7]]
    assert [case[:2] for case in cases] == [[case, "embedding"] for case in CASES]
    assert all(
        float(cosine) >= 0.99999 and float(largest) <= 1e-4 for _, _, cosine, largest in cases
    )
    size = out.stat().st_size / 1e6
    assert lines[7:] == [
        (
            f"Wrote {out}: mine, 48 dimensions, {size:.1f} MB, license CC0-1.0, fingerprint"
            f" {manifest.fingerprint[:12]}."
        ),
        f"Next: featkit embed images/ --model {out} --out emb/",
    ]
    vectors = Embedder(out).embed([draw_image(0), draw_image(1)])
    assert vectors.shape == (2, 48)
    assert abs(float(vectors[0] @ vectors[1])) < 0.999


def test_export_prints_its_steps_and_not_the_exporters_log(folder: Path) -> None:
    steps = (folder / "steps.txt").read_text().splitlines()
    assert steps == [
        "reading the weights ...",
        "tracing the graph ...",
        "comparing it with torch ...",
        "writing ...",
    ]


def test_export_as_json_holds_every_figure(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Tracing takes seconds: reuse the graph of the file already written, and compare it again.
    monkeypatch.setattr(
        "featkit_export.export.trace",
        lambda *_, **__: Traced(model=onnx.load(folder / "out" / "m.onnx")),
    )
    out = tmp_path / "m.onnx"
    assert (
        main(["export", str(folder / "run" / "backbone.safetensors"), "--out", str(out), "--json"])
        == 0
    )
    said = capsys.readouterr()
    assert said.err == ""
    figures = json.loads(said.out)
    manifest = read_manifest(out)
    assert (figures["out"], figures["fingerprint"]) == (str(out), manifest.fingerprint)
    assert (figures["fixed_speedup"], figures["remarks"]) == (None, [])
    assert (manifest.name, manifest.feature, manifest.width) == ("drawn", "cls", 48)
    # which knows no names
    assert manifest.fingerprint == read_manifest(folder / "out" / "m.onnx").fingerprint
    assert [
        f"{case['batch']} × {case['height']}×{case['width']}" for case in figures["comparisons"]
    ] == CASES
    assert (
        min(case["min_cosine"] for case in figures["comparisons"]) == manifest.parity["min_cosine"]
    )
    assert max(case["max_abs"] for case in figures["comparisons"]) == manifest.parity["max_abs"]


def test_every_flag_reaches_the_file(folder: Path, tmp_path: Path) -> None:
    origin = read_manifest(folder / "out" / "m.onnx").origin
    rng = np.random.default_rng(0)
    Whitening(
        mean=rng.normal(0, 0.1, 96).astype(np.float32),
        components=rng.standard_normal((10, 96)).astype(np.float32),
        num_vectors=500,
        explained=0.5,
        model=f"dino {origin['sha256']} cls+gem of blocks 1, 2 (mean)",
    ).save(tmp_path / "w.npz")
    flags = (
        "--feature cls+gem --layers 1,2 --join mean --outputs attention,patches --size 40x56"
        " --quiet".split()
    )
    out = tmp_path / "m.onnx"
    said = run_featkit(
        "export", folder / "run", "--out", out, "--whiten", tmp_path / "w.npz", *flags
    )
    assert (said.code, said.error) == (0, "")
    manifest = read_manifest(out)
    assert (manifest.feature, manifest.layers, manifest.join) == ("cls+gem", (1, 2), "mean")
    assert (manifest.outputs, manifest.fixed_size, manifest.width) == (OUTPUTS, (40, 56), 10)
    assert manifest.whitened == "500 vectors, 50.0% of the variance kept"
    assert manifest.geometry.resize == "cover"
    cases = [re.split(r"\s{2,}", line)[:2] for line in said.out.splitlines()[2:11]]
    assert cases == [[f"{batch} × 40×56", output] for batch in (1, 3, 8) for output in OUTPUTS]
    assert re.search(
        r"^With its size fixed, the graph is \d+\.\d\d times as fast as with dynamic sizes, one"
        r" image a call\.$",
        said.out,
        re.MULTILINE,
    )
    embedder = Embedder(out)
    assert embedder.embed(draw_image(0)).shape == (1, 10)
    with refused("40×56"):
        embedder.infer(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--size 100", "use 96 or 104 by 96 or 104"),
        ("--size 0", "--size 0 is not a size in pixels"),
        ("--layers 3", "has layers 1 to 2; name each at most once, not [3]"),
        ("--layers 1,1", "not [1, 1]"),
        ("--layers last", "--layers last is not a list of block numbers"),
        ("--outputs tokens", "--outputs tokens do not exist"),
        ("--exit 1", "drawn has no early exits; leave out --exit"),
        ("--whiten none.npz", "none.npz does not exist; make it with `featkit whiten`"),
        ("--whiten-on none", "none does not exist"),
        ("--whiten-on none --whiten w.npz", "pass only one of them"),
        ("--dim 8", "are of the whitening that --whiten-on IMAGES fits"),
        ("--power 0.5", "are of the whitening that --whiten-on IMAGES fits"),
        ("--whiten-on none --power 2", "A power of 2 is not between 0 and 1"),
        ("--each-layer", "several --layers that are concatenated and whitened"),
        ("--each-layer --whiten-on none --layers 2", "such as 2,3, and --whiten-on IMAGES"),
        ("--each-layer --whiten-on none --layers 1,2 --join mean", "that are concatenated"),
    ],
)
def test_flags_that_do_not_fit_the_model_are_refused(
    folder: Path, tmp_path: Path, flags: str, words: str
) -> None:
    said = run_featkit(
        "export", folder / "run", "--out", tmp_path / "m.onnx", "--quiet", *flags.split()
    )
    assert said.code == 2
    assert is_one_sentence(said)
    assert words in said.error
    assert list(tmp_path.iterdir()) == []


def test_exit_becomes_the_file_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    allow_torchvision()
    config = dataclasses.replace(CONFIGS["timm ViT"], exits=(1,))
    info = BackboneInfo(
        name="two exits", family="internal", geometry=geometry_for(VITS["dino"]), license="CC0-1.0"
    )
    backbone = drawn(build_backbone(config))
    save_backbone(tmp_path / "run" / BACKBONE_FILE, backbone, info)
    out = tmp_path / "m.onnx"
    with refused("two exits has exits 1 to 2 (the deepest), not 3"):
        export(str(tmp_path / "run"), out=out, exit_=3, quiet=True)
    assert main(["export", str(tmp_path / "run"), "--out", str(out), "--exit", "1", "--quiet"]) == 0
    assert read_manifest(out).origin["exit"] == "1 of 2"
    images = draw_images(3, height=32, width=32)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(value).view(1, 3, 1, 1) for value in (info.geometry.mean, info.geometry.std)
    )
    with torch.no_grad():
        first, deepest = (
            features.class_token for features in backbone.all_exits((pixels - mean) / std)
        )
    found = Embedder(out).infer(images)
    np.testing.assert_allclose(
        found, torch.nn.functional.normalize(first, dim=-1).numpy(), atol=2e-5
    )
    assert np.abs(found - torch.nn.functional.normalize(deepest, dim=-1).numpy()).max() > 1e-2
    with refused("so its network cannot change", "--exit"):
        export(str(out), out=tmp_path / "m16.onnx", precision="fp16", exit_=1, quiet=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "none is not a published backbone (featkit export --list shows them)"),
        ("dinov2_vits", "similar names: dinov2_vits14"),
        ("images", "images has neither backbone.safetensors nor config.json"),
        ("images/a.jpg", "a.jpg does not say which model its weights belong to"),
    ],
)
def test_what_is_no_model_ends_with_2_and_one_sentence(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "images").mkdir()
    draw_image(0).save(tmp_path / "images" / "a.jpg")
    said = run_featkit(
        "export",
        tmp_path / name if name != "dinov2_vits" else name,
        "--out",
        tmp_path / "m.onnx",
        "--quiet",
    )
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
    assert (
        main(["export", str(folder / "run"), "--out", str(tmp_path / "m.onnx"), "--feature", "max"])
        == 2
    )
    said = capsys.readouterr()
    assert all(
        feature in said.out + said.err for feature in ("cls", "mean", "gem", "cls+mean", "cls+gem")
    )


def test_the_list_has_every_published_model_in_a_line_of_its_own() -> None:
    said = run_featkit("export", "--list")
    assert (said.code, said.error) == (0, "")
    lines = said.out.splitlines()
    assert re.split(r"\s{2,}", lines[1].strip()) == [
        "name", "parameters", "width", "patch", "native size", "license", "weights from",
    ]  # fmt: skip
    for row, line in zip(PUBLISHED.values(), lines[2:-1], strict=True):
        cells = re.split(r"\s{2,}", line.strip())
        assert cells[0] == row.name
        assert float(cells[1].removesuffix(" M").replace(",", "")) == pytest.approx(
            row.num_parameters / 1e6, abs=0.05
        )
        assert cells[2:5] == [str(row.width), str(row.patch), "224×224"]
        assert cells[5] == row.license + (" (gated)" if row.gated else "")
        assert cells[6] == (f"hf.co/{row.hub}" if row.hub else row.url)
    assert lines[-1].startswith("Also: timm:NAME")


def test_the_list_as_json_needs_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys; from featkit.cli.app import main; code = main(['export', '--list', '--json']);"
        " heavy = {'torch', 'timm', 'torchvision', 'onnx', 'onnxruntime', 'faiss'} &"
        " set(sys.modules); print(code, sorted(heavy), file=sys.stderr)"
    )
    status, out, error = run_python(code)
    assert (status, error) == (0, "0 []\n")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == list(PUBLISHED)
    assert set(rows[0]) == {
        "name",
        "parameters",
        "width",
        "patch",
        "native_size",
        "license",
        "weights_from",
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, None),
        ("224", (224, 224)),
        ("336x504", (336, 504)),
        ("336X504", (336, 504)),
        ("336×504", (336, 504)),
    ],
)
def test_a_size_is_a_side_or_height_times_width(
    text: str | None, size: tuple[int, int] | None
) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "x", "224x", "x224", "224x0", "-224", "224x224x3", "2e2", "224.0", "a"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with refused(f"--size {text} is not a size in pixels; write 224, or 336x504"):
        parse_size(text)


def test_layers_are_numbers_in_the_order_written() -> None:
    assert parse_layers("") == ()
    assert parse_layers("12") == (12,)
    assert parse_layers("9, 12,10,") == (9, 12, 10)
    for text in ("last", "9;10", "9 10", "1.5"):
        with refused(f"--layers {text} is not a list of block numbers; write it like 9,10,11,12."):
            parse_layers(text)


def test_outputs_always_have_the_embedding_and_one_order() -> None:
    assert parse_outputs("embedding") == parse_outputs("") == ("embedding",)
    assert parse_outputs("attention") == ("embedding", "attention")
    assert parse_outputs("attention, patches,embedding") == OUTPUTS
    asked = parse_outputs("words,patches,tokens")
    with refused("--outputs tokens, words do not exist; choose from embedding,patches,attention."):
        ExportRequest(source="run", out=Path("m.onnx"), outputs=asked)


# Other precisions ---------------------------------------------------------------------------------


def test_a_run_and_its_model_file_become_the_same_file_in_fp16(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = read_manifest(folder / "out" / "m.onnx")
    said = run_featkit(
        "export",
        folder / "out" / "m.onnx",
        "--precision",
        "fp16",
        "--out",
        tmp_path / "a.onnx",
        "--quiet",
    )
    assert (said.code, said.error) == (0, "")
    assert "Measured in fp16" in said.out
    assert re.search(r"^least_cosine +0\.99999\d* *$", said.out, re.MULTILINE)
    # Tracing takes seconds; the graph is that of the file already written.
    monkeypatch.setattr(
        "featkit_export.export.trace",
        lambda *_, **__: Traced(model=onnx.load(folder / "out" / "m.onnx")),
    )
    said = run_featkit(
        "export",
        folder / "run",
        "--precision",
        "fp16",
        "--out",
        tmp_path / "b.onnx",
        "--name",
        "half",
    )
    assert said.code == 0
    assert "Compared with torch" in said.out
    assert (
        "writing the graph in half precision ...\ncomparing it with fp32 in true half arithmetic"
        " ...\n" in said.error
    )
    first, second = (read_manifest(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert first.fingerprint == second.fingerprint != full.fingerprint
    assert (first.precision, first.proven_equal_to) == ("fp16", (full.fingerprint,))
    assert (first.name, second.name) == ("mine", "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_run_and_its_model_file_become_the_same_half_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = read_manifest(folder / "out" / "m.onnx")
    arguments = ("--half-weights", "--out", tmp_path / "a.onnx")
    said = run_featkit("export", folder / "out" / "m.onnx", *arguments, "--quiet")
    assert (said.code, said.error) == (0, "")
    assert "Measured with weights in fp16" in said.out
    assert re.search(r"^least_cosine +0\.9999\d* *$", said.out, re.MULTILINE)
    monkeypatch.setattr(
        "featkit_export.export.trace",
        lambda *_, **__: Traced(model=onnx.load(folder / "out" / "m.onnx")),
    )
    triton = ("--triton", tmp_path / "models")
    arguments = ("--half-weights", "--out", tmp_path / "b.onnx")
    said = run_featkit("export", folder / "run", *arguments, *triton, "--json")
    assert (said.code, json.loads(said.out)["compared_with"]) == (0, "torch")
    first, second = (read_manifest(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert first.fingerprint == second.fingerprint != full.fingerprint
    assert (first.precision, first.weight_precision) == ("fp32", "fp16")
    (model,) = (tmp_path / "models").glob("*/1/model.onnx")
    assert model.read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_int8_goes_through_the_gate_and_its_figures_are_printed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(
        embedders: Mapping[Run, Embedder], _images: np.ndarray, **_options: Any
    ) -> dict[Run, float]:
        return {run: 30.0 if run.precision == "int8" else 12.0 for run in embedders}

    monkeypatch.setattr(precision, "images_per_second", rates)
    monkeypatch.setattr(precision, "offered_runs", lambda manifest: [reference_run(manifest)])
    monkeypatch.setattr(precision, "GATE_QUERIES", 12)
    photographs = draw_folder(tmp_path / "p", 6, height=120, width=160)
    arguments = (
        "export",
        folder / "out" / "m.onnx",
        "--precision",
        "int8",
        "--calibrate",
        photographs,
        "--quiet",
    )
    said = run_featkit(*arguments, "--out", tmp_path / "m8.onnx")
    assert (said.code, said.error) == (0, "")
    lines = [re.split(r"\s{2,}", line.strip()) for line in said.out.splitlines()]
    assert ["images_per_s", "onnxruntime fp32 12.0, onnxruntime int8 30.0"] in lines
    assert ["speedup", "2.5"] in lines
    assert ["kept_in_float", "none"] in lines
    said = run_featkit(*arguments, "--out", tmp_path / "again.onnx", "--json")
    figures = json.loads(said.out)
    manifest = read_manifest(tmp_path / "m8.onnx")
    assert figures["fingerprint"] == manifest.fingerprint
    assert figures["quantization"] == manifest.quantization
    assert manifest.precision == "int8"


def test_int8_that_the_gate_refuses_ends_with_1_and_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        precision,
        "images_per_second",
        lambda embedders, _images, **_: dict.fromkeys(embedders, 7.0),
    )
    photographs, out = draw_folder(tmp_path / "p", 4), tmp_path / "out" / "m8.onnx"
    arguments = ("--precision", "int8", "--calibrate", photographs, "--out", out, "--quiet")
    said = run_featkit("export", folder / "out" / "m.onnx", *arguments)
    assert (said.code, is_one_sentence(said)) == (1, True)
    assert "int8 is not faster on this machine: 7.0 images/s" in said.error
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [
        "--precision int8",
        "--calibrate p",
        "--precision fp16 --calibrate p",
        "--precision fp32 --calibrate p",
    ],
)
def test_int8_and_its_images_go_together(folder: Path, tmp_path: Path, flags: str) -> None:
    said = run_featkit(
        "export", folder / "out" / "m.onnx", "--out", tmp_path / "m.onnx", *flags.split()
    )
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "--precision int8 and --calibrate IMAGES go together" in said.error
    assert list(tmp_path.iterdir()) == []


def test_a_model_file_in_full_precision_is_not_written_again(folder: Path, tmp_path: Path) -> None:
    for flags in ([], ["--precision", "fp32"]):
        said = run_featkit(
            "export", folder / "out" / "m.onnx", "--out", tmp_path / "m.onnx", *flags
        )
        assert (said.code, is_one_sentence(said)) == (2, True)
        assert (
            "m.onnx is already a model file; use it as it is, or choose a lower --precision"
            in said.error
        )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--feature mean", "--feature"),
        ("--layers 1,2 --join mean", "--layers, --join"),
        ("--outputs patches", "--outputs"),
        ("--size 64", "--size"),
        ("--weights w.pth --branch student", "--weights, --branch"),
        ("--whiten w.npz", "--whiten"),
        ("--whiten-on images --dim 8 --power 0.5", "--whiten-on, --dim, --power"),
    ],
)
def test_options_that_do_not_apply_to_a_model_file_are_refused(
    folder: Path, tmp_path: Path, flags: str, named: str
) -> None:
    arguments = ("--precision", "fp16", "--out", tmp_path / "m.onnx", *flags.split())
    said = run_featkit("export", folder / "out" / "m.onnx", *arguments)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert said.error.endswith(
        f"is a model file, so its network cannot change; leave out {named}.\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--precision fp16", "--half-weights is for files that compute in fp32, and one in fp16"),
        ("--size 64", "is a model file, so its network cannot change; leave out --size."),
    ],
)
def test_half_weights_with_another_change_are_refused(
    folder: Path, tmp_path: Path, flags: str, sentence: str
) -> None:
    arguments = ("--half-weights", "--out", tmp_path / "m.onnx", *flags.split())
    said = run_featkit("export", folder / "out" / "m.onnx", *arguments)
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert sentence in said.error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused_with_those_there_are(folder: Path, tmp_path: Path) -> None:
    said = run_featkit(
        "export", folder / "out" / "m.onnx", "--precision", "bf16", "--out", tmp_path / "m.onnx"
    )
    assert said.code == 2
    assert all(name in said.out + said.error for name in ("fp32", "fp16", "int8"))


def test_triton_gets_the_file_as_well(folder: Path, tmp_path: Path) -> None:
    out, repository = tmp_path / "m.onnx", tmp_path / "models"
    arguments = ("--precision", "fp16", "--out", out, "--triton", repository, "--quiet")
    said = run_featkit("export", folder / "out" / "m.onnx", *arguments)
    assert (said.code, said.error) == (0, "")
    (place,) = repository.iterdir()
    assert f"Added to the Triton model repository: {place}\n" in said.out
    assert (place / "1" / "model.onnx").read_bytes() == out.read_bytes()
    assert (place / "config.pbtxt").is_file()
    said = run_featkit(
        "export", folder / "out" / "m.onnx", *arguments[:-2], tmp_path / "others", "--json"
    )
    assert json.loads(said.out)["triton"] == str(tmp_path / "others" / place.name)


def test_list_prints_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    said = run_featkit(
        "export", folder / "run", "--list", "--out", tmp_path / "m.onnx", "--precision", "int8"
    )
    assert (said.code, said.error) == (0, "")
    assert said.out == run_featkit("export", "--list").out
    assert list(tmp_path.iterdir()) == []


def test_figures_are_printed_for_people() -> None:
    assert [shown(value) for value in (0.999912345, 3, "8 images")] == [
        "0.9999123",
        "3",
        "8 images",
    ]
    assert [shown(value) for value in ([], ["a", "b"], {"x fp32": 1.5, "y": 2})] == [
        "none",
        "a, b",
        "x fp32 1.5, y 2",
    ]


# ONNX files made elsewhere ------------------------------------------------------------------------

PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_center_crop": True,
    "crop_size": {"height": onnx_files.NATIVE, "width": onnx_files.NATIVE},
    "size": {"shortest_edge": 64},
    "resample": 3,
    "image_mean": list(onnx_files.GEOMETRY.mean),
    "image_std": list(onnx_files.GEOMETRY.std),
}
CARD = "---\nlibrary_name: transformers.js\nlicense: apache-2.0\n---\n\nlicense: as above\n"


@pytest.fixture
def community(tmp_path: Path) -> Path:
    """A folder laid out as onnx-community's repositories are."""
    place = tmp_path / "dinov2-tiny"
    (place / "onnx").mkdir(parents=True)
    onnx.save(onnx_files.build(), place / "onnx" / "model.onnx")
    (place / "config.json").write_text(
        json.dumps({"model_type": "dinov2", "patch_size": onnx_files.PATCH})
    )
    (place / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (place / "README.md").write_text(CARD)
    return place


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_published_folder_becomes_a_model_file_with_license(
    community: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "m.onnx"
    for source in (community, community / "onnx" / "model.onnx"):
        said = run_featkit(
            "export", source, "--feature", "cls+mean", "--outputs", "patches", "--out", out
        )
        assert said.code == 0, said
        assert said.error == "changing the graph and comparing it with the original ...\n"
        assert said.out.startswith("Compared with the original\n")
        assert "Adopted from model.onnx and compared with it at" in said.out
        manifest = read_manifest(out)
        assert (manifest.family, manifest.name, manifest.license) == (
            "dinov2",
            "dinov2-tiny",
            "apache-2.0",
        )
        assert (manifest.feature, manifest.outputs) == ("cls+mean", ("embedding", "patches"))
        assert (manifest.geometry, manifest.width) == (
            dataclasses.replace(onnx_files.GEOMETRY, rounding="down"),
            2 * onnx_files.WIDTH,
        )
        assert Embedder(out).embed(draw_image(0)).shape == (1, 2 * onnx_files.WIDTH)


def test_a_published_file_can_be_written_in_fp16_at_once(community: Path, tmp_path: Path) -> None:
    said = run_featkit(
        "export", community, "--precision", "fp16", "--out", tmp_path / "m.onnx", "--json"
    )
    assert (said.code, said.error) == (0, "")
    figures, manifest = json.loads(said.out), read_manifest(tmp_path / "m.onnx")
    assert (figures["compared_with"], figures["fingerprint"]) == (
        "the original",
        manifest.fingerprint,
    )
    assert (manifest.precision, manifest.license) == ("fp16", "apache-2.0")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--layers 1,2 --join mean", "--layers, --join"),
        ("--weights w.pth --branch student", "--weights, --branch"),
        ("--whiten w.npz", "--whiten"),
        ("--whiten-on images --dim 8 --power 0.5", "--whiten-on, --dim, --power"),
    ],
)
def test_options_that_do_not_apply_to_an_onnx_file_are_refused(
    community: Path, tmp_path: Path, flags: str, named: str
) -> None:
    said = run_featkit("export", community, "--out", tmp_path / "m.onnx", *flags.split())
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert (
        f"is an ONNX file made elsewhere, so its network cannot change; leave out {named}."
        in said.error
    )
    assert not (tmp_path / "m.onnx").exists()


def test_the_hubs_file_is_called_as_its_repository(
    community: Path, hub: Path, tmp_path: Path
) -> None:
    """And not as the commit that names its folder in the cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = hub / "models--onnx-community--dinov2-tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(community, place / "snapshots" / commit)
    said = run_featkit(
        "export", "hub:onnx-community/dinov2-tiny", "--out", tmp_path / "m.onnx", "--quiet"
    )
    assert (said.code, said.error) == (0, "")
    manifest = read_manifest(tmp_path / "m.onnx")
    assert (manifest.name, manifest.license) == ("dinov2-tiny", "apache-2.0")
    assert manifest.origin["source"] == "hf.co/onnx-community/dinov2-tiny"
    arguments = ("--name", "mine", "--out", tmp_path / "n.onnx", "--quiet")
    assert run_featkit("export", "hub:onnx-community/dinov2-tiny", *arguments).code == 0
    assert read_manifest(tmp_path / "n.onnx").name == "mine"


@pytest.mark.usefixtures("hub")
def test_the_hub_out_of_reach_ends_with_3_and_what_to_do(tmp_path: Path) -> None:
    said = run_featkit(
        "export", "hub:onnx-community/dinov2-small", "--out", tmp_path / "m.onnx", "--quiet"
    )
    assert (said.code, is_one_sentence(said)) == (EnvironmentProblem.exit_code, True)
    assert (
        "https://huggingface.co/onnx-community/dinov2-small cannot be reached, and the files"
        in said.error
    )
    assert "onnx/model.onnx" in said.error
    assert "use them with `featkit export FOLDER --out m.onnx`" in said.error
    assert not (tmp_path / "m.onnx").exists()


def test_what_a_source_is_is_told_by_what_lies_there(
    community: Path, folder: Path, tmp_path: Path
) -> None:
    assert is_onnx(str(community))
    assert is_onnx(str(community / "onnx"))
    assert is_onnx("hub:a/b")
    assert is_onnx("missing.onnx")
    assert not any(
        map(is_onnx, (str(folder / "run"), "dinov2_vits14", "timm:a", str(tmp_path / "missing")))
    )
    for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"):
        (community / name).touch()
        assert not is_onnx(str(community))  # torch reads the weights themselves
        (community / name).unlink()
    assert is_model_file(str(folder / "out" / "m.onnx"))
    assert not any(
        map(
            is_model_file,
            (
                str(community / "onnx" / "model.onnx"),
                "missing.onnx",
                str(folder / "run"),
                "hub:a/b",
            ),
        )
    )
