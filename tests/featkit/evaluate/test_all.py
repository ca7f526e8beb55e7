"""Promises of all evaluations at once: the figures of the single ones, each image embedded once,
and differences over the same queries."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from featkit.embedder import Embedder
from featkit.evaluate import (
    evaluate_copies,
    evaluate_groups,
    evaluate_knn,
    evaluate_linear,
)
from featkit.evaluate.all import Choices, Material, evaluate_all, short_names
from featkit.evaluate.all_report import AllReport, Row
from featkit.sources import Source, open_source
from tests.featkit.evaluate.labeled import write_kinds_folder, write_kinds_parquet
from tests.image_files import encoded
from tests.model_files import make_model_file
from tests.sentences import refused

K = 5


class Sources(NamedTuple):
    """Labeled images that are hard to classify, `test` with an unreadable and an unlabeled one."""

    train: Source
    test: Source
    groups: Source
    photos: Source


def write_hard(path: Path, count: int, *, seed: int, bad: bool = False) -> Path:
    """Write noise whose mean hints at one of three labels."""
    rng = np.random.default_rng(seed)
    labels = [number % 3 for number in range(count)]
    images = []
    for label in labels:
        pixels = rng.normal(120 + 4 * label, 50, (24, 24, 3)) + rng.normal(0, 6, 3)
        square = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        images.append({"bytes": encoded(square), "path": None})
    values: list[int | None] = [*labels]
    if bad:
        images[1]["bytes"], values[4] = b"no image", None
    pq.write_table(pa.table({"image": images, "label": pa.array(values, pa.int64())}), path)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The sources, drawn once."""
    folder = tmp_path_factory.mktemp("all")
    return Sources(
        open_source(write_hard(folder / "train.parquet", 60, seed=1)),
        open_source(write_hard(folder / "test.parquet", 30, seed=2, bad=True)),
        open_source(write_hard(folder / "groups.parquet", 24, seed=3)),
        open_source(write_kinds_folder(folder / "photos", [0, 1, 2] * 3)),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Embedder]:
    """Two models of different widths."""
    folder = tmp_path_factory.mktemp("models")
    files = [make_model_file(folder / f"{seed}.onnx", seed=seed, width=4 + seed) for seed in (0, 9)]
    return {f"test-{seed}": Embedder(file) for seed, file in zip((0, 9), files, strict=True)}


@pytest.fixture(scope="module")
def report(sources: Sources, models: dict[str, Embedder]) -> AllReport:
    """The report of both models on everything; the test part is also searched by groups."""
    return evaluate_all(models, material_of(sources), choices=Choices(k=K, seed=3))


def material_of(sources: Sources) -> Material:
    """Return everything to evaluate on."""
    return Material(
        train=sources.train,
        test=sources.test,
        retrieval=[sources.groups, sources.test],
        copies=sources.photos,
    )


def row_of(report: AllReport, data: str, score: str) -> Row:
    """Return a row by its first two columns."""
    return next(row for row in report.rows if (row.data, row.score) == (data, score))


def test_reports_equal_those_of_single_evaluations(
    report: AllReport, sources: Sources, models: dict[str, Embedder]
) -> None:
    for position, (name, model) in enumerate(models.items()):
        knn = evaluate_knn(sources.train, sources.test, model, ks=(K,))
        linear = evaluate_linear(sources.train, sources.test, model, seed=3)
        copies = evaluate_copies(sources.photos, model, seed=3)
        groups = evaluate_groups(sources.groups, model, group="label")
        if position == 0:
            assert report.knn[name] == knn
            assert report.linear[name] == linear
            assert report.copies[name] == copies
            assert report.retrieval[name][sources.groups.name] == groups
        else:
            assert report.knn[name].scores == knn.scores[:1]
            assert report.linear[name].scores == linear.scores[:1]
            assert report.copies[name].methods == copies.methods[:1]
            assert report.retrieval[name][sources.groups.name].scores == groups.scores[:1]


def test_rows_have_the_figures_of_the_reports(report: AllReport, sources: Sources) -> None:
    first = report.models[0]
    groups = report.retrieval[first][sources.groups.name].scores
    knn, linear = report.knn[first].scores, report.linear[first].scores
    copies = report.copies[first].methods
    guess = report.knn[first].most_frequent
    expected = {
        ("groups", "retrieval mAP"): {each.name: each.mean_average_precision for each in groups},
        ("groups", "retrieval recall@1"): {each.name: each.recall[1] for each in groups},
        ("test", f"kNN majority, k={K}"): {each.name: each.majority for each in knn}
        | {"most frequent label": guess},
        ("test", f"kNN weighted, k={K}"): {each.name: each.weighted for each in knn}
        | {"most frequent label": guess},
        ("test", "linear accuracy"): {each.name: each.accuracy for each in linear}
        | {"most frequent label": guess},
        ("photos", "copies recall@1"): {each.name: each.recall_at_1 for each in copies},
    }
    for (data, score), figures in expected.items():
        row = row_of(report, data, score)
        assert {each.name: each.value for each in (row.models[0], *row.baselines)} == figures
    intervals = {
        "retrieval mAP": groups[0].interval,
        f"kNN weighted, k={K}": knn[0].interval,
        "linear accuracy": linear[0].interval,
        "copies recall@1": copies[0].interval,
    }
    for score, interval in intervals.items():
        row = next(each for each in report.rows if each.score == score)
        assert row.models[0].interval == interval
    assert [(row.data, row.score) for row in report.rows] == [
        ("groups", "retrieval mAP"),
        ("groups", "retrieval recall@1"),
        ("test", "retrieval mAP"),
        ("test", "retrieval recall@1"),
        *list(expected)[2:],
    ]


def vectors_of(source: Source, model: Embedder) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors and labels of the usable images of a source, one at a time."""
    vectors, labels = [], []
    for item in range(len(source)):
        label = source.metadata(item).get("label")
        if label is not None and source.read(item) != b"no image":
            vectors.append(model.embed(source.read(item)))
            labels.append(int(label))
    return np.stack(vectors).reshape(len(labels), -1), np.array(labels)


def test_figures_equal_those_of_scikit_learn(
    report: AllReport, sources: Sources, models: dict[str, Embedder]
) -> None:
    for position, model in enumerate(models.values()):
        train, train_labels = vectors_of(sources.train, model)
        test, test_labels = vectors_of(sources.test, model)
        for kind, weights in (
            ("majority", "uniform"),
            ("weighted", lambda distances: np.exp((1 - distances) / 0.07)),
        ):
            neighbors = KNeighborsClassifier(K, metric="cosine", weights=weights)
            found = neighbors.fit(train, train_labels).predict_proba(test)
            figure = row_of(report, "test", f"kNN {kind}, k={K}").models[position].value
            # Where labels tie, scikit-learn takes the lowest; so count ties as half known.
            best = found.max(axis=1, keepdims=True)
            tied = np.isclose(found, best)
            certain = (tied.sum(axis=1) == 1) & tied[np.arange(len(test)), test_labels]
            possible = tied[np.arange(len(test)), test_labels]
            assert certain.mean() - 1e-9 <= figure <= possible.mean() + 1e-9
            if kind == "weighted":
                assert certain.mean() == pytest.approx(possible.mean())
        scaler = StandardScaler().fit(train.astype(np.float64))
        l2 = report.linear[report.models[position]].scores[0].l2
        classifier = LogisticRegression(C=1 / (l2 * len(train)), max_iter=5000, tol=1e-8)
        classifier.fit(scaler.transform(train.astype(np.float64)), train_labels)
        accuracy = classifier.score(scaler.transform(test.astype(np.float64)), test_labels)
        figure = row_of(report, "test", "linear accuracy").models[position].value
        assert figure == pytest.approx(accuracy, abs=1.01 / len(test))
        rows, labels = vectors_of(sources.groups, model)
        precisions, firsts = [], []
        for query in range(len(rows)):
            others = np.arange(len(rows)) != query
            right = labels[others] == labels[query]
            scores = rows[others] @ rows[query]
            precisions.append(average_precision_score(right, scores))
            firsts.append(right[scores.argmax()])
        row = row_of(report, "groups", "retrieval mAP")
        # featkit treats cosines within 1e-6 of each other as equal
        assert row.models[position].value == pytest.approx(np.mean(precisions), abs=1e-3)
        row = row_of(report, "groups", "retrieval recall@1")
        assert row.models[position].value == pytest.approx(np.mean(firsts))


def test_differences_resample_the_same_queries(
    report: AllReport, sources: Sources, models: dict[str, Embedder]
) -> None:
    outcomes = []
    for model in models.values():
        rows, labels = vectors_of(sources.groups, model)
        scores = rows @ rows.T
        np.fill_diagonal(scores, -2)
        outcomes.append((labels[scores.argmax(axis=1)] == labels).astype(float))
    rng = np.random.default_rng(0)
    means = []
    for _ in range(1000):
        drawn = rng.integers(0, len(outcomes[0]), len(outcomes[0]))
        means.append(outcomes[1][drawn].mean() - outcomes[0][drawn].mean())
    (difference,) = row_of(report, "groups", "retrieval recall@1").differences
    assert (difference.model, difference.other) == tuple(reversed(report.models))
    assert difference.value == pytest.approx(outcomes[1].mean() - outcomes[0].mean())
    assert difference.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    for row in report.rows:
        (difference,) = row.differences
        low, high = difference.interval
        assert difference.beyond_noise == (low > 0 or high < 0)
        assert difference.value == pytest.approx(row.models[1].value - row.models[0].value)
        assert row.best == [
            each.name
            for each in row.models
            if each.value == max(model.value for model in row.models)
        ]


def test_a_model_differs_from_itself_by_nothing(
    sources: Sources, models: dict[str, Embedder]
) -> None:
    model = models["test-0"]
    report = evaluate_all({"a": model, "b": model}, Material(retrieval=[sources.groups]))
    for row in report.rows:
        (difference,) = row.differences
        assert (difference.value, difference.interval) == (0, (0, 0))
        assert not difference.beyond_noise
        assert row.best == ["a", "b"]


class Counting:
    """A model that counts the images it embeds."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.num_images = embedder, 0
        self.manifest, self.geometry = embedder.manifest, embedder.geometry

    def infer(self, images: np.ndarray) -> np.ndarray:
        self.num_images += len(images)
        return self.embedder.infer(images)


def test_each_model_embeds_each_source_once(sources: Sources, models: dict[str, Embedder]) -> None:
    counting = {name: Counting(model) for name, model in models.items()}
    material = Material(
        train=sources.train, test=sources.test, retrieval=[sources.groups, sources.test]
    )
    evaluate_all(counting, material, choices=Choices(k=K, linear=False))
    # Two images of the test part cannot be used.
    expected = len(sources.train) + len(sources.test) - 2 + len(sources.groups)
    assert [model.num_images for model in counting.values()] == [expected, expected]


def test_a_failed_image_is_reported_once(report: AllReport, sources: Sources) -> None:
    assert [failure[:2] for failure in report.failures] == [
        (sources.test.name, "test.parquet/1"),
        (sources.test.name, "test.parquet/4"),
    ]
    assert report.failures[0][2] == "test.parquet/1 is not an image in a format that can be read."


def test_parts_that_are_not_given_are_left_out(
    sources: Sources, models: dict[str, Embedder]
) -> None:
    report = evaluate_all(models, Material(copies=sources.photos))
    assert [row.score for row in report.rows] == ["copies recall@1"]
    assert report.sources == {
        "train": [],
        "test": [],
        "retrieval": [],
        "copies": [sources.photos.name],
    }
    assert (report.knn, report.linear) == ({}, {})
    with refused("nothing to measure", "--retrieval"):
        Material()
    with refused("--train without --test"):
        Material(train=sources.train)
    with refused("--test without --train"):
        Material(test=sources.test, copies=sources.photos)


def test_mistakes_are_found_before_anything_is_embedded(
    sources: Sources, models: dict[str, Embedder], tmp_path: Path
) -> None:
    model = Counting(models["test-0"])
    with refused("has no column kind"):
        evaluate_all(
            {"a": model}, Material(retrieval=[sources.groups]), choices=Choices(group="kind")
        )
    alone = open_source(write_kinds_parquet(tmp_path / "alone.parquet", [0, 1, 2]))
    with refused("alone.parquet", "another image of its group"):
        evaluate_all({"a": model}, Material(retrieval=[sources.groups, alone]))
    same = open_source(write_kinds_parquet(tmp_path / "same.parquet", [1, 1]))
    with refused("same.parquet has the single label 1"):
        evaluate_all({"a": model}, Material(train=same, test=sources.test))
    far = open_source(write_kinds_folder(tmp_path / "far", [0, 1]))
    with refused("none in common"):
        evaluate_all({"a": model}, Material(train=sources.train, test=far, copies=far))
    assert model.num_images == 0


def test_progress_names_the_model_and_its_images(
    sources: Sources, models: dict[str, Embedder]
) -> None:
    begun: Counter[tuple[str, int]] = Counter()
    steps: list[str] = []

    class Reporter:
        def __enter__(self) -> Reporter:
            return self

        def __exit__(self, *_problem: object) -> None: ...

        def __call__(self, done: int, failed: int = 0) -> None: ...

    def progress(what: str, count: int) -> Reporter:
        begun[what, count] += 1
        return Reporter()

    evaluate_all(
        {"m": models["test-0"]},
        material_of(sources),
        choices=Choices(k=K),
        progress=progress,
        on_step=steps.append,
    )
    assert begun == {
        ("m, groups", 24): 1,
        ("m, test", 30): 1,
        ("m, train", 60): 1,
        ("m, copies of photos", 9): 1,
    }
    assert [step.split(" at ")[0] for step in steps] == ["fitting m", "fitting pixels, 8×8"]


def test_names_are_short_unless_they_are_equal() -> None:
    assert short_names(["a/val.parquet", "b/train.tar", "photos.v2/", "hf:cifar10:test", "."]) == {
        "a/val.parquet": "val",
        "b/train.tar": "train",
        "photos.v2/": "photos.v2",
        "hf:cifar10:test": "hf:cifar10:test",
        ".": ".",
    }
    assert short_names(["a/x.tar", "b/x.parquet", "c/y"]) == {
        "a/x.tar": "a/x.tar",
        "b/x.parquet": "b/x.parquet",
        "c/y": "y",
    }
