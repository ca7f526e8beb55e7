"""Promises of checkpoints: states are restored bit for bit, and unusable files are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featkit.errors import InputError
from featkit_train.engine import checkpoints
from featkit_train.engine.checkpoints import (
    FORMAT,
    PROGRESS_FILE,
    STATE_FILE,
    Progress,
    list_checkpoints,
    load_checkpoint,
    load_method,
    save_checkpoint,
)
from featkit_train.engine.optimizer import make_optimizer
from tests.train.methods.training import draw, random_views, take_step
from tests.train.momentum import make_teacher
from tests.train.small import small_config


class Training:
    """A small method with its optimizer, which steps on drawn views."""

    def __init__(self, *settings: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = small_config("method=dinov2", *settings)
        self.method = make_teacher(config)
        self.optimizer = make_optimizer(self.method, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-3

    def step(self, number: int) -> float:
        """Take one optimization step; return its loss."""
        result, _ = take_step(self.method, random_views(seed=number), step=number)
        self.method.before_optimizer(step=number)
        self.optimizer.step()
        self.method.after_optimizer(step=number)
        return float(result.loss.detach())

    def save(self, folder: Path, *, step: int, keep: int = 2) -> Path:
        """Write a checkpoint after `step` steps."""
        progress = Progress(
            step=step,
            scores={"copy_recall": 0.5},
            best_step=1,
            best_scores={"copy_recall": 0.75},
            falls=1,
        )
        return save_checkpoint(
            folder, progress=progress, method=self.method, optimizer=self.optimizer, keep=keep
        )

    def load(self, path: Path) -> Progress:
        """Restore a checkpoint in place."""
        return load_checkpoint(path, method=self.method, optimizer=self.optimizer)


def two_steps() -> Training:
    """Return a training whose moments and center differ from their initial values."""
    training = Training()
    for number in range(2):
        training.step(number)
    return training


@pytest.fixture(scope="module")
def trained() -> Training:
    """Return a training for all tests that only save it."""
    return two_steps()


def test_method_and_optimizer_are_restored_bit_for_bit(trained: Training, tmp_path: Path) -> None:
    path = trained.save(tmp_path, step=2)
    other = Training(seed=1)
    expected = Progress(
        step=2, scores={"copy_recall": 0.5}, best_step=1, best_scores={"copy_recall": 0.75}, falls=1
    )
    assert other.load(path) == expected
    for name, tensor in trained.method.state_dict().items():
        assert torch.equal(tensor, other.method.state_dict()[name]), name
    ours, theirs = trained.optimizer.state_dict(), other.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, moments in ours["state"].items():
        assert {"step", "exp_avg", "exp_avg_sq"} <= set(moments)
        for name, tensor in moments.items():
            assert torch.equal(tensor, theirs["state"][number][name]), (number, name)
            assert tensor.dtype == theirs["state"][number][name].dtype


def test_resumed_steps_equal_the_unbroken_ones(tmp_path: Path) -> None:
    trained = two_steps()
    path = trained.save(tmp_path, step=2)
    resumed = Training(seed=1)
    resumed.load(path)
    assert [resumed.step(number) for number in (2, 3)] == [
        trained.step(number) for number in (2, 3)
    ]
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            resumed.method.parameters(), trained.method.parameters(), strict=True
        )
    )


def test_equal_states_give_equal_bytes_without_pickles(trained: Training, tmp_path: Path) -> None:
    first, second = trained.save(tmp_path / "a", step=2), trained.save(tmp_path / "b", step=2)
    assert sorted(file.name for file in first.iterdir()) == [PROGRESS_FILE, STATE_FILE]
    assert (first / STATE_FILE).read_bytes() == (second / STATE_FILE).read_bytes()
    assert json.loads((first / PROGRESS_FILE).read_text()) == {
        "format": FORMAT,
        "step": 2,
        "scores": {"copy_recall": 0.5},
        "best_step": 1,
        "best_scores": {"copy_recall": 0.75},
        "falls": 1,
        "given_up": False,
        "unreadable": 0,
    }


def test_old_checkpoint_counts_no_unreadable_images(trained: Training, tmp_path: Path) -> None:
    path = trained.save(tmp_path, step=2)
    record = json.loads((path / PROGRESS_FILE).read_text())
    del record["unreadable"]
    (path / PROGRESS_FILE).write_text(json.dumps(record))
    progress = Training(seed=1).load(path)
    assert (progress.step, progress.unreadable) == (2, 0)


def test_only_the_newest_checkpoints_are_kept(trained: Training, tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        path = trained.save(tmp_path, step=step, keep=3)
        assert list_checkpoints(tmp_path)[-1] == path
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000009",
        "step-00000010",
        "step-00000100",
    ]


def test_existing_checkpoint_is_left_unchanged(trained: Training, tmp_path: Path) -> None:
    path = trained.save(tmp_path, step=2)
    before = (path / STATE_FILE).read_bytes()
    assert Training(seed=1).save(tmp_path, step=2) == path
    assert (path / STATE_FILE).read_bytes() == before


def test_interrupted_save_leaves_older_checkpoints_alone(
    trained: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained.save(tmp_path, step=2, keep=1)
    before = (path / STATE_FILE).read_bytes()

    def stop(file: Path, tensors: dict[str, torch.Tensor]) -> None:
        save_file(dict(list(tensors.items())[:3]), file)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        trained.save(tmp_path, step=3, keep=1)
    assert list(tmp_path.iterdir()) == [path]
    assert (path / STATE_FILE).read_bytes() == before
    assert Training(seed=1).load(list_checkpoints(tmp_path)[-1]).step == 2


def test_leftovers_of_a_killed_save_are_removed_by_the_next(
    trained: Training, tmp_path: Path
) -> None:
    left = tmp_path / "step-00000002.partial-0a1b2c3d"
    left.mkdir()
    (left / STATE_FILE).write_bytes(b"half")
    assert list_checkpoints(tmp_path) == []
    path = trained.save(tmp_path, step=3)
    assert list(tmp_path.iterdir()) == [path]


def truncate(path: Path) -> None:
    file = path / STATE_FILE
    file.write_bytes(file.read_bytes()[:-1000])


def remove_progress(path: Path) -> None:
    (path / PROGRESS_FILE).unlink()


def cut_progress(path: Path) -> None:
    (path / PROGRESS_FILE).write_text('{"format": 1, "st')


def empty_progress(path: Path) -> None:
    (path / PROGRESS_FILE).write_text("{}")


def list_as_progress(path: Path) -> None:
    (path / PROGRESS_FILE).write_text("[1, 2]")


@pytest.mark.parametrize(
    "damage", [truncate, remove_progress, cut_progress, empty_progress, list_as_progress]
)
def test_damaged_checkpoint_is_refused_by_name(
    trained: Training, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = trained.save(tmp_path, step=2)
    damage(path)
    with pytest.raises(
        InputError, match=f"{path} cannot be read as a checkpoint .* remove it"
    ) as raised:
        Training().load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1])
def test_checkpoint_of_another_format_is_refused(
    trained: Training, tmp_path: Path, number: int
) -> None:
    path = trained.save(tmp_path, step=2)
    (path / PROGRESS_FILE).write_text(json.dumps({"format": number, "step": 2}))
    with pytest.raises(
        InputError, match=f"{path} has another checkpoint format than this version reads"
    ):
        Training().load(path)


@pytest.mark.parametrize(
    "setting", ["model.width=32", "model.depth=3", "model.depth=1", "dino.head.num_prototypes=8"]
)
def test_checkpoint_of_another_architecture_is_refused(
    trained: Training, tmp_path: Path, setting: str
) -> None:
    path = trained.save(tmp_path, step=2)
    with pytest.raises(InputError, match=f"{path} has another architecture") as raised:
        Training(setting).load(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 300


def test_run_can_start_from_the_weights_of_another(trained: Training, tmp_path: Path) -> None:
    path = trained.save(tmp_path, step=2)
    later = Training("optim.lr=0.5", "crops.num_local=1", seed=1)
    load_method(path, method=later.method)
    for name, tensor in trained.method.state_dict().items():
        assert torch.equal(tensor, later.method.state_dict()[name]), name
    assert not later.optimizer.state_dict()["state"]


def test_stage_keeps_its_own_gram_teacher(
    tmp_path: Path,
) -> None:
    plain, anchored = ["method=dinov3"], ["method=dinov3", "gram.weight=1.0", "gram.size=64"]
    for earlier, later in ((plain, anchored), (anchored, plain), (anchored, anchored)):
        first, second = Training(*earlier, seed=2), Training(*later, seed=1)
        draw(first.method, seed=3)
        own = {
            name: tensor.clone()
            for name, tensor in second.method.state_dict().items()
            if name.startswith("gram_teacher.")
        }
        path = first.save(tmp_path / f"{len(earlier)}-{len(later)}", step=2)
        load_method(path, method=second.method)
        for name, tensor in second.method.state_dict().items():
            assert torch.equal(
                tensor, own[name] if name in own else first.method.state_dict()[name]
            ), name


@pytest.mark.parametrize(
    "setting", ["model.width=32", "model.depth=3", "ibot.head={num_prototypes: 8}", "method=dino"]
)
def test_run_cannot_start_from_another_architecture(
    trained: Training, tmp_path: Path, setting: str
) -> None:
    path = trained.save(tmp_path, step=2)
    with pytest.raises(
        InputError,
        match=f"{path} cannot begin this run: .*; give it the earlier run's model and heads",
    ):
        load_method(path, method=Training(setting).method)
