"""From what a user typed to a source: folders, files, shards and patterns, and one sentence for all else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.sources import concatenate, open_source, subset
from featkit.sources.tar import TarSource
from tests.featkit.sources.files import contents, keys, write_files, write_tar
from tests.sentences import refused


def write_parquet(path: Path, *rows: bytes) -> Path:
    """A Parquet file of these pictures."""
    pq.write_table(pa.table({"image": pa.array(rows)}), path)
    return path


def test_one_picture_is_a_source_of_one_whatever_its_name(tmp_path: Path) -> None:
    write_files(tmp_path, "a/x.jpg", "a/scan")
    for name in ("x.jpg", "scan"):
        source = open_source(tmp_path / "a" / name)
        assert (keys(source), contents(source), source.metadata(0)) == ([name], [f"a/{name}".encode()], {})


def test_a_path_may_be_text_or_a_path(tmp_path: Path) -> None:
    write_files(tmp_path, "x.jpg")
    assert keys(open_source(str(tmp_path))) == keys(open_source(tmp_path)) == ["x.jpg"]
    assert open_source(f"{tmp_path}/.").name == f"{tmp_path}"


def test_a_folder_of_shards_is_its_shards_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "t-1.tar", [("x.jpg", b"1x"), ("y.jpg", b"1y")])
    write_tar(tmp_path / "t-0.tar", [("x.jpg", b"0x")])
    write_parquet(tmp_path / "t-2.parquet", b"20", b"21")
    write_files(tmp_path, "README.md")
    source = open_source(tmp_path)
    assert keys(source) == ["t-0.tar/x.jpg", "t-1.tar/x.jpg", "t-1.tar/y.jpg", "t-2.parquet/0", "t-2.parquet/1"]
    assert contents(source) == [b"0x", b"1x", b"1y", b"20", b"21"]
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == contents(source)
    for number in (-1, 5):
        with pytest.raises(IndexError):
            source.read(number)


def test_folders_that_are_called_like_shards_are_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "old.tar/x.jpg", "y.jpg")
    assert keys(open_source(tmp_path)) == ["old.tar/x.jpg", "y.jpg"]
    assert keys(open_source(tmp_path / "old.tar")) == ["x.jpg"]


def test_a_pattern_of_shards_opens_those_that_match(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "test-0"):
        write_tar(tmp_path / f"{name}.tar", [("x.jpg", name.encode())])
    source = open_source(f"{tmp_path}/train-*.tar")
    assert keys(source) == ["train-0.tar/x.jpg", "train-1.tar/x.jpg"]
    assert contents(source) == [b"train-0", b"train-1"]


def test_a_pattern_of_files_opens_those_and_passes_over_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "p/a.jpg", "p/b.png", "p/c.jpg", "p/sub.jpg/d.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source("p/*.jpg")
    assert keys(source) == ["p/a.jpg", "p/c.jpg"]
    assert contents(source) == [b"p/a.jpg", b"p/c.jpg"]
    assert source.metadata(0) == {"folder": "p"}


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "holiday [2019]/x.jpg")
    assert keys(open_source(tmp_path / "holiday [2019]")) == ["x.jpg"]


def test_a_pattern_that_matches_no_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "folder/x.jpg")
    for pattern in (f"{tmp_path}/*.png", f"{tmp_path}/fold*"):
        with refused(f"No file matches {pattern}; put it in quotes and check the pattern."):
            open_source(pattern)


def test_equal_names_in_two_tars_are_two_items_and_equal_names_of_tars_are_refused(tmp_path: Path) -> None:
    for name in ("a/t.tar", "b/t.tar", "b/u.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, [("x.jpg", name.encode())])
    assert keys(open_source(tmp_path / "b")) == ["t.tar/x.jpg", "u.tar/x.jpg"]
    with refused(f"{tmp_path}/a/t.tar and {tmp_path}/b/t.tar have one name"):
        open_source(f"{tmp_path}/*/*.tar")


@pytest.mark.parametrize("name", ["missing", "missing.jpg", "missing.tar", "missing.parquet", "missing.txt", "x.jpg/y.jpg"])
def test_what_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "x.jpg")
    with refused(f"{tmp_path}/{name} does not exist; name a folder of pictures, a .tar, a .parquet, or a .txt list of paths."):
        open_source(tmp_path / name)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    with refused(tmp_path / "pipe.tar"):
        open_source(tmp_path / "pipe.tar")


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar.zst", "t.tar.bz2", "t.zip"])
def test_compressed_archives_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, name)
    with refused(f"{tmp_path / name} is compressed and cannot be read at random; unpack it, or make it a .tar."):
        open_source(tmp_path / name)


def test_several_sources_are_numbered_through(tmp_path: Path) -> None:
    write_files(tmp_path / "p", "a/1.jpg", "2.jpg")
    tar = open_source(write_tar(tmp_path / "t.tar", [("a/1.jpg", b"tar"), ("a/1.cls", b"5")]))
    folder = open_source(tmp_path / "p")
    both = concatenate([tar, folder])
    assert keys(both) == ["t.tar/a/1.jpg", "2.jpg", "a/1.jpg"]
    assert contents(both) == [b"tar", b"2.jpg", b"a/1.jpg"]
    assert [both.metadata(number) for number in range(3)] == [{"folder": "a", "class": 5}, {}, {"folder": "a"}]
    assert both.name == f"{tmp_path}/t.tar, {tmp_path}/p"
    assert concatenate([tar]) is tar
    assert isinstance(tar, TarSource)


def test_a_subset_keeps_keys_and_takes_the_order_given(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, *(f"d/{number}.jpg" for number in range(5))))
    some = subset(source, [4, 0, 2])
    assert keys(some) == ["d/4.jpg", "d/0.jpg", "d/2.jpg"]
    assert contents(some) == [b"d/4.jpg", b"d/0.jpg", b"d/2.jpg"]
    assert (some.name, some.metadata(0)) == (source.name, {"folder": "d"})
    assert len(subset(source, [])) == 0


@pytest.mark.parametrize("picture", ["1.jpg", "sub/1.jpg", "sub/deeper/1.jpg"])
def test_a_folder_of_pictures_and_containers_is_refused_however_deep_the_pictures_lie(tmp_path: Path, picture: str) -> None:
    write_files(tmp_path, picture, "a.tar")
    with refused(tmp_path, f"holds pictures ({picture}) and a.tar", f"'{tmp_path}/*.tar'"):
        open_source(tmp_path)


def test_pictures_that_are_hidden_or_behind_a_link_do_not_hinder_containers(tmp_path: Path) -> None:
    write_files(tmp_path / "shards", ".hidden/1.jpg", "sub/.2.jpg", "sub/README.md")
    write_tar(tmp_path / "shards" / "t.tar", [("x.jpg", b"x")])
    write_files(tmp_path / "elsewhere", "3.jpg")
    (tmp_path / "shards" / "link").symlink_to(tmp_path / "elsewhere")
    assert keys(open_source(tmp_path / "shards")) == ["t.tar/x.jpg"]


def test_every_source_says_which_file_an_item_lies_in(tmp_path: Path) -> None:
    write_files(tmp_path, "a/x.jpg")
    (tmp_path / "list.txt").write_text("a/x.jpg\n")
    write_tar(tmp_path / "t.tar", [("x.jpg", b"x"), ("y.jpg", b"y")])
    parquet = write_parquet(tmp_path / "p.parquet", b"0")
    own = tmp_path / "a/x.jpg"
    for spec in (tmp_path / "a", own, tmp_path / "list.txt", f"{tmp_path}/*/x.jpg"):
        assert open_source(spec).file(0) == own
    both = concatenate([open_source(tmp_path / "t.tar"), open_source(parquet)])
    assert [both.file(number) for number in range(3)] == [tmp_path / "t.tar", tmp_path / "t.tar", parquet]
    assert subset(both, [2]).file(0) == parquet
