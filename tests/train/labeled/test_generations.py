"""Promises of generations: each learns from the one before, never from held-out images, and kept
logits change nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featkit.errors import InputError, Interrupted
from featkit.sources import Source, open_source
from featkit_train.config import TrainConfig
from featkit_train.images.crops import CropDataset
from featkit_train.labeled import born_again, teacher_logits
from featkit_train.labeled.course import CourseListener
from featkit_train.watching.standing import Standing, read_standing
from featkit_train.weights import CLASSIFIER_FILE, load_backbone, load_classifier
from tests.train.labeled.small import draw_kinds, labeled_config

PATIENT = ("born_again.patience=9", "born_again.generations=2")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(draw_kinds(tmp_path_factory.mktemp("images"), 20))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(draw_kinds(tmp_path_factory.mktemp("held_out"), 10, first=100))


def config(*settings: str) -> TrainConfig:
    return labeled_config("born-again", *PATIENT, *settings)


@pytest.fixture(scope="module")
def run(images: Source, held_out: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    born_again(config(), [images], out, held_out=held_out)
    return out


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / CLASSIFIER_FILE).read_bytes()).hexdigest()


def test_the_best_generation_is_the_result(
    run: Path,
) -> None:
    standing = read_standing(run)
    assert [row.name for row in standing.rows] == [
        *(
            "generation-0",
            "generation-1",
            "generation-2",
            "ensemble of 2",
            "ensemble of all, generation 0 too",
        ),
    ]
    assert standing.num_held_out == 20
    assert standing.classes == ["blue", "red"]
    best = max(standing.rows[:3], key=lambda row: row.accuracy)
    assert standing.chosen == best.name
    assert digest(run) == digest(run / best.name)
    backbone, info = load_backbone(run)
    assert info.family == "born-again"
    assert backbone.width == 12
    assert (run / "report.html").is_file()
    first, second = standing.rows[:2]
    assert first.shared_errors is None
    assert (second.shared_errors is None) == (first.accuracy == 1.0)
    assert all(row.knn is not None and row.copies is not None for row in standing.rows)


def test_every_generation_learns_from_the_one_before(
    images: Source, held_out: Source, run: Path, tmp_path: Path
) -> None:
    digests = [digest(run / f"generation-{number}") for number in range(3)]
    assert len(set(digests)) == 3
    alone = tmp_path / "alone"
    born_again(config("knowledge.teacher_weight=0.0"), [images], alone, held_out=held_out)
    assert digest(alone / "generation-0") == digests[0]
    assert digest(alone / "generation-1") != digests[1]


def test_nothing_held_out_is_learned_labeled_or_distilled_on(
    images: Source, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()
    image = CropDataset._image

    def recording(self: CropDataset, number: int) -> Any:
        asked.add(f"{self.source.file(number)}")
        return image(self, number)

    monkeypatch.setattr(CropDataset, "_image", recording)
    settings = ("born_again.generations=1", "run.steps=12", "crops.fixed_views=2")
    # a tenth of them held out by featkit, logits kept
    born_again(config(*settings), [images], tmp_path / "own")
    learned = {str(images.file(number)) for number in range(len(images))}
    assert len(asked) == 36
    assert asked < learned
    # And the whole of what is learned is the same whatever is held out: other images, of other
    # labels.
    monkeypatch.undo()
    other = open_source(draw_kinds(tmp_path / "other", 6, first=300, kinds=("red", "blue")))
    born_again(config(), [images], tmp_path / "again", held_out=other)
    for number in range(3):
        assert digest(tmp_path / "again" / f"generation-{number}") == digest(
            run / f"generation-{number}"
        )


@pytest.mark.parametrize("mode", ["kd", "dkpp", "cwtm"])
def test_kept_logits_are_the_teachers_for_the_same_views(
    mode: str, images: Source, held_out: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []
    keep = teacher_logits.keep_logits

    def recording(path: Path, *given: Any, **named: Any) -> None:
        kept.append(path)
        keep(path, *given, **named)

    monkeypatch.setattr("featkit_train.labeled.generations.keep_logits", recording)
    settings = (
        f"knowledge.mode={mode}",
        "crops.fixed_views=3",
        "born_again.generations=1",
        "run.batch_size=4",
    )
    for cache in ("auto", "never"):
        out = tmp_path / cache
        born_again(
            config(*settings, f"knowledge.cache={cache}", "run.steps=30"),
            [images],
            out,
            held_out=held_out,
        )
    assert kept == [tmp_path / "auto" / "generation-1" / teacher_logits.LOGITS_FILE]
    assert not kept[0].exists(), "they are of no more use"
    ours, theirs = (
        load_classifier(tmp_path / cache / "generation-1" / CLASSIFIER_FILE)[0]
        for cache in ("auto", "never")
    )
    for (name, tensor), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-4, msg=name)


def test_a_course_that_was_stopped_goes_on_to_the_same_networks(
    images: Source, held_out: Source, run: Path, tmp_path: Path
) -> None:
    out, seen = tmp_path / "run", 0

    def stop_within_generation_1(log: dict[str, float]) -> None:
        nonlocal seen
        seen += "loss" in log
        if seen == 3:
            raise Interrupted("power cut")

    with pytest.raises(Interrupted):
        born_again(
            config(),
            [images],
            out,
            held_out=held_out,
            listener=CourseListener(on_log=stop_within_generation_1),
        )
    assert not (out / "generation-2").exists()
    begun: list[str] = []
    listener = CourseListener(on_training=lambda name, _steps: begun.append(name))
    born_again(config(), [images], out, held_out=held_out, resume=True, listener=listener)
    assert begun == ["generation-1", "generation-2"]
    for number in range(3):
        assert digest(out / f"generation-{number}") == digest(run / f"generation-{number}")
    assert [row["accuracy"] for row in rows(out)] == [row["accuracy"] for row in rows(run)]


def rows(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "generations.json").read_text())["rows"]
    return found


def test_it_ends_when_generations_do_not_beat_their_teachers(
    images: Source, held_out: Source, tmp_path: Path
) -> None:
    said: list[str] = []
    standing = born_again(
        config(
            "born_again.patience=1", "born_again.generations=5", "optim.lr=0.0", "optim.min_lr=0.0"
        ),
        [images],
        tmp_path / "run",
        held_out=held_out,
        listener=CourseListener(on_note=said.append),
    )
    generations = [row for row in standing.rows if row.kind == "generation"]
    assert 2 <= len(generations) < 6
    assert standing.remarks[-1].name == "no_gain"
    assert standing.remarks[-1].sentence.startswith(f"Generation {len(generations) - 1} ")
    assert standing.remarks[-1].sentence in said


def test_students_of_another_architecture(images: Source, held_out: Source, tmp_path: Path) -> None:
    student = (
        "{arch: 'timm:vit_tiny_patch16_224', options: {img_size: 32, patch_size: 8, embed_dim: 24,"
        " depth: 2, num_heads: 2}}"
    )
    out = tmp_path / "run"
    standing: Standing = born_again(
        config(f"born_again.student={student}", "born_again.generations=1"),
        [images],
        out,
        held_out=held_out,
    )
    widths = [load_backbone(out / f"generation-{number}")[0].width for number in range(2)]
    assert widths == [12, 24]
    assert standing.rows[0].parameters != standing.rows[1].parameters


def test_other_images_and_other_settings_are_refused_on_resume(
    images: Source, held_out: Source, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"was begun with other settings: optim.lr was 0.01 and is now 0.5"
    ):
        born_again(config("optim.lr=0.5"), [images], run, held_out=held_out, resume=True)
    with pytest.raises(InputError, match="was begun with other images held out"):
        born_again(
            config(),
            [images],
            run,
            held_out=open_source(draw_kinds(tmp_path, 3, first=400)),
            resume=True,
        )
    with pytest.raises(InputError, match="holds a run already"):
        born_again(config(), [images], run, held_out=held_out)


def test_a_second_view_of_one_image_is_another_one(images: Source) -> None:
    small = config("crops.fixed_views=2")
    dataset = CropDataset(images, crops=small.crops, color=small.color, seed=0, cache_bytes=1 << 20)
    first, second, again = (dataset[view, 3, 0].global_crops.images for view in (0, 1, 0))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_images_without_a_label_are_counted_aloud(
    images: Source, held_out: Source, tmp_path: Path
) -> None:
    class Some:
        """The same, the first three without a label."""

        name, file, key, read = images.name, images.file, images.key, images.read
        skipped = images.skipped

        def __len__(self) -> int:
            return len(images)

        def metadata(self, number: int) -> dict[str, str | int | float]:
            return images.metadata(number) if number >= 3 else {}

    said: list[str] = []
    settings = ("born_again.generations=0", "run.steps=1")
    born_again(
        config(*settings),
        [Some()],
        tmp_path / "run",
        held_out=held_out,
        listener=CourseListener(on_note=said.append),
    )
    assert said == ["Left out: 3 images without a label."]
