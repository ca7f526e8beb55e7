"""Promises of the table of all evaluations: its columns, its marks, its notes, and its Markdown."""

from __future__ import annotations

import dataclasses

import pytest

from featkit.evaluate.all_report import AllReport, Difference, Figure, Row
from featkit.evaluate.all_table import markdown, notes, table_of
from featkit.evaluate.copies import CopiesReport, MethodScore, Separation
from featkit.evaluate.groups import GroupReport
from featkit.evaluate.knn import KnnReport

GROUPS = GroupReport(
    num_images=800,
    num_groups=100,
    num_queries=799,
    num_alone=1,
    leave_one_out=True,
    columns=("label", "label"),
    scores=[],
)
KNN = KnnReport(
    num_train=19062,
    num_test=2750,
    num_labels=275,
    num_unseen=0,
    num_near_copies=0,
    columns=("class", "label"),
    temperature=0.07,
    most_frequent=0.004,
    scores=[],
)
COPIES = CopiesReport(
    num_images=200,
    seed=0,
    edits_version=1,
    separation=Separation(level=0.8, copies_above=0.9),
    methods=[
        MethodScore(
            name="old",
            recall_at_1=0.8,
            interval=(0.7, 0.9),
            recall_at_10=0.9,
            mean_average_precision=0.85,
            single={},
        )
    ],
)


def figure(name: str, value: float) -> Figure:
    """Return a figure with an interval of ±0.01."""
    return Figure(name=name, value=value, interval=(value - 0.01, value + 0.01))


def row(data: str, score: str, values: dict[str, float], baselines: dict[str, float]) -> Row:
    """Return a row; the second model differs from the first beyond noise if by 0.1."""
    models = [figure(*each) for each in values.items()]
    highest = max(values.values())
    return Row(
        data=data,
        score=score,
        num_queries=799,
        models=models,
        baselines=[figure(*each) for each in baselines.items()],
        best=[name for name, value in values.items() if value == highest],
        differences=[
            Difference(
                model=each.name,
                other=models[0].name,
                value=each.value - models[0].value,
                interval=(each.value - models[0].value - 0.1, each.value - models[0].value + 0.1),
                beyond_noise=abs(each.value - models[0].value) > 0.1,
            )
            for each in models[1:]
        ],
    )


@pytest.fixture
def report() -> AllReport:
    """Two models; the new one is better beyond noise at one of two measurements."""
    return AllReport(
        models=["old", "a|b"],
        sources={"train": ["t"], "test": ["v"], "retrieval": ["x/c.tar"], "copies": ["p"]},
        names={"x/c.tar": "c", "t": "t", "v": "v", "p": "p"},
        rows=[
            row(
                "c",
                "retrieval mAP",
                {"old": 0.086, "a|b": 0.201},
                {"centered pixels": 0.097, "chance": 0.02},
            ),
            row(
                "v",
                "linear accuracy",
                {"old": 0.3, "a|b": 0.3},
                {"pixels, 8×8": 0.3, "most frequent label": 0.1},
            ),
            row(
                "p",
                "copies recall@1",
                {"old": 0.8, "a|b": 0.75},
                {"centered pixels": 0.2, "plain pixels": 0.81},
            ),
        ],
        retrieval={"old": {"x/c.tar": GROUPS}},
        knn={"old": KNN},
        copies={"old": COPIES},
    )


def test_baselines_of_different_rows_share_a_column(report: AllReport) -> None:
    table = table_of(report)
    assert table.columns == [
        *("old", "a|b", "difference"),
        "centered pixels / pixels, 8×8",
        "chance / most frequent label",
        "plain pixels",
    ]
    assert table.num_compared == 3
    values = [[cell.value for cell in cells] for _, _, cells in table.rows]
    assert values == [
        ["0.086", "0.201", "+0.115", "0.097", "0.020", ""],
        ["0.300", "0.300", "+0.000", "0.300", "0.100", ""],
        ["0.800", "0.750", "-0.050", "0.200", "", "0.810"],
    ]
    assert table.rows[0][2][0].interval == "0.076–0.096"
    assert table.rows[0][2][2].interval == "+0.015 to +0.215"


def test_marks_show_the_best_and_what_is_noise(report: AllReport) -> None:
    marks = [[cell.mark for cell in cells] for _, _, cells in table_of(report).rows]
    assert marks == [
        ["", "*", "", "", "", ""],
        ["*", "*", "~", "!", "", ""],
        ["*", "", "~", "", "", "!"],
    ]


def test_one_model_is_not_marked_and_has_no_difference(report: AllReport) -> None:
    rows = [
        dataclasses.replace(each, models=each.models[:1], best=["old"], differences=[])
        for each in report.rows
    ]
    alone = dataclasses.replace(report, models=["old"], rows=rows)
    table = table_of(alone)
    assert table.columns[:2] == ["old", "centered pixels / pixels, 8×8"]
    assert [[cell.mark for cell in cells] for _, _, cells in table.rows] == [
        ["", "!", "", ""],
        ["", "!", "", ""],
        ["", "", "", "!"],
    ]
    assert not any("difference" in note for note in notes(alone))


def test_a_difference_of_other_queries_is_blank(report: AllReport) -> None:
    rows = [dataclasses.replace(each, differences=[]) for each in report.rows]
    table = table_of(dataclasses.replace(report, rows=rows))
    assert [cells[2].value for _, _, cells in table.rows] == ["", "", ""]


def test_notes_name_the_images_and_their_columns(report: AllReport) -> None:
    assert notes(report) == [
        "c: 799 queries among 800 images of 100 groups, by the column label; each image is a query"
        " against all others. Not counted: 1 query whose group has no other image.",
        "v: 2,750 images of 275 labels by 19,062 of t, by the columns class and label. A weighted"
        " vote is exp(cosine / 0.07).",
        "p: 200 images, each queried by 4 edited copies (edits v1, seed 0).",
        "Intervals are 95 % bootstrap intervals over the queries' images.",
        "The difference is that of a|b minus old, by a paired bootstrap over the same queries.",
    ]


def test_markdown_can_be_pasted_into_a_card(report: AllReport) -> None:
    report.failures.append(("x/c.tar", "c.tar/1.png", "it is broken."))
    lines = markdown(report).split("\n")
    assert lines[:4] == [
        "|  | old | a\\|b | difference | centered pixels / pixels, 8×8 |"
        " chance / most frequent label | plain pixels |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| c, retrieval mAP | 0.086 (0.076–0.096) | **0.201** (0.191–0.211) |"
        " +0.115 (+0.015 to +0.215) | 0.097 (0.087–0.107) | 0.020 (0.010–0.030) |  |",
        "| v, linear accuracy | **0.300** (0.290–0.310) | **0.300** (0.290–0.310) |"
        " +0.000 (-0.100 to +0.100), within noise | **0.300** (0.290–0.310) |"
        " 0.100 (0.090–0.110) |  |",
    ]
    assert lines[5] == ""
    assert lines[-2:] == [
        "- Bold: the best model, and baselines that no model beats.",
        "- Left out: 1 image that cannot be used.",
    ]
    assert all(line.startswith(("|", "- ")) for line in lines if line)
