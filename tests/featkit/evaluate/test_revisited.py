"""Promises of the protocol of ROxford and RParis: its own definitions, written here as plain loops,
give the same figures."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featkit.embedder import Embedder
from featkit.evaluate.ground_truth import Query, read_ground_truth
from featkit.evaluate.revisited import (
    PRECISION_AT,
    RevisitedReport,
    evaluate_revisited,
    places_without,
    precision_at,
    score_setups,
    trapezoid_precision,
)
from featkit.sources import open_source
from tests.images import draw_image
from tests.sentences import refused

NUM_IMAGES, NUM_QUERIES = 9, 3


def reference_figures(ranking: list[int], right: list[int], ignored: list[int]) -> list[float]:
    """Score one query by the protocol's definition: walk down the ranking and add up trapezoids.

    A trapezoid lies between the precision before a right image, 1 where nothing came before, and
    the one after it; its width is 1 over the number of right images. mP@k looks at the first k,
    or up to the last right image where that stands before.
    """
    area, seen, hits, marks = 0.0, 0, 0, []
    for place in ranking:
        if place in ignored:
            continue
        if place in right:
            before = 1.0 if seen == 0 else hits / seen
            after = (hits + 1) / (seen + 1)
            area += (before + after) / 2 / len(right)
            hits += 1
        seen += 1
        marks.append(place in right)
    last = max(number for number, mark in enumerate(marks) if mark) + 1
    return [area, *(sum(marks[: min(k, last)]) / min(k, last) for k in PRECISION_AT)]


def reference_setups(
    rankings: list[list[int]], truths: list[dict[str, list[int]]]
) -> dict[str, list[float]]:
    """Means over the queries with a right image, for Easy, Medium and Hard."""
    found: dict[str, list[float]] = {}
    for setup in ("easy", "medium", "hard"):
        figures = []
        for ranking, truth in zip(rankings, truths, strict=True):
            right = {
                "easy": truth["easy"],
                "medium": truth["easy"] + truth["hard"],
                "hard": truth["hard"],
            }[setup]
            ignored = (
                truth["junk"] + {"easy": truth["hard"], "medium": [], "hard": truth["easy"]}[setup]
            )
            if right:
                figures.append(reference_figures(ranking, right, ignored))
        if figures:
            found[setup] = [sum(column) / len(figures) for column in zip(*figures, strict=True)]
    return found


def draw_truth(rng: np.random.Generator, count: int) -> dict[str, list[int]]:
    """Some of `count` images are easy, hard or junk; any of these may be empty."""
    kinds = rng.choice(["easy", "hard", "junk", "other"], count)
    return {kind: np.nonzero(kinds == kind)[0].tolist() for kind in ("easy", "hard", "junk")}


@pytest.mark.parametrize("seed", range(30))
def test_figures_equal_the_protocols_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 30))
    truths = [draw_truth(rng, count) for _ in range(5)]
    rankings = [rng.permutation(count) for _ in truths]
    queries = [
        Query(
            name="q",
            box=(0, 0, 1, 1),
            **{kind: np.array(places, np.int64) for kind, places in truth.items()},
        )
        for truth in truths
    ]
    found = score_setups(rankings, queries)
    expected = reference_setups([ranking.tolist() for ranking in rankings], truths)
    assert set(found) == set(expected)
    for setup, score in found.items():
        figures = [score.mean_average_precision, *score.precision.values()]
        assert figures == pytest.approx(expected[setup], rel=1e-12)


def test_figures_can_be_checked_by_hand() -> None:
    # Ranked right, wrong, right: trapezoids (1 + 1) / 2 and (1/2 + 2/3) / 2.
    places = np.array([0, 2])
    assert trapezoid_precision(places) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    # nothing right comes after 3
    assert [precision_at(places, k) for k in (1, 2, 5)] == pytest.approx([1, 1 / 2, 2 / 3])
    assert trapezoid_precision(np.array([1])) == pytest.approx((0 + 1 / 2) / 2)
    assert trapezoid_precision(np.array([0, 1, 2])) == 1.0


def test_what_is_ignored_is_taken_out_of_the_ranking() -> None:
    ranking = np.array([5, 1, 4, 0, 3, 2])
    assert places_without(ranking, np.array([0, 2]), np.array([5, 4, 3])).tolist() == [1, 2]
    assert places_without(ranking, np.array([0, 2]), np.zeros(0, np.int64)).tolist() == [3, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`jpg`, a database and queries that show an image of it in one corner, and the ground truth
    as pickle and as JSON."""
    folder = tmp_path_factory.mktemp("revisited")
    (folder / "jpg").mkdir()
    for number in range(NUM_IMAGES):
        draw_image(number).save(folder / "jpg" / f"place_{number:06d}.jpg", quality=95)
    for number in range(NUM_QUERIES):
        canvas = Image.new("RGB", (200, 150), (255, 0, 255))
        canvas.paste(draw_image(number), (100, 70))
        canvas.save(folder / "jpg" / f"query_{number}.jpg", quality=95)
    (folder / "jpg" / "another.jpg").write_bytes(b"of no concern")
    truths: list[dict[str, Any]] = [
        {"easy": [number], "hard": [8 - number], "junk": [4], "bbx": [100.0, 70.0, 180.0, 130.0]}
        for number in range(NUM_QUERIES)
    ]
    value = {
        "imlist": [f"place_{number:06d}" for number in range(NUM_IMAGES)],
        "qimlist": [f"query_{number}" for number in range(NUM_QUERIES)],
        "gnd": truths,
    }
    (folder / "gnd.pkl").write_bytes(pickle.dumps(value, protocol=2))
    (folder / "gnd.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def report(folder: Path, model_file: Path) -> RevisitedReport:
    truth = read_ground_truth(folder / "gnd.pkl")
    return evaluate_revisited(open_source(folder / "jpg"), truth, Embedder(model_file, threads=1))


def test_queries_are_cropped_and_find_their_images(report: RevisitedReport) -> None:
    assert (report.num_images, report.num_queries, report.size, report.failures) == (
        NUM_IMAGES,
        NUM_QUERIES,
        (32, 32),
        [],
    )
    assert [score.name for score in report.scores] == ["test-0", "centered pixels"]
    for score in report.scores:
        assert score.setups["easy"].mean_average_precision == 1.0
        assert score.setups["easy"].precision == {1: 1.0, 5: 1.0, 10: 1.0}


def test_the_report_equals_the_protocols_definitions(
    report: RevisitedReport, folder: Path, model_file: Path
) -> None:
    embedder, value = Embedder(model_file, threads=1), json.loads((folder / "gnd.json").read_text())
    gallery = embedder.embed([folder / "jpg" / f"{name}.jpg" for name in value["imlist"]])
    queries = embedder.embed(
        [
            np.asarray(Image.open(folder / "jpg" / f"{name}.jpg"))[70:130, 100:180]
            for name in value["qimlist"]
        ]
    )
    rankings = [np.argsort(-(gallery @ query), kind="stable").tolist() for query in queries]
    expected = reference_setups(rankings, value["gnd"])
    for setup, score in report.scores[0].setups.items():
        figures = [score.mean_average_precision, *score.precision.values()]
        assert figures == pytest.approx(expected[setup], rel=1e-9)


def test_json_and_pickle_give_the_same_figures(
    report: RevisitedReport, folder: Path, model_file: Path
) -> None:
    truth = read_ground_truth(folder / "gnd.json")
    assert (
        evaluate_revisited(open_source(folder / "jpg"), truth, Embedder(model_file, threads=1))
        == report
    )


def copy_of(folder: Path, place: Path) -> Path:
    """The images, to be changed."""
    place.mkdir()
    for file in (folder / "jpg").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def test_a_image_that_cannot_be_read_comes_last_and_is_named(
    report: RevisitedReport, folder: Path, model_file: Path, tmp_path: Path
) -> None:
    images = copy_of(folder, tmp_path / "jpg")
    (images / "place_000000.jpg").write_bytes(b"no image")
    seen: list[tuple[int, int]] = []
    found = evaluate_revisited(
        open_source(images),
        read_ground_truth(folder / "gnd.json"),
        Embedder(model_file, threads=1),
        on_progress=lambda *counts: seen.append(counts),
    )
    assert [key for key, _ in found.failures] == ["place_000000.jpg"]
    # The only right image of the first query stands last of the 7 that are not ignored; the other
    # queries find theirs first.
    easy = found.scores[0].setups["easy"]
    assert easy.mean_average_precision == pytest.approx((2 + (0 + 1 / 7) / 2) / 3)
    assert seen[-1] == (NUM_IMAGES + NUM_QUERIES, 1)
    assert report.scores[0].setups["easy"].mean_average_precision > easy.mean_average_precision


def test_missing_repeated_or_unreadable_images_are_refused(
    folder: Path, model_file: Path, tmp_path: Path
) -> None:
    truth, embedder = read_ground_truth(folder / "gnd.json"), Embedder(model_file, threads=1)
    images = copy_of(folder, tmp_path / "jpg")
    (images / "query_1.jpg").write_bytes(b"no image")
    with refused("A query cannot be read", "query_1.jpg is not an image"):
        evaluate_revisited(open_source(images), truth, embedder)
    (images / "query_1.jpg").unlink()
    with refused("lacks 1 of the 12 images", "query_1"):
        evaluate_revisited(open_source(images), truth, embedder)
    (images / "below").mkdir()
    draw_image(0).save(images / "below" / "place_000003.png")
    with refused("has place_000003 twice", "below/place_000003.png", "place_000003.jpg"):
        evaluate_revisited(open_source(images), truth, embedder)


def test_a_setup_in_which_nothing_is_right_is_left_out() -> None:
    query = Query(
        name="q",
        easy=np.array([1]),
        hard=np.zeros(0, np.int64),
        junk=np.array([0]),
        box=(0, 0, 1, 1),
    )
    found = score_setups([np.array([0, 1, 2])], [query])
    assert set(found) == {"easy", "medium"}
    assert found["easy"].mean_average_precision == 1.0
