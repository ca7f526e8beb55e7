"""Promises of the loop: what a run leaves behind, and that a resumed run is the unbroken one, bit for bit."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.lock import WriterLock
from featkit.sources import open_source
from featkit_train.checkpoints import STATE_FILE, list_checkpoints
from featkit_train.config import OptimConfig, TrainConfig
from featkit_train.device import pick_autocast, pick_device
from featkit_train.diagnostics import Collapse
from featkit_train.loop import LOCK_FILE, Run, make_optimizer, peak_lr, train
from featkit_train.meter import Log
from featkit_train.vit import VisionTransformer
from featkit_train.weights import load_backbone
from tests.pictures import draw_folder
from tests.processes import run_python
from tests.train.small import small_config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("loop") / "pictures", 44)


def run(config: TrainConfig, pictures: Path, out: Path, *, resume: bool = False, stop_after: int | None = None) -> list[Log]:
    """Train and return all logs; `stop_after` is a Ctrl-C at the log of that step."""
    logs: list[Log] = []

    def on_log(log: Log) -> None:
        logs.append(log)
        if stop_after is not None and log["step"] == stop_after and "loss" in log:
            signal.raise_signal(signal.SIGINT)

    train(config, [open_source(pictures)], out, resume=resume, on_log=on_log)
    return logs


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run's metrics."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_a_run_leaves_what_the_design_says(pictures: Path, tmp_path: Path) -> None:
    config = small_config()
    logs = run(config, pictures, tmp_path / "run")
    names = {path.name.split(".")[0] for path in (tmp_path / "run").iterdir()}
    assert {"config", "metrics", "events", "checkpoints", "backbone"} <= names
    record = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert record["config"]["run"]["seed"] == 0
    assert record["versions"]["torch"] == torch.__version__
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 9))
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == config.run.keep_checkpoints
    for name in ("steps_per_s", "images_per_s", "waiting_share", "loss", "teacher_entropy"):
        assert any(name in log for log in logs), name
    assert [log["step"] for log in logs if "copy_recall" in log] == [0, 4, 8]


def test_the_backbone_that_is_left_is_the_teacher(pictures: Path, tmp_path: Path) -> None:
    run(small_config(), pictures, tmp_path / "run")
    backbone, info = load_backbone(tmp_path / "run")
    state = load_file(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / STATE_FILE)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[f"model.teacher.backbone.{name}"])
    assert info.geometry.height == 32
    assert info.origin["steps"] == "8"


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(pictures: Path, tmp_path: Path, stop_after: int) -> None:
    config = small_config()
    run(config, pictures, tmp_path / "whole")
    with pytest.raises(Interrupted, match="--resume"):
        run(config, pictures, tmp_path / "broken", stop_after=stop_after)
    run(config, pictures, tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    ours, theirs = (list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("broken", "whole"))
    assert (ours / STATE_FILE).read_bytes() == (theirs / STATE_FILE).read_bytes()
    assert (tmp_path / "broken/backbone.safetensors").read_bytes() == (tmp_path / "whole/backbone.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(pictures: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(small_config(f"run.seed={seed}", "run.steps=2"), pictures, tmp_path / name)
    first, second, third = (load_file(tmp_path / name / "backbone.safetensors") for name in "abc")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_a_run_folder_is_not_begun_twice_nor_resumed_with_other_settings(pictures: Path, tmp_path: Path) -> None:
    run(small_config("run.steps=2"), pictures, tmp_path / "run")
    with pytest.raises(InputError, match="add --resume"):
        run(small_config("run.steps=2"), pictures, tmp_path / "run")
    with pytest.raises(InputError, match=r"optim\.lr was 0\.001, now it is 0\.5"):
        run(small_config("run.steps=2", "optim.lr=0.5"), pictures, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="no run to resume"):
        run(small_config(), pictures, tmp_path / "none", resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(pictures: Path, tmp_path: Path) -> None:
    run(small_config("run.steps=3"), pictures, tmp_path / "run")
    state = list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="step-00000003"):
        run(small_config("run.steps=3"), pictures, tmp_path / "run", resume=True)


def test_training_teaches_the_student_to_agree_with_its_teacher(pictures: Path, tmp_path: Path) -> None:
    # With Sinkhorn targets a network that tells nothing apart has a loss of ln K, and only learning lowers it.
    lengths = ("run.steps=60", "run.evaluate_every=60", "run.checkpoint_every=60")
    config = small_config(*lengths, "dino.centering=sinkhorn", "crops.rotation_degrees=0.0")
    run(config, pictures, tmp_path / "run")
    first, last = losses(tmp_path / "run")[:10], losses(tmp_path / "run")[-10:]
    assert np.mean([loss for _, loss in last]) < np.mean([loss for _, loss in first]) - 0.2


def test_a_provoked_uniform_collapse_is_named_and_stops_the_run(pictures: Path, tmp_path: Path) -> None:
    # A teacher this warm puts every picture on all prototypes alike from the first step on.
    config = small_config(
        "run.steps=80", "dino.teacher_temp=100.0", "dino.teacher_temp_end=100.0", "dino.koleo_weight=0.0", "optim.lr=0.01"
    )
    with pytest.raises(Collapse, match="Uniform collapse at step"):
        run(config, pictures, tmp_path / "run")
    assert losses(tmp_path / "run")[-1][1] == pytest.approx(math.log(16), rel=0.01)


def test_a_run_is_not_resumed_on_other_pictures(pictures: Path, tmp_path: Path) -> None:
    run(small_config("run.steps=2"), pictures, tmp_path / "run")
    other = draw_folder(tmp_path / "other", 43)
    with pytest.raises(InputError, match="begun with other pictures to learn from"):
        run(small_config("run.steps=2"), other, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="begun with other pictures held out"):
        train(small_config("run.steps=2"), [open_source(pictures)], tmp_path / "run", held_out=open_source(other), resume=True)


def test_what_is_refused_leaves_nothing_that_stands_in_the_way(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower --batch-size"):
        run(small_config("run.batch_size=64"), pictures, tmp_path / "run")
    run(small_config("run.steps=1"), pictures, tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume"):
        run(small_config(), pictures, tmp_path / "missing", resume=True)
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run(small_config(), pictures, tmp_path / "file")


def test_a_second_writer_of_a_run_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = WriterLock(tmp_path / "run" / LOCK_FILE)
    with pytest.raises(EnvironmentProblem, match="is being written by process"):
        run(small_config("run.steps=1"), pictures, tmp_path / "run")
    lock.release()
    run(small_config("run.steps=1"), pictures, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_cannot_be_read_are_one_sentence(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number}.jpg").write_text("no picture")
    with pytest.raises(InputError) as caught:
        run(small_config(f"run.workers={workers}"), folder, tmp_path / "run")
    assert str(caught.value) == f"None of the 22 pictures of {folder} can be read."


def test_a_full_disk_is_named(pictures: Path, tmp_path: Path) -> None:
    program = f"""
import resource, signal
from pathlib import Path
from featkit.sources import open_source
from featkit_train.loop import train
from tests.train.small import small_config
config = small_config("run.steps=1", "run.held_out=0")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
train(config, [open_source({str(pictures)!r})], Path({str(tmp_path / "run")!r}))
"""
    status, _, error = run_python(program)
    assert status != 0
    assert "EnvironmentProblem" in error.splitlines()[-1]
    assert "File too large" in error.splitlines()[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == []


def test_weights_decay_and_vectors_do_not() -> None:
    backbone = VisionTransformer(small_config().model)
    decaying, still = make_optimizer(backbone, OptimConfig()).param_groups
    assert {parameter.ndim for parameter in still["params"]} == {1}
    assert min(parameter.ndim for parameter in decaying["params"]) > 1
    assert len(decaying["params"]) + len(still["params"]) == len(list(backbone.parameters()))


def test_the_schedules_reach_the_optimizer(pictures: Path, tmp_path: Path) -> None:
    config = small_config("optim.lr=0.01", "optim.weight_decay=0.1", "optim.weight_decay_end=0.2")
    started = Run(
        config, [open_source(pictures)], tmp_path / "run", held_out=None, on_log=lambda _: None, on_note=lambda _: None
    )
    lr, weight_decay = started._set_schedules(0)
    decaying, still = started.optimizer.param_groups
    assert lr == decaying["lr"] == still["lr"] == pytest.approx(0.01 / 3)
    assert weight_decay == decaying["weight_decay"] == pytest.approx(0.1)
    assert still["weight_decay"] == 0.0


def test_peak_lr_follows_its_rule() -> None:
    assert peak_lr(OptimConfig(lr=1e-3, lr_rule="linear"), 512) == pytest.approx(2e-3)
    assert peak_lr(OptimConfig(lr=1e-3, lr_rule="constant"), 512) == pytest.approx(1e-3)


def test_device_and_precision_are_what_is_there() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_autocast("float32", torch.device("cpu")) is None
    assert pick_autocast("bfloat16", torch.device("cpu")) is torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            pick_device("cuda")
    with pytest.raises(InputError, match="gpu, which torch does not know"):
        pick_device("gpu")
