"""The files that a glob pattern matches."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.sources import open_source
from featkit.sources.selection import Selection
from tests.featkit.sources.files import contents, keys, write_files, write_tar
from tests.sentences import refused


def write_parquet(path: Path, *rows: bytes) -> Path:
    """Write a Parquet file of these images."""
    pq.write_table(pa.table({"image": pa.array(rows)}), path)
    return path


def test_pattern_opens_the_shards_that_match(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        write_tar(tmp_path / f"{name}.tar", [("x.jpg", name.encode())])
    source = open_source(f"{tmp_path}/train-*.tar")
    assert keys(source) == ["train-0.tar/x.jpg", "train-1.tar/x.jpg"]
    assert contents(source) == [b"train-0", b"train-1"]


def test_pattern_opens_files_and_passes_over_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "p/a.jpg", "p/b.png", "p/c.jpg", "p/sub.jpg/d.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source("p/*.jpg")
    assert keys(source) == ["p/a.jpg", "p/c.jpg"]
    assert contents(source) == [b"p/a.jpg", b"p/c.jpg"]
    assert source.metadata(0) == {"folder": "p"}
    assert source.skipped == {"matched folder": 1}
    assert (
        open_source("p/**/*.jpg").skipped == {}
    )  # the pattern matches the files in the folder, too


def test_match_of_a_pattern_is_read_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(
        tmp_path,
        "p/a.jpg",
        "p/@eaDir/a.jpg",
        "p/sub/@eaDir/b/c.jpg",
        "p/sub/d.jpg",
        ".private/@eaDir/e.jpg",
    )
    (tmp_path / "p" / "gone.jpg").symlink_to("nothing.jpg")
    (tmp_path / "p" / "gone.tar").symlink_to("nothing.tar")
    monkeypatch.chdir(tmp_path)
    source = open_source("p/**/*.*")
    assert keys(source) == ["p/a.jpg", "p/gone.jpg", "p/sub/d.jpg", "gone.tar"]
    assert source.skipped == {"system folder (@eaDir)": 2}
    for i in (1, 3):
        with refused("gone"):
            source.read(i)
    assert keys(open_source("p/@eaDir/*.jpg")) == ["p/@eaDir/a.jpg"]
    assert keys(open_source(".private/*/*.jpg", selection=Selection(include=("@eaDir",)))) == [
        ".private/@eaDir/e.jpg"
    ]
    with refused("No file matches .private/*/*.jpg", "Skipped: 1 system folder (@eaDir)."):
        open_source(".private/*/*.jpg")


def test_existing_folder_is_not_taken_for_a_pattern(tmp_path: Path) -> None:
    write_files(tmp_path, "holiday [2019]/x.jpg")
    assert keys(open_source(tmp_path / "holiday [2019]")) == ["x.jpg"]


def test_pattern_without_a_match_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "folder/x.jpg")
    for pattern in (f"{tmp_path}/*.png", f"{tmp_path}/fold*"):
        with refused(f"No file matches {pattern}; put it in quotes and check the pattern."):
            open_source(pattern)


def test_pattern_works_below_a_folder_with_brackets(tmp_path: Path) -> None:
    trip = tmp_path / "[2024] trip"
    write_files(trip, "a.jpg", "sub [x]/c.jpg")
    write_tar(trip / "b.tar", [("b.jpg", b"b")])
    assert keys(open_source(trip)) == ["a.jpg", "sub [x]/c.jpg", "b.tar/b.jpg"]
    assert keys(open_source(f"{trip}/*.tar")) == ["b.tar/b.jpg"]
    assert keys(open_source(f"{trip}/sub [x]/?.jpg")) == [f"{trip}/sub [x]/c.jpg"]
    assert keys(open_source(f"{tmp_path}/*/b.tar")) == ["b.tar/b.jpg"]
    assert contents(open_source(f"{trip}/**/*.jpg")) == [b"a.jpg", b"sub [x]/c.jpg"]


def test_pattern_can_match_images_and_containers(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    write_tar(tmp_path / "b.tar", [("b.jpg", b"b")])
    assert keys(open_source(f"{tmp_path}/*")) == [f"{tmp_path}/a.jpg", "b.tar/b.jpg"]
