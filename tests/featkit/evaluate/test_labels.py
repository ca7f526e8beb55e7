"""Tests that labels of tar, Parquet and folders agree and that missing labels are reported."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featkit.embedder import Embedder
from featkit.evaluate.labels import embed_labeled, find_column, labels_of
from featkit.sources import open_source
from tests.featkit.evaluate.labeled import write_kinds_folder, write_kinds_parquet, write_kinds_tar
from tests.featkit.sources.files import image_bytes
from tests.images import draw_folder
from tests.sentences import refused


def test_the_numbers_of_a_tar_and_of_a_parquet_file_meet(tmp_path: Path, model_file: Path) -> None:
    train = open_source(write_kinds_tar(tmp_path / "a.tar", [2, 0, 0, 1]))
    test = open_source(write_kinds_parquet(tmp_path / "b.parquet", [1, 0]))
    pair = embed_labeled(train, test, Embedder(model_file, threads=1), [])
    assert pair.columns == ("class", "label")
    assert pair.names == ["0", "1", "2"]
    assert pair.train_labels.tolist() == [2, 0, 0, 1]
    assert pair.test_labels.tolist() == [1, 0]
    assert (pair.most_frequent, pair.num_unseen) == (0.5, 0)


def test_folders_are_labels_if_there_is_no_column(tmp_path: Path, model_file: Path) -> None:
    train = open_source(write_kinds_folder(tmp_path / "train", [0, 2]))
    test = open_source(write_kinds_folder(tmp_path / "test", [2, 1]))
    pair = embed_labeled(train, test, Embedder(model_file, threads=1), [])
    assert pair.columns == ("folder", "folder")
    assert pair.names == ["blue", "green", "red"]
    # of equally frequent labels the first, blue
    assert (pair.most_frequent, pair.num_unseen) == (0.5, 1)


def test_progress_counts_both_parts_unlabeled_are_left_out(
    tmp_path: Path, model_file: Path
) -> None:
    train = open_source(write_kinds_tar(tmp_path / "a.tar", [0, 1]))
    test = open_source(write_kinds_parquet(tmp_path / "b.parquet", [1, None, 0]))
    failures: list[tuple[str, str]] = []
    seen: list[tuple[int, int]] = []
    pair = embed_labeled(
        train,
        test,
        Embedder(model_file, threads=1),
        failures,
        on_progress=lambda *counts: seen.append(counts),
    )
    assert (len(pair.train), len(pair.test)) == (2, 2)
    assert failures == [("b.parquet/1", "b.parquet/1 has no value in the column label.")]
    assert seen == [(2, 0), (5, 1)]


def test_a_missing_column_lists_the_existing_ones(tmp_path: Path) -> None:
    source = open_source(write_kinds_tar(tmp_path / "a.tar", [0, 1]))
    with refused("a.tar has no column kind", "only folder, class"):
        find_column(source, "kind")
    with refused("no column label, and no other", "into one folder per class"):
        find_column(open_source(draw_folder(tmp_path / "flat", 2)), "label")
    assert find_column(source, "folder") == "folder"


def test_a_whole_number_is_the_same_label_in_any_type(tmp_path: Path) -> None:
    image = {"bytes": image_bytes(), "path": None}
    rows = {"image": [image] * 2, "size": [3.0, 0.5], "real": [True, False], "name": ["3", "x"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert [labels_of(source, column)(0) for column in ("size", "real", "name")] == ["3", "1", "3"]
    assert labels_of(source, "size")(1) == "0.5"


def test_labels_that_never_meet_are_refused_with_some_of_both(
    tmp_path: Path, model_file: Path
) -> None:
    train = open_source(write_kinds_folder(tmp_path / "train", [0, 1]))
    test = open_source(write_kinds_parquet(tmp_path / "b.parquet", [1, 0]))
    with refused("green, red (folder)", "0, 1 (label)", "none in common"):
        embed_labeled(train, test, Embedder(model_file, threads=1), [])


def test_a_part_without_a_readable_image_is_refused(tmp_path: Path, model_file: Path) -> None:
    train = open_source(write_kinds_folder(tmp_path / "train", [0]))
    (tmp_path / "test" / "red").mkdir(parents=True)
    (tmp_path / "test" / "red" / "bad.jpg").write_bytes(b"no image")
    with refused("test has no readable image with a label", "bad.jpg is not an image"):
        embed_labeled(train, open_source(tmp_path / "test"), Embedder(model_file, threads=1), [])
