"""Promises of self-training: students learn images without labels by their teacher's, and what is
held out stays unseen."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from featkit.errors import InputError
from featkit.sources import Source, open_source
from featkit_train.config import TrainConfig
from featkit_train.engine.checkpoints import list_checkpoints
from featkit_train.labeled import self_training
from featkit_train.labeled.course import CourseListener
from featkit_train.labeled.pseudo_labels import PSEUDO_FILE
from featkit_train.run_folder import CHECKPOINTS
from featkit_train.watching.standing import read_standing
from featkit_train.weights import CLASSIFIER_FILE
from tests.train.labeled.small import draw_kinds, labeled_config


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    root = tmp_path_factory.mktemp("parts")
    firsts = {"labeled": (10, 0), "unlabeled": (20, 100), "held_out": (8, 300)}
    return {
        name: open_source(draw_kinds(root / name, count, first=first))
        for name, (count, first) in firsts.items()
    }


def config(*settings: str) -> TrainConfig:
    return labeled_config(
        "self-training", "self_training.confidence=0.0", "self_training.patience=9", *settings
    )


def train(
    parts: dict[str, Source],
    out: Path,
    *settings: str,
    listener: CourseListener | None = None,
    resume: bool = False,
) -> list[str]:
    """The digests of the rounds."""
    sources = [parts["labeled"]], [parts["unlabeled"]]
    self_training(
        config(*settings),
        *sources,
        out,
        held_out=parts["held_out"],
        listener=listener,
        resume=resume,
    )
    folders = sorted(out.glob("round-*/" + CLASSIFIER_FILE))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in folders]


@pytest.fixture(scope="module")
def run(
    parts: dict[str, Source], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("run") / "run"
    return out, train(parts, out)


def test_a_teacher_and_two_students_are_tabled(run: tuple[Path, list[str]]) -> None:
    standing = read_standing(run[0])
    assert [row.name for row in standing.rows] == ["round-0", "round-1", "round-2"]
    assert {row.kind for row in standing.rows} == {"round"}
    assert standing.num_held_out == 16
    assert standing.chosen in {"round-0", "round-1", "round-2"}
    assert (run[0] / "report.html").is_file()


@pytest.mark.parametrize(
    "setting",
    ["self_training.pseudo=hard", "self_training.labeled_share=0.6", "labels.smoothing=0.2"],
)
def test_students_learn_what_the_settings_say(
    setting: str, parts: dict[str, Source], run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    digests = train(parts, tmp_path / "run", setting, "self_training.rounds=1")
    assert digests[1] != run[1][1]
    assert (digests[0] == run[1][0]) == (not setting.startswith("labels"))


def test_students_are_as_long_as_they_are_told(
    parts: dict[str, Source], run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    settings = ("self_training.student_length=1.5", "self_training.rounds=1")
    digests = train(parts, tmp_path / "run", *settings)
    assert digests[0] == run[1][0]
    assert digests[1] != run[1][1]
    steps = config().run.steps
    lengths = [
        list_checkpoints(tmp_path / "run" / f"round-{number}" / CHECKPOINTS)[-1].name
        for number in range(2)
    ]
    assert lengths == [f"step-{steps:08d}", f"step-{round(1.5 * steps):08d}"]
    # Whole, neither is trained again.
    trained: list[str] = []
    listener = CourseListener(on_training=lambda name, _steps: trained.append(name))
    assert train(parts, tmp_path / "run", *settings, listener=listener, resume=True) == digests
    assert trained == []


def test_labels_of_the_unlabeled_are_not_looked_at(
    parts: dict[str, Source], run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    plain = parts["unlabeled"]

    class WithoutLabels:
        """The same images; asking for a label is an error."""

        name, file, key, read = plain.name, plain.file, plain.key, plain.read
        skipped = plain.skipped

        def __len__(self) -> int:
            return len(plain)

        def metadata(self, number: int) -> dict[str, str | int | float]:
            raise AssertionError(f"the label of {number} was asked for")

    assert (
        train({**parts, "unlabeled": WithoutLabels()}, tmp_path / "run", "self_training.rounds=1")
        == run[1][:2]
    )


def test_nothing_held_out_is_labeled_or_learned(
    parts: dict[str, Source], run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    other = open_source(draw_kinds(tmp_path / "other", 5, first=500))
    assert train({**parts, "held_out": other}, tmp_path / "run") == run[1], (
        "the same networks whatever is held out"
    )
    probs = np.load(run[0] / "round-1" / PSEUDO_FILE)
    assert len(probs) == len(parts["unlabeled"])
    with pytest.raises(InputError, match="is among both the held-out and the unlabeled images"):
        train({**parts, "unlabeled": parts["held_out"]}, tmp_path / "mixed")


def test_a_teacher_that_is_sure_of_nothing_ends_it(
    parts: dict[str, Source], tmp_path: Path
) -> None:
    said: list[str] = []
    digests = train(
        parts,
        tmp_path / "run",
        "self_training.confidence=1.0",
        listener=CourseListener(on_note=said.append),
    )
    assert len(digests) == 1
    standing = read_standing(tmp_path / "run")
    assert "nothing_accepted" in [remark.name for remark in standing.remarks]
    assert any("reach the confidence of 1" in sentence for sentence in said)


def test_labels_that_fall_on_one_class_are_named(parts: dict[str, Source], tmp_path: Path) -> None:
    train(
        parts, tmp_path / "run", "optim.lr=0.0", "optim.min_lr=0.0", "self_training.balance=false"
    )
    remarks = {remark.name: remark for remark in read_standing(tmp_path / "run").remarks}
    counts = np.bincount(
        np.load(tmp_path / "run" / "round-1" / PSEUDO_FILE).argmax(axis=1), minlength=2
    )
    assert ("few_classes" in remarks) == (min(counts) == 0)
