"""Promises of generations.json: what is written is read, a row is what its parts measure, and all
else is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.evaluate.knn import knn_accuracy
from featkit_train.watching import judging
from featkit_train.watching.judging import Remark
from featkit_train.watching.standing import (
    FORMAT,
    STANDING_FILE,
    Row,
    Standing,
    held_out_knn,
    read_standing,
    write_standing,
)
from tests.sentences import refused


def row(name: str = "generation-1", **more: Any) -> Row:
    figures = {"kind": "generation", "accuracy": 0.5, "standard_error": 0.02, "ece": 0.1}
    return Row(name=name, **{**figures, **more})


def standing(*rows: Row, **more: Any) -> Standing:
    values = {
        "name": "run",
        "method": "born_again",
        "num_held_out": 500,
        "classes": ["cat", "dog"],
        "remarks": [],
    }
    return Standing(
        **{**values, "rows": list(rows), "chosen": rows[0].name if rows else "", **more}
    )


def drawn(num_images: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of student and teacher (N, K), labels (N,), vectors (N, D)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, num_images)
    probs, teacher = (
        rng.dirichlet([1, 1, 1], num_images) + np.eye(3)[labels] / 2 for _ in range(2)
    )
    return (
        probs / 1.5,
        teacher / 1.5,
        labels,
        rng.normal(size=(num_images, 8)) + 2 * np.eye(8)[labels],
    )


# -- rows ------------------------------------------------------------------------------------------


def test_a_row_is_what_its_parts_measure() -> None:
    probs, teacher, labels, vectors = drawn()
    made = Row.of(
        "generation-2",
        "generation",
        probs,
        labels,
        teacher_probs=teacher,
        vectors=vectors,
        copies=0.9,
        seconds=3.0,
    )
    share = judging.accuracy(probs, labels)
    assert 0 < share < 1
    assert made == row(
        "generation-2",
        accuracy=share,
        standard_error=math.sqrt(share * (1 - share) / 60),
        ece=judging.expected_calibration_error(probs, labels),
        wrong_confidence=judging.confidence_when_wrong(probs, labels),
        shared_errors=judging.shared_errors(probs, teacher, labels),
        knn=knn_accuracy(vectors[::2], labels[::2], vectors[1::2], labels[1::2], k=20),
        copies=0.9,
        seconds=3.0,
    )


def test_what_was_not_given_is_not_in_the_row() -> None:
    probs, _, labels, _ = drawn()
    made = Row.of("exit-1", "exit", probs, labels)
    assert (
        made.knn,
        made.copies,
        made.shared_errors,
        made.seconds,
        made.images_per_s,
        made.parameters,
    ) == (None,) * 6


def test_knn_is_not_measured_with_one_label_or_too_few_images() -> None:
    vectors = np.eye(8)
    assert held_out_knn(vectors, np.zeros(8, np.int64)) is None
    assert held_out_knn(vectors, np.arange(8) % 3) is None
    assert held_out_knn(vectors[np.arange(8) // 2 % 2], np.arange(8) // 2 % 2) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"accuracy": math.nan},
        {"accuracy": "0.5"},
        {"accuracy": None},
        {"accuracy": True},
        {"ece": 1.1},
        {"knn": -0.1},
        {"seconds": math.inf},
        {"kind": "epoch"},
        {"name": ""},
    ],
)
def test_a_row_with_a_figure_that_cannot_be_is_a_value_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"generation-1|a row has a name"):
        row(**wrong)


def test_rows_have_unique_names_and_the_choice_is_one_of_them() -> None:
    with pytest.raises(ValueError, match="not unique"):
        standing(row(), row())
    with pytest.raises(ValueError, match="the rows are generation-1"):
        standing(row(), chosen="generation-2")
    with pytest.raises(ValueError, match="the rows are empty"):
        standing(chosen="generation-2")


def test_the_best_row_is_the_first_of_the_most_accurate() -> None:
    rows = [row("a"), row("b", accuracy=0.6), row("c", accuracy=0.6)]
    assert standing(*rows).best is rows[1]
    assert standing().best is None
    assert standing(*rows).row("c") is rows[2]


# -- the file --------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [
        row(
            knn=0.4,
            copies=1,
            seconds=12.5,
            images_per_s=1e4,
            parameters=5_000_000,
            wrong_confidence=0.3,
            shared_errors=0.0,
        ),
        row("ensemble of é", kind="ensemble"),
    ]
    remarks = [Remark("no_gain", 0.003, "Generation 2 does not.")]
    for one in (
        standing(*rows, remarks=remarks, classes=["caf\udce9", "犬"], chosen="ensemble of é"),
        standing(),
    ):
        write_standing(tmp_path, one)
        assert read_standing(tmp_path) == one
    assert not list(tmp_path.glob("*.partial-*"))


def test_the_same_standing_gives_the_same_bytes(tmp_path: Path) -> None:
    write_standing(tmp_path, standing(row()))
    once = (tmp_path / STANDING_FILE).read_bytes()
    write_standing(tmp_path, standing(row()))
    assert (tmp_path / STANDING_FILE).read_bytes() == once
    assert json.loads(once)["format"] == FORMAT


def test_a_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, f"has no {STANDING_FILE}"):
        read_standing(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STANDING_FILE).write_bytes(content)
    with refused(tmp_path / STANDING_FILE, "is not JSON"):
        read_standing(tmp_path)


def test_a_newer_format_is_refused_whatever_else_it_holds(tmp_path: Path) -> None:
    (tmp_path / STANDING_FILE).write_text(json.dumps({"format": FORMAT + 1, "exits": {}}))
    with refused(STANDING_FILE, f"format {FORMAT + 1}, newer than the {FORMAT}", "update featkit"):
        read_standing(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [{"name": "a"}]},
        {"rows": [3]},
        {"rows": None},
        {"remarks": [{"name": "a", "figure": 1, "sentence": 3}]},
        {"classes": "cat"},
        {"classes": [1]},
        {"num_held_out": "many"},
        {"chosen": "generation-7"},
        {"name": None},
        {"format": "1"},
        {"format": 0},
        {"unknown": 1},
    ],
)
def test_a_file_that_is_no_standing_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    values = {**dataclasses.asdict(standing(row())), **change}
    (tmp_path / STANDING_FILE).write_text(json.dumps(values))
    with refused(tmp_path / STANDING_FILE, "damaged or not featkit's"):
        read_standing(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}"])
def test_json_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / STANDING_FILE).write_text(text)
    with refused(STANDING_FILE, "damaged or not featkit's"):
        read_standing(tmp_path)
