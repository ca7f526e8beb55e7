"""The commands `featkit train METHOD`: a run's files and output, resuming, and refusals."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from featkit.cli.app import main
from featkit_train.settings import with_settings
from featkit_train.weights import load_backbone
from tests.commands import end, run_featkit, start_featkit, wait_until
from tests.featkit.sources.files import write_tar
from tests.images import draw_folder
from tests.train.small import SMALL

STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` and a recipe `small.yaml`."""
    folder = tmp_path_factory.mktemp("train")
    draw_folder(folder / "images", 24)
    recipe = with_settings(SMALL, {"run.steps": STEPS, "run.batch_size": 4})
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """A run of a second."""
    recipe = [] if "--recipe" in more else ["--recipe", str(folder / "small.yaml")]
    return ["train", "dino", str(folder / "images"), "--out", str(out), *recipe, *more]


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished run; tests that change it take a copy."""
    assert main(command(folder, folder / "run", "--quiet")) == 0
    return folder / "run"


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_holds_these_files(run: Path) -> None:
    names = sorted(path.name for path in run.iterdir())
    assert [name for name in names if not name.startswith("events")] == [
        "backbone.safetensors",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "snapshots",
        "writer.lock",
    ]
    assert sum(name.startswith("events") for name in names) == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{STEPS:08d}"]
    _, info = load_backbone(run)
    assert (info.name, info.family, info.origin["steps"]) == ("small", "dino", str(STEPS))


def test_flags_override_the_recipe_and_the_run_keeps_all_it_used(
    folder: Path, tmp_path: Path
) -> None:
    flags = [
        "--steps",
        "1",
        "--batch-size",
        "5",
        "--seed",
        "7",
        "--momentum",
        "0.8",
        "--prototypes",
        "12",
    ]
    assert main(command(folder, tmp_path, "--quiet", *flags)) == 0
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    used = record["config"]["run"]
    assert (used["steps"], used["batch_size"], used["seed"]) == (1, 5, 7)
    assert (
        record["config"]["teacher"]["momentum"],
        record["config"]["dino"]["head"]["num_prototypes"],
    ) == (0.8, 12)
    assert record["config"]["model"]["width"] == SMALL["model"]["width"]  # type: ignore[index]
    assert record["config"]["optim"]["clip_grad"] == 3.0  # by default
    assert record["data"]["names"] == str(folder / "images")


def test_metrics_hold_speed_waiting_loss_entropy_and_copy_recall(run: Path) -> None:
    lines = metrics(run)
    logs = [line for line in lines if "loss" in line]
    assert [log["step"] for log in logs] == [1, 2, 3]
    for log in logs:
        assert log["steps_per_s"] > 0
        assert log["images_per_s"] == pytest.approx(4 * log["steps_per_s"])
        assert 0 <= log["waiting_share"] <= 1
        assert 0 < log["teacher_entropy"] <= 1 + 1e-6
        assert math.isfinite(log["loss"])
    recalls = [(line["step"], line["copy_recall"]) for line in lines if "copy_recall" in line]
    assert [step for step, _ in recalls] == [0, STEPS]
    assert all(0 <= recall <= 1 for _, recall in recalls)


def test_a_run_prints_what_it_does_and_the_next_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(command(folder, tmp_path / "run", "--set", "name=mine", "--set", "run.log_every=2"))
        == 0
    )
    said = capsys.readouterr()
    words = "mine: dino, ViT of width 24, depth 2, patch 8 on 24 images at 32×32, 3 steps of 4, to "
    assert said.err.startswith(words)
    lines = said.err.splitlines()
    # after steps 2 and 3
    assert sum("loss " in line and "images_per_s " in line for line in lines) == 2
    assert sum("copy recall@1 on held-out images" in line for line in lines) == 2
    results = said.out.splitlines()
    assert results[0].strip() == "Training finished"
    # a long path is folded
    assert f"backbone{tmp_path}/run/backbone.safetensors" in "".join(said.out.split())
    assert results[-1] == f"Next: featkit export {tmp_path}/run --out mine.onnx"


def test_quiet_prints_the_backbone_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, tmp_path / "run", "--quiet", "--steps", "1")) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{tmp_path}/run/backbone.safetensors\n", "")


def test_resume_continues_to_the_same_bytes(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As a run that was killed after its second step: one checkpoint, and a line of metrics past it.
    more = ("--set", "run.checkpoint_every=2")
    assert main(command(folder, tmp_path / "run", "--quiet", *more)) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}")
    (tmp_path / "run" / "backbone.safetensors").unlink()
    capsys.readouterr()
    assert main(command(folder, tmp_path / "run", "--resume", *more)) == 0
    assert "featkit: resuming at step 2" in capsys.readouterr().err
    assert (tmp_path / "run" / "backbone.safetensors").read_bytes() == (
        run / "backbone.safetensors"
    ).read_bytes()
    losses = [
        [line["loss"] for line in metrics(folder) if "loss" in line]
        for folder in (run, tmp_path / "run")
    ]
    assert losses[0] == losses[1]


def test_a_run_inside_its_images_is_resumed_and_not_learned_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.copy(folder / "small.yaml", tmp_path)
    (tmp_path / "images" / "notes.txt").touch()
    out = tmp_path / "images" / "run"
    assert main(command(tmp_path, out, "--exclude", "003.jpg")) == 0
    assert "23 images" in (error := capsys.readouterr().err)
    assert "Skipped: 1 .txt, 1 excluded file.\n" in error
    assert any(out.rglob("*.png")) or any(out.rglob("*.jpg")), "snapshots, which would be images"
    assert main(command(tmp_path, out, "--exclude", "003.jpg", "--resume")) == 0
    capsys.readouterr()
    assert main(command(tmp_path, tmp_path / "images" / "run2")) == 0
    assert "24 images" in (error := capsys.readouterr().err)
    assert "Skipped: 1 .txt, 1 featkit folder.\n" in error


def test_a_run_among_its_images_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.copy(folder / "small.yaml", tmp_path)
    assert main(command(tmp_path, tmp_path / "images")) == 2
    out = tmp_path / "images"
    assert (
        capsys.readouterr().err
        == f"featkit: --out {out} is the folder of images itself. Name a folder in it, such as"
        f" {out}/run.\n"
    )


def test_unreadable_images_are_counted_and_the_others_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.copy(folder / "small.yaml", tmp_path)
    (tmp_path / "images" / "003.jpg").unlink()
    (tmp_path / "images" / "003.jpg").symlink_to("gone.jpg")
    assert main(command(tmp_path, tmp_path / "run", "--steps", "8")) == 0
    assert "failed reads of images" in capsys.readouterr().out


def test_ctrl_c_ends_after_a_step_and_resume_gives_equal_bytes(
    folder: Path, tmp_path: Path
) -> None:
    # As a terminal does it: to all processes of the group, workers too.
    more = (
        "--steps",
        "100",
        "--workers",
        "1",
        "--set",
        "run.checkpoint_every=100",
        "--set",
        "run.evaluate_every=100",
    )
    process = start_featkit(*command(folder, tmp_path / "broken", *more), before=os.setsid)
    wait_until(lambda: "loss" in read_text(tmp_path / "broken" / "metrics.jsonl"), process)
    os.killpg(process.pid, signal.SIGINT)
    said = end(process)
    stopped = re.search(
        r"featkit: stopped after step (\d+); add --resume to continue from there\.\n$", said.error
    )
    assert stopped is not None, said.error
    assert (said.code, "Traceback" in said.error) == (130, False)
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()] == [
        f"step-{int(stopped[1]):08d}"
    ]
    assert 0 < int(stopped[1]) < 100
    assert main(command(folder, tmp_path / "broken", "--quiet", *more, "--resume")) == 0
    assert main(command(folder, tmp_path / "whole", "--quiet", *more)) == 0
    broken, whole = (tmp_path / name / "backbone.safetensors" for name in ("broken", "whole"))
    assert broken.read_bytes() == whole.read_bytes()


def read_text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_held_out_images_are_measured_and_all_others_trained_on(
    folder: Path, tmp_path: Path
) -> None:
    held_out = draw_folder(tmp_path / "held out", 3, height=64, width=48)
    out = tmp_path / "run"
    # All 24 images are a batch, which a tenth held out of them would not leave.
    assert (
        main(
            command(
                folder,
                out,
                "--quiet",
                "--steps",
                "1",
                "--batch-size",
                "24",
                "--held-out",
                str(held_out),
            )
        )
        == 0
    )
    assert [line["step"] for line in metrics(out) if "copy_recall" in line] == [0, 1]
    assert main(command(folder, tmp_path / "other", "--quiet", "--batch-size", "24")) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "optim.lrr=1"], "There is no setting optim.lrr; did you mean optim.lr?"),
        (["--set", "dino.head.num_prototype=8"], "did you mean dino.head.num_prototypes?"),
        (["--set", "optim.lr"], "--set optim.lr has no value"),
        (["--set", "optim.lr=fast"], "The setting optim.lr is of type float, not 'fast'."),
        (["--set", "optim=[1"], "--set optim=[1 has a value that is not YAML"),
        (["--set", "optim.lr.x=1"], "The setting optim.lr is a value, not a section"),
        (["--recipe", "huge"], "There is no recipe huge"),
        (["--batch-size", "100"], "fewer than a batch of 100"),
        (["--resume"], "holds no run to resume"),
        (["--held-out", "none"], "none does not exist"),
    ],
)
def test_what_cannot_be_trained_ends_with_2_and_one_sentence(
    folder: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, tmp_path / "run", "--quiet", *more)) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_an_existing_run_is_not_begun_again(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    assert main(command(folder, run, "--quiet")) == 2
    error = capsys.readouterr().err
    assert (
        error
        == f"featkit: {run} holds a run already; add --resume to continue it, or choose another"
        " --out.\n"
    )
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_is_not_resumed_with_other_settings(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, run, "--quiet", "--resume", "--lr", "0.5")) == 2
    assert (
        "was begun with other settings: optim.lr was 0.001 and is now 0.5."
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["none", "empty"])
def test_missing_data_ends_with_2_and_leaves_no_folder(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        main(["train", "dino", str(tmp_path / name), "--out", str(tmp_path / "run"), "--quiet"])
        == 2
    )
    error = capsys.readouterr().err
    assert str(tmp_path / name) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["ibot", "dinov2", "dinov3"])
def test_each_method_is_a_command_that_trains_by_it(
    method: str, folder: Path, tmp_path: Path
) -> None:
    words = [
        "train",
        method,
        str(folder / "images"),
        "--out",
        str(tmp_path / "run"),
        "--recipe",
        str(folder / "small.yaml"),
    ]
    assert main([*words, "--quiet", "--steps", "1"]) == 0
    _, info = load_backbone(tmp_path / "run")
    assert info.family == method


def test_a_teacher_is_distilled_and_a_run_adapted_by_name(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    data = str(folder / "images")
    recipe = ["--recipe", str(folder / "small.yaml"), "--quiet", "--set", "pretrained.head_steps=1"]
    assert (
        main(
            [
                "train",
                "distill",
                data,
                "--teacher",
                str(run),
                "--out",
                str(tmp_path / "small"),
                *recipe,
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "train",
                "adapt",
                data,
                "--model",
                str(run),
                "--out",
                str(tmp_path / "adapted"),
                *recipe,
            ]
        )
        == 0
    )
    backbone, _ = load_backbone(tmp_path / "adapted")
    assert backbone.width == SMALL["model"]["width"]  # type: ignore[index]


def test_init_starts_from_an_earlier_run_with_other_settings(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    assert (
        main(
            command(
                folder,
                tmp_path / "stage",
                "--quiet",
                "--init",
                str(run),
                "--lr",
                "0.0",
                "--steps",
                "1",
            )
        )
        == 0
    )
    begun, _ = load_backbone(run)
    gone_on, _ = load_backbone(tmp_path / "stage")
    momentum = 0.9  # of a teacher whose student has hardly moved
    for name, tensor in begun.state_dict().items():
        assert torch.allclose(tensor, gone_on.state_dict()[name], atol=1 - momentum), name


def test_a_plan_is_printed_once_the_first_steps_are_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, tmp_path / "run", "--steps", "14")) == 0
    plan = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("plan: "))
    assert re.fullmatch(
        r"plan: 2 steps to go, \d+ min at [\d.]+ images/s on cpu, [\d.]+ GB of memory\. Ctrl-C"
        r" stops at a checkpoint\.",
        plan,
    )


def test_a_sweep_runs_short_trials_and_tables_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trials"
    assert (
        main(
            command(
                folder,
                out,
                "--sweep",
                "momentum=0.5,0.9",
                "--sweep",
                "dino.koleo_weight=0,0.1",
                "--steps",
                "2",
            )
        )
        == 0
    )
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].strip() == "Trials of 2 steps"
    assert re.split(r"\s{2,}", lines[1].strip())[:3] == ["setting", "copies", "loss"]
    labels = [re.split(r"\s{2,}", line.strip())[0] for line in lines[2:6]]
    assert labels == [f"momentum={m}, koleo_weight={k}" for m in (0.5, 0.9) for k in (0, 0.1)]
    assert lines[6].startswith("Best: momentum=")
    assert "4 trials of 2 steps each" in said.err
    used = yaml.safe_load((out / "momentum=0.5,_koleo_weight=0.1" / "config.yaml").read_text())[
        "config"
    ]
    assert (used["teacher"]["momentum"], used["dino"]["koleo_weight"]) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("momentum", "--sweep momentum has no values"),
        ("momentun=0.9", "There is no setting momentun to sweep; did you mean momentum?"),
        ("optim.lrr=1", "There is no setting optim.lrr; did you mean optim.lr?"),
    ],
)
def test_a_sweep_that_cannot_be_run_ends_with_2(
    folder: Path, tmp_path: Path, sweep: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, tmp_path / "run", "--quiet", "--sweep", sweep)) == 2
    assert words in capsys.readouterr().err


def test_a_slurm_script_runs_the_command_without_slurms_flags(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command(
        folder,
        tmp_path / "run",
        "--slurm",
        "--nodes",
        "2",
        "--gpus-per-node=4",
        "--time",
        "1:00:00",
    )
    monkeypatch.setattr("sys.argv", ["featkit", *words])
    assert main(words) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/")
    assert "#SBATCH --nodes=2" in script
    assert "--nproc-per-node" in script
    assert f"train dino {folder}/images" in script
    assert "--slurm" not in script
    assert not (tmp_path / "run").exists()


def test_damaged_shards_among_several_are_counted_as_unreadable(
    folder: Path, tmp_path: Path
) -> None:
    files = sorted((folder / "images").iterdir())
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(shards / "0.tar", [(file.name, file.read_bytes()) for file in files[:12]])
    (shards / "1.tar").write_bytes(b"")
    write_tar(shards / "2.tar", [(file.name, file.read_bytes()) for file in files[12:]])
    (shards / "3.parquet").write_bytes(b"PAR1 and no more")
    said = run_featkit(
        *train_on(folder, tmp_path, shards),
        "--held-out",
        folder / "images",
        "--set",
        "run.steps=7",
    )
    assert said.code == 0
    assert "on 26 images at" in said.error
    failed = [line.split()[-1] for line in said.out.splitlines() if line.startswith("failed reads")]
    assert failed == [str(metrics(tmp_path / "run")[-2]["unreadable"])]
    assert metrics(tmp_path / "run")[-2]["unreadable"] >= 2  # 28 reads ask for each of the 26 items


def test_a_column_is_chosen_among_those_of_one_source_of_several(
    folder: Path, tmp_path: Path
) -> None:
    images = [file.read_bytes() for file in sorted((folder / "images").iterdir())]
    table = pa.table({"image": pa.array([b"no image"] * 24), "photo": pa.array(images)})
    pq.write_table(table, tmp_path / "t.parquet")
    said = run_featkit(*train_on(folder, tmp_path / "no", tmp_path / "t.parquet"), "--quiet")
    assert (said.code, said.out) == (2, "")
    assert "None of the 22 images of " in said.error
    assert "The first: t.parquet/" in said.error
    both = train_on(folder, tmp_path, tmp_path / "t.parquet", folder / "images")
    assert run_featkit(*both, "--column", "photo").code == 0
    assert all(line.get("unreadable", 0) == 0 for line in metrics(tmp_path / "run"))
    said = run_featkit(*train_on(folder, tmp_path, folder / "images"), "--column", "photo")
    assert "--column photo applies to Parquet files and data sets only" in said.error


def train_on(folder: Path, out: Path, *sources: Path) -> list[object]:
    return ["train", "dino", *sources, "--out", out / "run", "--recipe", folder / "small.yaml"]
