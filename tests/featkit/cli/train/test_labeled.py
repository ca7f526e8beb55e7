"""The commands of the methods with labels: from images to a table, a file and a search, and what
is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from featkit.cli.app import main
from featkit.cli.console import ProgressReporter
from featkit.modelfile import read_manifest
from featkit_train.watching.standing import Row, Standing, read_standing
from tests.commands import Said, is_one_sentence, run_featkit
from tests.train.labeled.small import LABELED, draw_kinds

HELD_OUT = 10  # of each kind
NAMES = {
    "born-again": [
        "generation-0",
        "generation-1",
        "generation-2",
        "ensemble of 2",
        "ensemble of all, generation 0 too",
    ],
    "self-training": ["round-0", "round-1"],
    "internal": ["exit 1", "exit 2", "exit 3", "all exits together"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` of two kinds, `others` of the same, `held out`, and a recipe `small.yaml`."""
    folder = tmp_path_factory.mktemp("labeled")
    draw_kinds(folder / "images", 16)
    draw_kinds(folder / "others", 12, first=100)
    draw_kinds(folder / "held out", HELD_OUT, first=200)
    (folder / "small.yaml").write_text(yaml.safe_dump(LABELED))
    return folder


def command(method: str, folder: Path, out: Path, *more: str) -> list[str]:
    """A course of a second or two; of a flag of `more`, its value."""
    labeled, others = str(folder / "images"), str(folder / "others")
    data = ["--labeled", labeled, "--unlabeled", others] if method == "self-training" else [labeled]
    flags = {
        "born-again": {"--generations": "2", "--patience": "9"},
        "self-training": {"--rounds": "1", "--confidence": "0.1"},
        "internal": {"--exits": "1,3"},
    }[method]
    flags = {
        **flags,
        "--held-out": str(folder / "held out"),
        "--recipe": str(folder / "small.yaml"),
        "--out": str(out),
    }
    own = [word for name, value in flags.items() if name not in more for word in (name, value)]
    return ["train", method, *data, *own, "--set", "run.evaluate_every=100", *more]


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, tuple[Path, Said]]:
    """A finished run of each method and what it printed; tests that change it copy it."""
    runs = {}
    for method in NAMES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            runs[method] = (
                folder / method,
                run_featkit(*command(method, folder, folder / method)),
            )
    return runs


@pytest.mark.parametrize("method", NAMES)
def test_each_method_trains_and_tables_what_it_trained(
    method: str, runs: dict[str, tuple[Path, Said]]
) -> None:
    run, said = runs[method]
    assert said.code == 0, said.error
    standing = read_standing(run)
    assert [row.name for row in standing.rows] == NAMES[method]
    lines = said.out.splitlines()
    assert lines[0].strip() == f"On {2 * HELD_OUT} held-out images"
    assert max(map(len, lines)) <= 80 or str(run) in max(lines, key=len)
    for row in standing.rows:
        words = (
            f"{' '.join(row.name.split()[:2]).removesuffix(',')}.*{row.accuracy:.3f} ±"
            f" {row.standard_error:.3f}"
        )
        assert any(re.match(words, line) for line in lines), words
    assert f"Chosen: {standing.chosen}" in said.out
    files = ("backbone.safetensors", "classifier.safetensors", "report.html")
    for file in files:
        assert (run / file).is_file()
        assert f"{run}/{file}" in "".join(said.out.split())  # a long path is folded
    assert lines[-1].startswith(f"Next: featkit export {run} ")


def test_a_course_prints_what_it_does_for_each_training(
    runs: dict[str, tuple[Path, Said]],
) -> None:
    begun = {method: said.error.splitlines() for method, (_, said) in runs.items()}
    what = "timm:resnet18 on 32 images at 32×32"
    assert begun["born-again"][0].startswith(
        f"small: born-again, {what}, at most 3 generations of 4 steps of 8, to "
    )
    assert begun["internal"][0].startswith(f"small: internal, {what}, 4 steps of 8, to ")
    of_both = (
        "small: self-training, timm:resnet18 on 32 images with labels and 24 without at 32×32, at"
        " most 2 rounds of 4 "
    )
    assert begun["self-training"][0].startswith(of_both)
    assert [
        line for line in begun["born-again"] if re.fullmatch(r"generation-\d: 4 steps", line)
    ] == [f"generation-{number}: 4 steps" for number in range(3)]
    assert "featkit: round-1: its teacher labels 24 images." in begun["self-training"]
    measured = [
        line
        for line in begun["born-again"]
        if "held-out images" in line and line.startswith("step")
    ]
    assert re.fullmatch(
        r"step      4  accuracy on held-out images [\d.]+  copy recall@1 [\d.]+  kNN accuracy"
        r" [\d.]+",
        measured[1],
    )
    logged = [line for line in begun["internal"] if "loss" in line]
    assert logged
    assert all(re.search(r"  loss [\d.]+  batch_accuracy [\d.]+  ", line) for line in logged)


def test_each_training_has_a_bar_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tuple[str, int | None, list[int]]] = []
    begin, report = ProgressReporter.__init__, ProgressReporter.__call__

    def recording(
        self: ProgressReporter,
        label: str,
        *,
        total: int | None,
        unit: str = "",
        quiet: bool = False,
    ) -> None:
        begin(self, label, total=total, unit=unit, quiet=quiet)
        bars.append((label, total, []))

    def counting(self: ProgressReporter, done: int, failed: int = 0) -> None:
        report(self, done, failed)
        bars[-1][2].append(done)

    monkeypatch.setattr(ProgressReporter, "__init__", recording)
    monkeypatch.setattr(ProgressReporter, "__call__", counting)
    assert main(command("self-training", folder, tmp_path / "run")) == 0
    assert [(label, total, max(done)) for label, total, done in bars] == [
        ("round-0", 4, 4),
        ("round-1, asking its teacher", 24, 24),
        ("round-1", 4, 4),
    ]


def test_quiet_prints_the_backbone_alone(folder: Path, tmp_path: Path) -> None:
    said = run_featkit(*command("internal", folder, tmp_path / "run", "--quiet"))
    assert said == (0, f"{tmp_path}/run/backbone.safetensors\n", "")


def test_resume_trains_what_is_missing_and_nothing_else(
    runs: dict[str, tuple[Path, Said]], folder: Path, tmp_path: Path
) -> None:
    whole, _ = runs["born-again"]
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "generation-2")
    for file in ("backbone.safetensors", "report.html"):
        (out / file).unlink()
    said = run_featkit(*command("born-again", folder, out, "--resume"))
    assert said.code == 0, said.error
    assert re.findall(r"^(generation-\d): ", said.error, re.MULTILINE) == ["generation-2"]
    assert (out / "backbone.safetensors").read_bytes() == (
        whole / "backbone.safetensors"
    ).read_bytes()
    again = run_featkit(*command("born-again", folder, out, "--resume", "--quiet"))
    assert (again.code, again.out) == (0, f"{out}/backbone.safetensors\n")


# -- what comes after ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
def test_a_run_is_exported_embedded_searched_and_evaluated(
    method: str, runs: dict[str, tuple[Path, Said]], folder: Path, tmp_path: Path
) -> None:
    run, _ = runs[method]
    model, images, index = tmp_path / "m.onnx", folder / "images", tmp_path / "photos.index"
    assert run_featkit("export", run, "--out", model, "--quiet").code == 0
    manifest = read_manifest(model)
    assert (manifest.name, manifest.family, manifest.width) == ("small", method, 12)
    assert (
        run_featkit("embed", images, "--model", model, "--out", tmp_path / "emb", "--quiet").code
        == 0
    )
    assert run_featkit("index", tmp_path / "emb", "--out", index, "--quiet").code == 0
    hits = json.loads(run_featkit("search", index, images / "red" / "003.png", "--json").out)
    assert hits[0]["key"] == "red/003.png"
    said = run_featkit("evaluate", "copies", folder / "held out", "--model", model, "--json")
    assert said.code == 0, said.error
    assert "small" in said.out


def test_an_exit_is_exported_without_what_lies_behind_it(
    runs: dict[str, tuple[Path, Said]], tmp_path: Path
) -> None:
    run, _ = runs["internal"]
    shallow, deepest = tmp_path / "1.onnx", tmp_path / "m.onnx"
    assert run_featkit("export", run, "--out", shallow, "--exit", 1, "--quiet").code == 0
    assert run_featkit("export", run, "--out", deepest, "--quiet").code == 0
    assert shallow.stat().st_size < deepest.stat().st_size


@pytest.mark.parametrize(
    ("method", "number", "words"),
    [
        ("internal", 9, "exits 1 to 3 (the deepest), not 9"),
        ("born-again", 2, "no early exits"),
    ],
)
def test_an_unknown_exit_is_refused(
    method: str, number: int, words: str, runs: dict[str, tuple[Path, Said]], tmp_path: Path
) -> None:
    said = run_featkit(
        "export", runs[method][0], "--out", tmp_path / "m.onnx", "--exit", number, "--quiet"
    )
    assert said.code == 2
    assert is_one_sentence(said)
    assert words in said.error


@pytest.mark.parametrize(("chosen", "flag"), [("exit 1", " --exit 1"), ("exit 3", "")])
def test_next_exports_the_exit_that_was_chosen(
    chosen: str, flag: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        Row(name=f"exit {n}", kind="exit", accuracy=0.5, standard_error=0.1, ece=0.1)
        for n in (1, 2, 3)
    ]
    standing = Standing(
        name="small",
        method="internal",
        num_held_out=20,
        classes=[],
        rows=rows,
        remarks=[],
        chosen=chosen,
    )
    monkeypatch.setattr("featkit_train.labeled.internal", lambda *_arguments, **_known: standing)
    said = run_featkit(*command("internal", folder, tmp_path))
    assert said.out.splitlines()[-1] == f"Next: featkit export {tmp_path}{flag} --out small.onnx"


@pytest.mark.parametrize("method", NAMES)
def test_report_links_to_the_reports_of_the_trainings(
    method: str, runs: dict[str, tuple[Path, Said]], tmp_path: Path
) -> None:
    shutil.copytree(runs[method][0], tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    said = run_featkit("report", tmp_path / "run")
    assert (said.code, said.out, said.error) == (0, f"{tmp_path}/run/report.html\n", "")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]+)"', page)
    assert links
    for link in links:
        assert (tmp_path / "run" / link).is_file()
    own = tmp_path / "run" / Path(links[-1]).parent
    assert run_featkit("report", own).code == 0
    assert "Accuracy, held out" in (own / "report.html").read_text(encoding="utf-8")


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("internal", ["--exits", "a,b"], "--exits a,b is not a list of stages; write it as 1,2,3."),
        ("internal", ["--exits", "1,9"], "exits can be after the stages 1 to 3"),
        ("internal", ["--exits", "0,1"], "exits can be after the stages 1 to 3"),
        ("internal", ["--exits", ","], "such as --exits 1,2."),
        ("born-again", ["--arch", "resnet18"], "Write timm:NAME or torchvision:NAME"),
        ("born-again", ["--arch", "timm:resnet_of_mine"], "timm has no model 'resnet_of_mine'"),
        (
            "born-again",
            ["--student", "timm:resnet_of_mine"],
            "timm has no model 'resnet_of_mine'",
        ),
        ("born-again", ["--label", "species"], "has no column species"),
        ("born-again", ["--patience", "0"], "born_again.patience is 0; it must be at least 1"),
        (
            "born-again",
            ["--set", "ibot.weight=2"],
            "born-again does not read the setting ibot.weight",
        ),
        (
            "self-training",
            ["--set", "born_again.generations=1"],
            "self-training does not read the setting born_again.generations",
        ),
        (
            "internal",
            ["--set", "internal.alpha=2"],
            "internal.alpha is 2.0; it must be from 0 to 1.",
        ),
        ("born-again", ["--batch-size", "100"], "fewer than a batch of 100"),
        ("born-again", ["--resume"], "holds no run to resume"),
        ("born-again", ["--held-out", "none"], "none does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_run(
    method: str, more: list[str], words: str, folder: Path, tmp_path: Path
) -> None:
    said = run_featkit(*command(method, folder, tmp_path / "run", "--quiet", *more))
    assert said.code == 2
    assert is_one_sentence(said), said.error
    assert words in said.error
    # so that the same command, mended, begins
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_images_without_labels_are_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    for name in ("images/red", "images"):
        words = [
            "train",
            "born-again",
            str(folder / name),
            "--out",
            str(tmp_path / "run"),
            "--recipe",
            str(folder / "small.yaml"),
        ]
        said = run_featkit(
            *words, "--quiet", *([] if name.endswith("red") else ["--label", "species"])
        )
        assert said.code == 2
        assert is_one_sentence(said)
        assert str(folder / name) in said.error
        assert not (tmp_path / "run").exists()


def test_images_of_one_kind_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "images" / "red", tmp_path / "one" / "red")
    said = run_featkit(
        "train",
        "born-again",
        tmp_path / "one",
        "--out",
        tmp_path / "run",
        "--recipe",
        folder / "small.yaml",
        "--quiet",
    )
    assert said.code == 2
    assert is_one_sentence(said)
    assert "at least two are needed" in said.error


def test_unlabeled_images_that_are_held_out_are_refused(folder: Path, tmp_path: Path) -> None:
    said = run_featkit(
        *command(
            "self-training",
            folder,
            tmp_path / "run",
            "--quiet",
            "--held-out",
            str(folder / "others"),
        )
    )
    assert said.code == 2
    assert is_one_sentence(said)
    assert "is among both the held-out and the unlabeled images" in said.error


@pytest.mark.parametrize("flag", ["--labeled", "--unlabeled"])
def test_self_training_needs_images_of_both_kinds(
    flag: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    other = {"--labeled": "--unlabeled", "--unlabeled": "--labeled"}[flag]
    said = run_featkit(
        "train", "self-training", other, folder / "images", "--out", tmp_path / "run"
    )
    assert (said.code, said.out) == (2, "")
    assert f"parameter {flag} requires an argument" in said.error
    assert not (tmp_path / "run").exists()


# -- which method when -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
def test_each_command_explains_itself_with_an_example(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = run_featkit("train", method, "--help")
    assert (said.code, said.error) == (0, "")
    assert re.search(rf"^Example: featkit train {method} \S.* --out run/", said.out, re.MULTILINE)


@pytest.mark.parametrize("method", NAMES)
def test_a_slurm_script_runs_the_command_without_slurms_flags(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(method, folder, tmp_path / "run", "--slurm", "--nodes", "2")
    monkeypatch.setattr("sys.argv", ["featkit", *words])
    said = run_featkit(*words)
    assert (said.code, said.error) == (0, "")
    assert said.out.startswith("#!/")
    assert "#SBATCH --nodes=2" in said.out
    assert f"train {method} " in said.out
    assert "--slurm" not in said.out
    assert not (tmp_path / "run").exists()
