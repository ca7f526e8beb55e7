"""Tests of the studies of self-distillation: their gains, their resume, and the page about them."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from featkit.sources import Source, open_source
from featkit_train.watching.judging import paired_gain
from tests.benchmarks import bench_self_distillation, draw_self_distillation
from tests.benchmarks.draw_self_distillation import (
    OUT,
    PAGE,
    exits,
    generations,
    momentum,
    verdict,
)
from tests.benchmarks.labeled import Images, Setting, few_of_each
from tests.benchmarks.record import RESULTS, read_figures
from tests.benchmarks.studies import (
    STUDENTS,
    STUDIES,
    TEACHER,
    Laboratory,
    figures_of_students,
    gain_over,
    kept_and_wrong,
    train_students,
)
from tests.benchmarks.svg_charts import Line, Panel, columns_chart, rows_chart
from tests.train.labeled.small import draw_kinds


def answers(rng: np.random.Generator) -> np.ndarray:
    """Return random probabilities of 40 images and 3 classes."""
    return rng.dirichlet(np.ones(3), size=40)


def test_the_gain_of_one_seed_is_the_paired_gain() -> None:
    rng = np.random.default_rng(0)
    before, after, labels = answers(rng), answers(rng), rng.integers(3, size=40)
    ours, known = gain_over([(before, after)], labels), paired_gain(before, after, labels)
    assert ours.difference == pytest.approx(known.difference)
    assert ours.standard_error == pytest.approx(known.standard_error)


def test_the_gain_of_two_seeds_is_a_mean_over_images() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=40)
    pairs = [(answers(rng), answers(rng)) for _ in range(2)]
    differences = []
    for n, label in enumerate(labels):
        each = [
            float(after[n].argmax() == label) - float(before[n].argmax() == label)
            for before, after in pairs
        ]
        differences.append(sum(each) / 2)
    gain = gain_over(pairs, labels)
    assert gain.difference == pytest.approx(statistics.fmean(differences))
    assert gain.standard_error == pytest.approx(statistics.pstdev(differences) / math.sqrt(40))


def test_a_threshold_keeps_only_confident_images() -> None:
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]])
    truth = np.array([0, 1, 0, 0])
    assert kept_and_wrong(probs, truth, 0.0) == [1.0, 0.5]
    assert kept_and_wrong(probs, truth, 0.8) == [0.5, 0.5]
    assert kept_and_wrong(probs, truth, 0.95) == [0.0, 0.0]


def test_few_of_each_class_are_drawn_and_the_rest_left() -> None:
    labels = np.array(["cat", "dog"] * 10)
    few, rest = few_of_each(labels, 3)
    assert sorted(few + rest) == list(range(20))
    assert sorted(labels[few]) == ["cat"] * 3 + ["dog"] * 3


def gain(difference: float, *by_seed: float, error: float = 0.004) -> dict[str, Any]:
    """Return a gain as the studies write it."""
    before = [0.4 for _ in by_seed]
    return {
        "before": before,
        "difference": difference,
        "standard error": error,
        "by seed": list(by_seed),
    }


def test_a_gain_counts_if_every_seed_has_it() -> None:
    assert verdict(gain(0.01, 0.008, 0.012)).sign == 1
    assert verdict(gain(-0.01, -0.008, -0.012)).sign == -1
    assert verdict(gain(0.01, -0.002, 0.022)).sign == 0
    assert verdict(gain(0.006, 0.005, 0.007)).sign == 0
    assert verdict(gain(0.01, 0.008, 0.012)).words == "gains 1.0 ± 0.4 points"
    assert "within noise" in verdict(gain(0.006, 0.005, 0.007)).words


def figures_of_generations(gains: dict[str, Any]) -> dict[str, Any]:
    """Return results of generations with those gains."""
    row = {"accuracy": 0.4, "ece": 0.1, "parameters": 1000}
    return {
        "steps": 100,
        "batch size": 10,
        "images with labels": 500,
        "test images": 2750,
        "classes": 10,
        "pixels": 48,
        "trainings": {"0": {"generation-0": row}, "1": {"generation-0": row}},
        "gains over generation 0": gains,
    }


@pytest.mark.parametrize(
    ("difference", "claim"),
    [
        (0.02, "A student of the same architecture surpasses its teacher"),
        (0.001, "No student surpasses the first network beyond noise"),
        (-0.02, "A student of the same architecture falls behind"),
    ],
)
def test_the_claim_on_generations_follows_the_gain(difference: float, claim: str) -> None:
    section = generations(
        figures_of_generations({"generation 1": gain(difference, difference, difference)})
    )
    assert claim in section.text
    assert "2 passes over these images" in section.text
    assert f"{40 + 100 * difference:.1f}" in section.chart


def run_of(momentum_: float, teacher: float, *, collapses: bool = False) -> dict[str, Any]:
    """Return a run of the sweep of momentum."""
    return {
        "seed": 0,
        "centering": "sinkhorn",
        "momentum": momentum_,
        "teacher": teacher,
        "student": teacher + 0.01,
        "centered pixels": 0.03,
        "teacher_entropy": 0.5,
        "batch_entropy": 0.5,
        "rankme": 20.0,
        "collapses": ["Uniform collapse at step 3"] if collapses else [],
    }


def test_the_claim_on_momentum_follows_the_runs() -> None:
    known = {"steps": 10, "batch size": 4, "neighbors": 20, "gallery": 50, "test images": 900}
    runs = [run_of(0.0, 0.04, collapses=True), run_of(0.9, 0.10), run_of(0.999, 0.05)]
    text = momentum({**known, "runs": runs}).text
    assert "the momentum decides:** the teacher is best at 0.9, with 10.0 %" in text
    assert "0 is too low, with 4.0 %; 0.999 is too high, with 5.0 %" in text
    assert "Outputs collapsed at 0." in text
    flat = [run_of(each, 0.1) for each in (0.0, 0.9, 0.999)]
    text = momentum({**known, "runs": flat}).text
    assert "the momentum changes little at this length" in text
    assert "No run collapsed" in text


def test_names_at_the_end_of_lines_do_not_overlap() -> None:
    lines = [Line(f"line {number}", [1.0, 2.0 + number / 100], color=number) for number in range(4)]
    chart = columns_chart(["a", "b\nc"], lines, title="t", rules=[("r", 2.0)], describe="a < b")
    root = ElementTree.fromstring(chart)
    assert root.attrib["aria-label"] == "a < b"
    names = [
        float(each.attrib["y"])
        for each in root.iter("{http://www.w3.org/2000/svg}text")
        if (each.text or "").startswith(("line", "r "))
    ]
    names.sort()
    assert len(names) == 5
    assert min(b - a for a, b in itertools.pairwise(names)) >= 12


def test_rows_have_a_dot_for_each_seed_and_their_mean() -> None:
    panels = [Panel("accuracy", [[10.0, 20.0], [30.0]], ("teacher", 12.0)), Panel("rest", [[], []])]
    root = ElementTree.fromstring(rows_chart(["a", "b"], panels, describe="rows"))
    svg = "{http://www.w3.org/2000/svg}"
    assert len(list(root.iter(f"{svg}circle"))) == 3
    words = [each.text for each in root.iter(f"{svg}text")]
    assert {"a", "b", "15.0", "30.0", "teacher 12"} <= set(words)


def test_the_committed_page_is_made_from_the_results(tmp_path: Path) -> None:
    files = draw_self_distillation.write_page(RESULTS, tmp_path)
    for file in files:
        committed = OUT / file.name
        assert committed.is_file(), f"run python -m {draw_self_distillation.__name__}"
        assert committed.read_text(encoding="utf-8") == file.read_text(encoding="utf-8")
    assert (tmp_path / PAGE).is_file()


@pytest.fixture
def lab(tmp_path: Path) -> Laboratory:
    """Two kinds of drawn images and a tiny network."""

    def drawn(name: str, count: int, first: int) -> Source:
        return open_source(draw_kinds(tmp_path / name, count, first=first))

    labeled = drawn("labeled", 8, 0)
    images = Images(labeled, labeled, labeled, drawn("rest", 8, 50), drawn("test", 6, 100))
    setting = Setting(
        open=lambda: images,
        settings=(
            "classifier.arch=timm:resnet18",
            "classifier.options={layers: [1, 1, 1, 1], channels: [4, 8, 8, 12]}",
            "classifier.small_stem=true",
            "crops.global_size=32",
        ),
        steps=4,
        few_steps=4,
        exits="[1, 3]",
    )
    (tmp_path / "room").mkdir()
    return Laboratory(
        setting=setting, images=images, room=tmp_path / "room", seeds=(0,), quick=True
    )


def test_a_study_repeats_no_finished_training(
    lab: Laboratory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> str:
        bench_self_distillation.run(
            "exits", STUDIES["exits"], lab, images="things", results=tmp_path
        )
        return capsys.readouterr().out

    assert "network: 4 steps" in run()
    first = read_figures("self_distillation_exits", folder=tmp_path)
    assert "steps\n" not in run()
    assert read_figures("self_distillation_exits", folder=tmp_path) == first
    assert set(first["gains over the plain network"]) == {
        *("exit 1", "exit 2", "exit 3"),
        "all exits together",
    }
    assert "exit 3" in exits(first).text


def test_students_of_a_seed_share_their_teacher(lab: Laboratory) -> None:
    train_students(lab, lambda: None)
    rounds = sorted(path.parent.name for path in lab.room.glob(f"*/{TEACHER}"))
    assert rounds == [f"self-training-0-{name.replace(' ', '-')}" for name in sorted(STUDENTS)]
    teachers = {
        (lab.room / name / TEACHER / "classifier.safetensors").read_bytes() for name in rounds
    }
    assert len(teachers) == 1
    figures = figures_of_students(lab)
    assert set(figures["gains over the teacher"]) <= set(STUDENTS)
    for of_seed in figures["pseudo-labels"].values():
        for row in of_seed.values():
            assert 0 <= row["repeated"] + row["corrected"] <= 1.0001
