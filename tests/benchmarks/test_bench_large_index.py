"""Tests of the code behind bench_large_index.py: the vectors it takes, and what it compares."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.embeddings import Embeddings
from featkit.index import Index
from featkit.index.approximate.codes import KINDS
from featkit.index.bounded_faiss import faiss
from featkit.sources import Source, open_source
from tests.benchmarks import autofaiss_beside, bench_large_index, real_index, record
from tests.benchmarks.autofaiss_beside import make_environment, served
from tests.benchmarks.other_indexes import FAISS, REFINED, K
from tests.benchmarks.real_index import TINY, Copies, make_real_index
from tests.data import needs_shared_data
from tests.images import draw_folder

NUM_IMAGES, NUM_QUERIES = 12, 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images"), NUM_IMAGES, height=60, width=80)


@pytest.fixture(scope="module")
def source(images: Path) -> Source:
    return open_source(images)


def test_copies_are_other_images_with_keys_of_their_own(source: Source) -> None:
    copies = Copies(source, 3 * NUM_IMAGES - 1)
    assert len({copies.key(item) for item in range(len(copies))}) == len(copies) == 35
    for image in range(NUM_IMAGES - 1):
        own, *edited = (copies.read(image + copy * NUM_IMAGES) for copy in range(3))
        assert own == source.read(image)
        pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in (own, *edited)]
        assert pixels[0].shape == pixels[1].shape  # mirrored and recolored
        assert pixels[2].size < pixels[0].size  # cropped
        assert np.abs(pixels[0].astype(float) - pixels[1]).mean() > 1


def test_copies_are_the_same_each_time(source: Source) -> None:
    first, second = (Copies(source, 5 * NUM_IMAGES) for _ in range(2))
    for item in range(0, 5 * NUM_IMAGES, 7):
        assert first.read(item) == second.read(item)


def test_queries_are_images_that_the_index_lacks(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_index, "data_folder", lambda: images)
    made = make_real_index(tmp_path, TINY, 20, num_queries=NUM_QUERIES)
    with Index.open(made.path) as index:
        keys = {item.key.split("/", 1)[1] for item in index.items()}
        assert len(index) == 20
        assert index.width == made.queries.shape[1]
    asked = set(Embeddings.open(tmp_path / f"{TINY}-{NUM_QUERIES}.queries").read()[0])
    assert len(asked) == len(made.queries) == NUM_QUERIES
    assert len(keys) == NUM_IMAGES - NUM_QUERIES
    assert not keys & asked
    again = make_real_index(tmp_path, TINY, 20, num_queries=NUM_QUERIES)
    assert (again.path, again.about) == (made.path, made.about)


def test_another_process_answers_as_the_index_does(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    index = faiss.IndexFlatIP(8)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "knn.index"))
    with served(Path(sys.executable), tmp_path / "knn.index") as ask:
        for queries in (vectors[:20], vectors[7:8]):
            nearest, seconds = ask(queries)
            true = np.argsort(-queries @ vectors.T, axis=1)[:, :K]
            np.testing.assert_array_equal([each.ids for each in nearest], true)
            assert 0 < seconds < 60


def test_an_environment_that_cannot_be_made_is_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autofaiss_beside, "REQUIREMENTS", ("--no-index", "autofaiss"))
    for _ in range(2):
        with pytest.raises(SystemExit, match="could not be installed"):
            make_environment(tmp_path / "venv")


@needs_shared_data
def test_methods_are_compared_on_the_same_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    *rows, exact = bench_large_index.main(["--quick", "--room", str(tmp_path / "room")])
    methods = [row["method"] for row in rows]
    assert {f"featkit {name}" for name in KINDS} | {FAISS, REFINED} <= set(methods)
    assert all(float(str(row["recall@10"])) > 0.9 for row in rows)
    assert all(0 < float(str(row["bytes"])) < 0.5 * 3000 * 384 * 4 for row in rows)
    facts = {str(row["method"]): row for row in rows}
    assert facts[REFINED][f"speed / {REFINED}"] == 1
    assert float(str(facts[REFINED]["recall@10"])) >= float(str(facts[FAISS]["recall@10"])) - 0.02
    assert float(str(exact["queries/s"])) > 0
    assert not (tmp_path / "results").exists()
