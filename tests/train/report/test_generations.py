"""The page of a run of several trainings: every figure of its table, drawn and linked, and nothing
from anywhere else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from featkit_train.report.generations import write_generations_report
from featkit_train.report.standing_charts import Place, Series, places_chart, speed_chart
from featkit_train.watching.judging import Remark
from featkit_train.watching.standing import Row, Standing, write_standing
from tests.commands import REPOSITORY
from tests.sentences import refused
from tests.train.report.test_page import HOSTILE, Seen

ACCURACIES = (0.5, 0.55, 0.548)


def row(name: str, accuracy: float, **more: Any) -> Row:
    figures = {
        "kind": re.split(r"\W", name)[0],
        "standard_error": 0.022,
        "ece": 0.1,
        "wrong_confidence": 0.4,
    }
    return Row(name=name, accuracy=accuracy, **{**figures, **more})


def generations() -> list[Row]:
    rows = [
        row(
            f"generation-{number}",
            share,
            knn=share - 0.1,
            copies=0.9,
            seconds=60.0 * number,
            parameters=2_700_000,
        )
        for number, share in enumerate(ACCURACIES, 1)
    ]
    return [*rows, row("ensemble-3", 0.57, ece=0.05, wrong_confidence=None)]


def make_run(folder: Path, rows: Sequence[Row], **more: Any) -> Path:
    values = {
        "name": "born again",
        "method": "born_again",
        "num_held_out": 500,
        "classes": ["cat", "dog"],
        "remarks": [],
    }
    write_standing(
        folder,
        Standing(**{**values, "rows": list(rows), "chosen": rows[-1].name if rows else "", **more}),
    )
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three generations and their ensemble; the first has a page of its own, the second a folder
    without one."""
    folder = make_run(
        tmp_path / "run",
        generations(),
        chosen="generation-2",
        remarks=[Remark("no_gain", -0.002, "Generation 3 does not.")],
    )
    config = {
        "config": {"method": "born_again", "optim": {"lr": 0.001}},
        "data": {"names": "pictures/"},
        "versions": {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for number in (1, 2):
        (folder / f"generation-{number}").mkdir()
    (folder / "generation-1" / "report.html").write_text("one")
    return folder


def cells(seen: Seen) -> list[list[str]]:
    """The table's rows as text."""
    table = re.search(r"<table.*?</table>", seen.source)
    assert table
    rows = ElementTree.fromstring(table[0].replace("<wbr>", "")).iter("tr")
    return [["".join(cell.itertext()) for cell in line] for line in rows]


# -- what stands on it -----------------------------------------------------------------------------


def test_report_names_the_best_training_its_gain_and_remarks(run: Path) -> None:
    assert write_generations_report(run) == run / "report.html"
    words = Seen(run / "report.html").words
    for expected in (
        "Generations",
        "by born again · 500 held-out images · 2 classes: cat, dog",
        "Best accuracy0.570ensemble-3 · +0.070 over generation-1 · chosen: generation-2, 0.550",
        "Calibration error0.100ECE of generation-2, chosen",
        "Generations3and 1 ensemble",
        "Time in training6 min",
        "no gainGeneration 3 does not.",
        "optim.lr0.001",
        "data.names",
    ):
        assert expected in words, expected


def test_every_row_is_in_the_table_with_its_values(run: Path) -> None:
    head, *lines = cells(Seen(write_generations_report(run)))
    titles = "accuracy,gain over the first,kNN,copy recall,ECE,confidence when wrong,parameters"
    assert head == ["", *titles.split(","), "training time"]
    assert lines == [
        ["generation-1", "0.500 ± 0.022", "–", "0.400", "0.900", "0.100", "0.400", "2.7 M", "60 s"],
        [
            "generation-2chosen",
            "0.550 ± 0.022",
            "+0.050",
            "0.450",
            "0.900",
            "0.100",
            "0.400",
            "2.7 M",
            "2 min",
        ],
        [
            "generation-3",
            "0.548 ± 0.022",
            "+0.048",
            "0.448",
            "0.900",
            "0.100",
            "0.400",
            "2.7 M",
            "3 min",
        ],
        ["ensemble-3", "0.570 ± 0.022", "+0.070", "–", "–", "0.050", "–", "–", "–"],
    ]


def test_the_best_value_of_a_column_is_bold(run: Path) -> None:
    source = write_generations_report(run).read_text()
    table = source[source.index("<table") : source.index("</table>")]
    # kNN, accuracy, ECE; copies are all alike
    assert re.findall(r"<b>([\d.]+)</b>", table) == ["0.450", "0.570", "0.050"]


def test_a_row_links_to_its_report_if_it_exists(run: Path) -> None:
    assert [link["href"] for link in Seen(write_generations_report(run)).all("a")] == [
        "generation-1/report.html"
    ]


def test_exits_link_to_the_report_of_their_network(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [row(f"exit {number}", 0.5) for number in (1, 2)])
    assert Seen(write_generations_report(folder)).all("a") == []
    (folder / "network").mkdir()
    (folder / "network" / "report.html").write_text("one")
    assert [link["href"] for link in Seen(write_generations_report(folder)).all("a")] == [
        "network/report.html"
    ] * 2


def test_every_chart_is_described_in_words(run: Path) -> None:
    drawings = [
        attributes["aria-label"] or ""
        for attributes in Seen(write_generations_report(run)).all("svg")
    ]
    errors = ", ".join(
        f"generation-{number} {share:.3f} ± 0.022" for number, share in enumerate(ACCURACIES, 1)
    )
    assert drawings[0] == f"accuracy: {errors}, ensemble-3 0.570 ± 0.022"
    assert drawings[1].startswith("kNN: generation-1 0.400")
    assert "; copies: generation-1 0.900" in drawings[1]
    assert [drawing.split(":")[0] for drawing in drawings[2:]] == [
        "Calibration error (ECE)",
        "Confidence when wrong",
    ]


def test_exits_are_drawn_over_their_speed(tmp_path: Path) -> None:
    rows = [
        row(f"exit-{number}", 0.4 + number / 20, images_per_s=5000.0 / number)
        for number in (1, 2, 3)
    ]
    seen = Seen(write_generations_report(make_run(tmp_path, rows)))
    assert "Exits of one network" in seen.words
    assert "Accuracy over images per second" in seen.words
    assert "exit-2, 2,500 a second 0.500 ± 0.022" in seen.words
    assert cells(seen)[0][-1] == "images per second"


def test_rounds_and_exits_of_one_run_are_drawn_apart(tmp_path: Path) -> None:
    rows = [row("round-1", 0.4), row("round-2", 0.5), row("exit-1", 0.3), row("exit-2", 0.35)]
    seen = Seen(write_generations_report(make_run(tmp_path, rows)))
    labels = [attributes["aria-label"] or "" for attributes in seen.all("svg")]
    assert not any("round" in label and "exit" in label for label in labels)
    assert "Accuracy by round" in seen.words
    assert "Accuracy by exit" in seen.words


# -- what may be missing ---------------------------------------------------------------------------


def test_a_run_without_rows_has_a_page(tmp_path: Path) -> None:
    seen = Seen(write_generations_report(make_run(tmp_path, [])))
    assert "Nothing has been measured yet." in seen.words
    assert seen.all("svg") == seen.all("table") == []


def test_a_single_row_is_not_drawn(tmp_path: Path) -> None:
    seen = Seen(write_generations_report(make_run(tmp_path, [row("generation-1", 0.5)], name="")))
    assert "Best accuracy0.500generation-1 · no later one beats it" in seen.words
    assert f"{tmp_path.name}: report of generations" in seen.words
    assert seen.all("svg") == []
    assert len(cells(seen)) == 2


def test_ensembles_alone_are_drawn_too(tmp_path: Path) -> None:
    seen = Seen(
        write_generations_report(
            make_run(tmp_path, [row("ensemble-a", 0.5), row("ensemble-b", 0.6)])
        )
    )
    assert "Accuracy by ensemble" in seen.words


def test_a_folder_that_has_no_table_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "has no generations.json"):
        write_generations_report(tmp_path)
    make_run(tmp_path, generations())
    (tmp_path / "config.yaml").write_text("- 1")
    with refused("config.yaml"):
        write_generations_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# -- what it never does ----------------------------------------------------------------------------


def test_names_classes_and_remarks_are_escaped(tmp_path: Path) -> None:
    rows = [
        row(HOSTILE, 0.5, kind="generation"),
        row(f"{HOSTILE}2", 0.6, kind="exit"),
        row("caf\udce9", 0.5, kind="ensemble"),
    ]
    rows += [row(f"{HOSTILE}{number}", 0.5, kind="exit", images_per_s=number) for number in (3, 4)]
    folder = make_run(
        tmp_path,
        rows,
        name=HOSTILE,
        method=HOSTILE,
        classes=[HOSTILE],
        remarks=[Remark(HOSTILE, 1.0, HOSTILE)],
    )
    config = {"config": {HOSTILE: HOSTILE}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for name in (HOSTILE, "caf\udce9"):
        (folder / name).mkdir()
        (folder / name / "report.html").write_text("own page")
    seen = Seen(write_generations_report(folder))
    assert seen.all("script") == seen.all("img") == []
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert seen.words.count(HOSTILE) >= 6
    assert "caf\\xe9" in seen.words
    links = [link["href"] or "" for link in seen.all("a")]
    assert len(links) == 2
    assert all(re.fullmatch(r"[\w%.-]+/report\.html", link) for link in links)
    assert links[1] == "caf%E9/report.html"


@pytest.mark.parametrize(
    "name", ["..", ".", "../other", "/etc", "javascript:alert(1)", "generation-1/deeper"]
)
def test_no_link_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    for place in (
        tmp_path,
        tmp_path / "run",
        tmp_path / "other",
        tmp_path / "run" / "generation-1" / "deeper",
    ):
        place.mkdir(parents=True, exist_ok=True)
        (place / "report.html").write_text("another page")
    folder = make_run(tmp_path / "run", [row(name, 0.5, kind="generation")])
    assert Seen(write_generations_report(folder)).all("a") == []


def test_report_loads_nothing_and_forbids_it(run: Path) -> None:
    seen = Seen(write_generations_report(run))
    policy = next(
        a["content"] for a in seen.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {tag for tag, _ in seen.tags}.isdisjoint(
        {"script", "link", "iframe", "object", "form", "img"}
    )
    assert not re.search(r"https?:|//|@import|url\(", seen.source)


def test_the_same_folder_gives_the_same_bytes(run: Path) -> None:
    once = write_generations_report(run).read_bytes()
    assert write_generations_report(run).read_bytes() == once
    assert not list(run.glob("*.partial-*"))


def test_the_page_needs_no_torch(run: Path) -> None:
    program = (
        "import json, sys; from pathlib import Path; from featkit_train.report.generations import"
        f" write_generations_report; write_generations_report(Path({str(run)!r}));"
        " print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) is False


# -- drawings --------------------------------------------------------------------------------------


def inside(drawing: str) -> None:
    """Well-formed, all of its places within the image, no number missing."""
    root = ElementTree.fromstring(drawing)
    assert "nan" not in drawing
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for circle in root.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width
        assert 0 <= float(circle.attrib["cy"]) <= height


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("values", [(0.0, 1.0), (0.5, 0.5), (0.98, 1.0)])
def test_charts_of_any_number_of_places_are_well_formed(
    count: int, values: tuple[float, float]
) -> None:
    places = [Place(f"generation-{number}", chosen=number == 0) for number in range(count)]
    places += [Place("ensemble of all", joined=False), Place("ensemble", joined=False)]
    shares = [values[place % 2] for place in range(len(places))]
    inside(
        places_chart(
            places,
            [Series("accuracy", shares, [0.1] * len(places)), Series("kNN", [None, *shares[1:]])],
        )
    )
    inside(
        speed_chart(
            places,
            Series("accuracy", shares, [0.1] * len(places)),
            [100.0 + place for place in range(len(places))],
        )
    )
    inside(speed_chart(places, Series("accuracy", shares), [0.0] * len(places)))


def test_bars_reach_one_standard_error_up_and_down() -> None:
    drawing = places_chart(
        [Place("generation-1"), Place("generation-2")],
        [Series("accuracy", [0.2, 0.4], [0.05, 0.1])],
    )
    heights = {0.2: 0.05, 0.4: 0.1}
    circles = re.findall(r'class="end" cx="[\d.]+" cy="([\d.]+)"', drawing)
    bars = re.findall(r'class="error" d="M[\d.]+ ([\d.]+)h8m-4 0V([\d.]+)', drawing)
    unit = (float(circles[0]) - float(circles[1])) / 0.2
    for middle, (top, bottom), error in zip(circles, bars, heights.values(), strict=True):
        assert float(middle) - float(top) == pytest.approx(error * unit, abs=0.3)
        assert float(bottom) - float(middle) == pytest.approx(error * unit, abs=0.3)


def test_names_over_speed_do_not_cover_each_other() -> None:
    places = [Place(f"exit-{number}") for number in range(6)]
    drawing = speed_chart(
        places, Series("accuracy", [0.5] * 6), [1000.0, 1001.0, 1002.0, 1003.0, 2000.0, 3000.0]
    )
    outside = re.sub(r'<g class="spot">.*?</g>', "", drawing)
    found = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="middle">exit-\d</text>', outside
    )
    assert len(found) == 4  # of four in one place two have room; the others show under the pointer
    assert len(set(found)) == 4
    assert all(f"exit-{number}, " in drawing for number in range(6))
