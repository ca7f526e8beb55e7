"""Nothing is lost between an index and a Parquet file of its vectors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.errors import EnvironmentProblem, InputError
from featkit.index import FilterError, Index
from featkit.index.vector_file import VectorFile, read_vectors, write_vectors
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.model_files import make_model_file

METADATA: list[dict[str, Any]] = [
    {"label": "cat", "year": 2020, "score": 0.5, "flag": True, "width": "wide", "mixed": 1},
    {"label": "dog", "score": 2, "flag": False, "mixed": "two", "embedding": 5},
    {},
]


@pytest.fixture
def index(tmp_path: Path, model: Path) -> Path:
    with Index.create(tmp_path / "a.index", model=model) as made:
        made.add(
            ["a/1.jpg", "a/2.jpg", "3.jpg", "gone.jpg"],
            unit_vectors(4),
            source="photos",
            widths=[640, 480, None, 1],
            heights=[480, 640, None, 1],
            thumbnails=[b"one", None, b"three", b"gone"],
            metadata=[*METADATA, {"only gone": 1}],
        )
        made.remove(["gone.jpg"])
    return tmp_path / "a.index"


def content(index: Path, *, thumbnails: bool = True) -> list[tuple[Any, ...]]:
    with Index.open(index) as opened:
        return [
            (
                *(item.key, item.source, item.width, item.height, item.added, item.metadata),
                opened.thumbnail(item.id) if thumbnails else None,
                opened.vector(item.id).tobytes(),
            )
            for item in opened.items()
        ]


@pytest.mark.parametrize("thumbnails", [False, True])
def test_an_index_comes_back_as_it_was(
    index: Path, tmp_path: Path, model: Path, thumbnails: bool
) -> None:
    file = tmp_path / "v.parquet"
    with Index.open(index) as opened:
        assert write_vectors(opened, file, thumbnails=thumbnails) == 3
        fingerprint = opened.fingerprint
    assert VectorFile(file).fingerprint == fingerprint
    with Index.create(tmp_path / "b.index", model=model) as made:
        report = read_vectors(made, VectorFile(file))
        assert (report.num_added, report.num_unchanged) == (3, 0)
        again = read_vectors(made, VectorFile(file))
        assert (again.num_added, again.num_unchanged) == (0, 3)
    back, before = (content(each, thumbnails=thumbnails) for each in (tmp_path / "b.index", index))
    assert [row[:5] for row in back] == [row[:5] for row in before]
    assert [row[6:] for row in back] == [row[6:] for row in before]
    # a field of text and numbers becomes text, and one of whole numbers and others numbers
    assert [row[5] for row in back] == [
        {**METADATA[0], "mixed": "1"},
        METADATA[1],
        METADATA[2],
    ]


def test_other_tools_read_the_file(index: Path, tmp_path: Path) -> None:
    with Index.open(index) as opened:
        write_vectors(opened, tmp_path / "v.parquet", where="label = 'cat'")
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == [
        *("key", "source", "width", "height", "added", "embedding"),
        *("embedding_", "flag", "label", "mixed", "score", "width_", "year"),
    ]
    assert table["key"].to_pylist() == ["a/1.jpg"]
    assert table["flag"].to_pylist() == [True]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()), unit_vectors(4)[:1])


def test_files_of_other_tools_are_read(tmp_path: Path, model: Path) -> None:
    vectors = unit_vectors(5000)
    columns = {
        "key": [f"{i}.jpg" for i in range(5000)],
        "embedding": list(vectors.astype(np.float64)),
        "label": ["a", "b"] * 2500,
        "nan": [math.nan] * 5000,
    }
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    seen: list[int] = []
    with Index.create(tmp_path / "i", model=model) as made:
        read_vectors(
            made,
            VectorFile(tmp_path / "v.parquet"),
            on_progress=lambda done, _failed: seen.append(done),
        )
        assert len(made) == seen[-1] == 5000
        item = made.item_by_key("4321.jpg")
        assert (item.metadata["label"], item.source) == ("b", "v.parquet")
        np.testing.assert_array_equal(made.vector(item.id), vectors[4321])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"key": ["a"]}, "has no column embedding"),
        ({"embedding": [[1.0] * WIDTH]}, "has no column key"),
        ({"key": ["a"], "embedding": [[1.0] * WIDTH]}, "The vector of a has length 4"),
        ({"key": ["a"], "embedding": [[1.0, 0.0]]}, "have the shape"),
        ({"key": ["a", "b"], "embedding": [[1.0], [1.0, 0.0]]}, "different lengths"),
        ({"key": ["a"], "embedding": pa.array([None], pa.list_(pa.float32()))}, "without an emb"),
        ({"key": [1], "embedding": [[1.0] * WIDTH]}, "column key of .* is of type int64"),
        ({"key": ["a"], "embedding": ["text"]}, "column embedding of .* must be a list of numbers"),
        (
            {"key": ["a"], "embedding": [[1.0] * WIDTH], "added": [b"x"]},
            "column added of .* is of type binary",
        ),
        (
            {"key": pa.array([None], pa.string()), "embedding": [[1.0] + [0.0] * (WIDTH - 1)]},
            "row 0 has no key",
        ),
    ],
)
def test_files_that_are_no_vectors_are_refused(
    tmp_path: Path, model: Path, columns: dict[str, Any], words: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with Index.create(tmp_path / "i", model=model) as made:
        with pytest.raises(InputError, match=words):
            read_vectors(made, VectorFile(tmp_path / "v.parquet"))
        assert len(made) == 0


def test_a_file_of_another_model_is_refused(index: Path, tmp_path: Path) -> None:
    other = make_model_file(tmp_path / "other.onnx", width=WIDTH, seed=3)
    with Index.open(index) as opened:
        write_vectors(opened, tmp_path / "v.parquet")
    with (
        Index.create(tmp_path / "b", model=other) as made,
        pytest.raises(InputError, match=r"has vectors of .* but .* of"),
    ):
        read_vectors(made, VectorFile(tmp_path / "v.parquet"))


@pytest.mark.parametrize("data", [b"", b"PAR1 not really", b"text"])
def test_what_is_not_parquet_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "v.parquet").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        VectorFile(tmp_path / "v.parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        VectorFile(tmp_path / "missing.parquet")


def test_a_wrong_filter_or_place_writes_nothing(index: Path, tmp_path: Path) -> None:
    with Index.open(index) as opened:
        with pytest.raises(FilterError):
            write_vectors(opened, tmp_path / "v.parquet", where="nothing = 1")
        (tmp_path / "file").touch()
        with pytest.raises((EnvironmentProblem, OSError)):
            write_vectors(opened, tmp_path / "file" / "v.parquet")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.index", "file"]


def test_thumbnails_stay_if_the_file_has_none(index: Path, tmp_path: Path) -> None:
    before = content(index)
    with Index.open(index, writable=True) as opened:
        write_vectors(opened, tmp_path / "v.parquet")
        assert read_vectors(opened, VectorFile(tmp_path / "v.parquet")).num_unchanged >= 2
        assert {item.key: opened.thumbnail(item.id) for item in opened.items()} == {
            row[0]: row[6] for row in before
        }


def test_unicode_forms_and_repeated_keys_are_kept_apart(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featkit.index.vector_file.ROWS_AT_ONCE", 2)
    keys = ["e\u0301.jpg", "x.jpg", "\u00e9.jpg", "k.jpg", "k.jpg"]
    vectors = unit_vectors(5)
    pq.write_table(pa.table({"key": keys, "embedding": list(vectors)}), tmp_path / "v.parquet")
    with Index.create(tmp_path / "i", model=model) as made:
        for _ in range(3):
            read_vectors(made, VectorFile(tmp_path / "v.parquet"))
            assert sorted(item.key for item in made.items()) == sorted({*keys})
            np.testing.assert_array_equal(made.vector(made.item_by_key("k.jpg").id), vectors[4])


def test_vectors_of_a_run_without_a_proof_are_refused(
    index: Path, tmp_path: Path, model: Path
) -> None:
    with Index.open(index) as opened:
        write_vectors(opened, tmp_path / "v.parquet")
    table = pq.read_table(tmp_path / "v.parquet")
    for run, words in (("openvino bf16", "prove that both"), ("steam fp3", "update featkit")):
        about = {**table.schema.metadata, b"featkit.run": run.encode()}
        pq.write_table(table.replace_schema_metadata(about), tmp_path / "w.parquet")
        with (
            Index.create(tmp_path / run, model=model) as made,
            pytest.raises(InputError, match=words),
        ):
            read_vectors(made, VectorFile(tmp_path / "w.parquet"))
