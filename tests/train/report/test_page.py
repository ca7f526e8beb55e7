"""The page of a run: every number and image of its folder, whatever else is missing, and nothing
from anywhere else."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from featkit.cli.result_page import STYLE
from featkit_train.report import charts, write_report
from featkit_train.report.metrics import read_metrics
from featkit_train.settings import to_mapping
from featkit_train.watching.snapshot_files import Tiles, write_photographs, write_snapshot
from tests.commands import REPOSITORY
from tests.images import draw_image
from tests.sentences import refused
from tests.train.small import small_config

HOSTILE = "<img src=x onerror=alert(1)>\"&'.jpg"
VOID = ("meta", "img", "link", "br", "wbr", "hr", "input")
CURVES = {
    "loss": 5.0,
    "dino_loss": 4.5,
    "teacher_entropy": 0.7,
    "batch_entropy": 0.9,
    "grad_norm": 1.2,
    "lr": 1e-3,
}


class Seen(HTMLParser):
    """The page as a browser reads it: its text and its tags, each of which must be closed."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.source = page.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_run(
    folder: Path, lines: Sequence[Mapping[str, Any]] = (), *, settings: Sequence[str] = ()
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "config": to_mapping(small_config("run.steps=100", *settings)),
        "data": {"names": "pictures/", "keys_sha256": "ab"},
        "versions": {"featkit": "0.1.0"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder


def log(step: int, **more: float) -> dict[str, float]:
    swing = math.sin(step)
    return {
        "step": step,
        **{name: value + 0.1 * value * swing for name, value in CURVES.items()},
        "steps_per_s": 2.0,
        **more,
    }


def make_snapshots(
    run: Path,
    steps: Sequence[int],
    *,
    heads: int | None = 3,
    names: Sequence[str] = ("a.jpg", "b/c.jpg"),
) -> None:
    rng = np.random.default_rng(0)
    write_photographs(
        run / "snapshots", [np.asarray(draw_image(number)) for number in range(len(names))], names
    )
    for step in steps:
        tiles = [
            Tiles(
                rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
                None if heads is None else rng.random((heads, 4, 4)),
            )
            for _ in names
        ]
        write_snapshot(run / "snapshots", step, tiles)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 100 steps of 8 images, with scores, a note and snapshots."""
    scores = [
        {"step": step, "copy_recall": recall, "knn": recall / 2}
        for step, recall in ((0, 0.25), (50, 0.75), (100, 0.5))
    ]
    lines = [
        scores[0],
        *(log(step) for step in range(1, 51)),
        scores[1],
        *(log(step) for step in range(51, 101)),
        scores[2],
    ]
    run = make_run(tmp_path / "run", lines)
    (run / "notes.jsonl").write_text(
        json.dumps({"step": 40, "note": "Momentum is too high."}) + "\n"
    )
    make_snapshots(run, [0, 50, 100])
    return run


# -- what stands on it -----------------------------------------------------------------------------


def test_report_shows_scores_settings_and_notes(run: Path) -> None:
    assert write_report(run) == run / "report.html"
    words = Seen(run / "report.html").words
    for expected in (
        "finished: step 100 of 100",
        "0.250 at step 0 · best 0.750 at step 50",
        "step 40Momentum is too high.",
        "Time in steps50 s",
        "Images seen800",
        "Images per second16",
        "optim.lr0.001",
        "data.names",
        "by DINO",
    ):
        assert expected in words, expected


def test_the_score_shown_is_the_last_one(run: Path) -> None:
    assert "Copy recall@10.500" in Seen(write_report(run)).words


def test_a_training_with_labels_is_judged_by_its_accuracy(tmp_path: Path) -> None:
    taught = {"loss": 2.0, "label_loss": 1.5, "teacher_loss": 0.5, "batch_accuracy": 0.6}
    lines = [
        {"step": step, **{name: value / step for name, value in taught.items()}} for step in (1, 2)
    ]
    found = {"accuracy": 0.5, "accuracy_exit_1": 0.25, "ece": 0.125, "copy_recall": 0.75}
    lines += [
        {"step": step, **{name: value / (3 - step) for name, value in found.items()}}
        for step in (1, 2)
    ]
    make_run(tmp_path)  # of which this is one training
    seen = Seen(write_report(make_run(tmp_path / "generation-1", lines, settings=["name=mine"])))
    first = re.search(r'<div class="card chief"><dt>(.*?)</dt><dd>(.*?)</dd>', seen.source)
    assert first is not None
    assert first.groups() == ("Accuracy, held out", "0.500")
    assert "generation 1" in seen.words
    for title in (
        "Accuracy of the exits",
        "Accuracy in training",
        "Calibration error",
        "Label loss",
        "Teacher loss",
    ):
        assert title in seen.words
    assert "a collapsed student and teacher" not in seen.words
    assert "Other" not in seen.words


def test_every_curve_is_described_in_words(run: Path) -> None:
    drawings = [attributes["aria-label"] or "" for attributes in Seen(write_report(run)).all("svg")]
    shown = "; ".join(drawings)
    for name in (*CURVES, "copy_recall", "knn"):
        assert f"{name}: from " in shown
    assert (
        f"loss: from {charts.number(log(1)['loss'])} at step 1 to {charts.number(log(100)['loss'])}"
        " at step 100" in shown
    )
    assert "teacher_entropy" in next(drawing for drawing in drawings if "batch_entropy" in drawing)


def test_an_unknown_number_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path, [log(step, new_thing=step * 2.0) for step in range(1, 5)])
    seen = Seen(write_report(run))
    assert "new_thing: from 2 at step 1 to 8 at step 4" in [
        attributes["aria-label"] for attributes in seen.all("svg")
    ]
    assert "Other" in seen.words


def test_a_constant_number_is_not_drawn(run: Path) -> None:
    seen = Seen(write_report(run))
    assert "steps_per_s 2 at all steps" in seen.words
    assert not any(
        "steps_per_s" in (attributes["aria-label"] or "") for attributes in seen.all("svg")
    )


def test_each_image_has_a_row_with_a_column_for_each_step(run: Path) -> None:
    seen = Seen(write_report(run))
    assert [
        a["alt"] for a in seen.all("img") if (a["alt"] or "").startswith("Components of a.jpg at")
    ] == [f"Components of a.jpg at step {step}" for step in (0, 50, 100)]
    assert len([a for a in seen.all("img") if (a["alt"] or "").startswith("Attention of")]) == 2 * (
        3 + 1
    )
    assert len([a for a in seen.all("img") if (a["alt"] or "").startswith("head ")]) == 2 * 3
    assert len(seen.all("tr")) == 3


def test_without_attention_only_components_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, [log(1)])
    make_snapshots(run, [0], heads=None)
    alts = [attributes["alt"] or "" for attributes in Seen(write_report(run)).all("img")]
    assert "Components of a.jpg" in alts
    assert not any(alt.startswith(("Attention", "head")) for alt in alts)


# -- what may be missing ---------------------------------------------------------------------------


def test_a_run_without_steps_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    seen = Seen(write_report(run))
    assert "Nothing has been measured yet." in seen.words
    assert "step 0 of 100" in seen.words
    assert seen.all("svg") == []


def test_a_run_of_one_step_shows_its_numbers(tmp_path: Path) -> None:
    seen = Seen(write_report(make_run(tmp_path, [log(1)])))
    assert f"loss {charts.number(log(1)['loss'])} at step 1" in seen.words
    assert seen.all("svg") == []


def test_torn_lines_and_broken_numbers_leave_gaps(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        [
            {"step": step, "loss": math.nan if step in (3, 4) else step, "other": None}
            for step in range(1, 8)
        ],
    )
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            '[1]\n{"loss": 3}\n{"step": "x", "loss": 1}\n'
            '{"step": 8, "loss": Infinity, "name": "text", "flag": true}\n{"step": 9, "lo'
        )
    (run / "notes.jsonl").write_text(
        '{"step": 2, "note": "Said."}\n{"step": 2, "note": "Said."}\n{"step": 3, "no'
    )
    page = write_report(run)
    seen = Seen(page)
    assert seen.words.count("Said.") == 1
    assert "Readings of loss that were not finite: 3." in seen.words
    assert len([a for a in seen.all("path") if a.get("class") == "curve"]) == 2
    assert "nan" not in page.read_text().split("</style>")[1]
    assert not {"other", "flag"} & set(read_metrics(run / "metrics.jsonl").curves)


def test_snapshots_without_images_and_other_files_are_skipped(run: Path) -> None:
    (run / "snapshots" / "step-00000150.partial-ab12").mkdir()
    (run / "snapshots" / "photographs" / "names.json").write_text("torn")
    seen = Seen(write_report(run))
    assert seen.all("img") == []
    assert len(seen.all("svg")) > 3


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "no config.yaml"):
        write_report(tmp_path)
    for text in ("{", "- 1", "config: 3", "\x00"):
        (tmp_path / "config.yaml").write_text(text)
        with refused("config.yaml"):
            write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# -- what it never does ----------------------------------------------------------------------------


def test_names_settings_and_notes_are_escaped(tmp_path: Path) -> None:
    name = json.dumps(HOSTILE)
    run = make_run(
        tmp_path / "run",
        [log(step, **{HOSTILE: float(step)}) for step in (1, 2)],
        settings=[f"name={name}", f"data_name={name}"],
    )
    (run / "notes.jsonl").write_text(json.dumps({"step": 1, "note": HOSTILE}) + "\n")
    make_snapshots(run, [0], names=[HOSTILE, "caf\udce9.jpg"])
    seen = Seen(write_report(run))
    assert seen.all("script") == []
    assert all(
        (attributes["src"] or "").startswith("data:image/") for attributes in seen.all("img")
    )
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert seen.words.count(HOSTILE) >= 4
    assert "caf\\xe9.jpg" in seen.words


def test_report_loads_nothing_and_forbids_it(run: Path) -> None:
    seen = Seen(write_report(run))
    policy = next(
        a["content"] for a in seen.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {tag for tag, _ in seen.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "form", "a"}
    )
    assert not re.search(
        r"https?:|//|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", seen.source)
    )
    assert all(
        source and source.startswith("data:image/")
        for source in (a["src"] for a in seen.all("img"))
    )


def test_the_same_folder_gives_the_same_bytes(run: Path) -> None:
    once = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == once
    assert not list(run.glob("*.partial-*"))


def test_drawings_are_well_formed(run: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", write_report(run).read_text(encoding="utf-8"))
    assert len(drawings) > 3
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag == "svg"


def test_a_report_needs_no_torch(run: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from featkit_train.report import write_report; "
        f"write_report(Path({str(run)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_colors_are_those_of_the_page_of_results() -> None:
    styles = (REPOSITORY / "train" / "featkit_train" / "report" / "report.css").read_text(
        encoding="utf-8"
    )
    shared = STYLE.strip().split("* { box-sizing")[0].split()
    assert shared[0] == ":root"
    assert styles.split()[: len(shared)] == shared  # the two files break lines elsewhere
