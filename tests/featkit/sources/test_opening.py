"""From what a user typed to a source: folders, files, shards and patterns, and one sentence for all
else."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.sources import concatenate, open_source, subset
from featkit.sources.selection import Selection
from tests.featkit.sources.files import contents, keys, write_files, write_tar
from tests.sentences import refused


def write_parquet(path: Path, *rows: bytes) -> Path:
    """A Parquet file of these images."""
    pq.write_table(pa.table({"image": pa.array(rows)}), path)
    return path


def test_one_image_is_a_source_of_one_whatever_its_name(tmp_path: Path) -> None:
    write_files(tmp_path, "a/x.jpg", "a/scan")
    for name in ("x.jpg", "scan"):
        source = open_source(tmp_path / "a" / name)
        assert (keys(source), contents(source), source.metadata(0)) == (
            [name],
            [f"a/{name}".encode()],
            {},
        )


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
    assert keys(source) == [
        "t-0.tar/x.jpg",
        "t-1.tar/x.jpg",
        "t-1.tar/y.jpg",
        "t-2.parquet/0",
        "t-2.parquet/1",
    ]
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


def test_a_pattern_of_files_opens_those_and_passes_over_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "p/a.jpg", "p/b.png", "p/c.jpg", "p/sub.jpg/d.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source("p/*.jpg")
    assert keys(source) == ["p/a.jpg", "p/c.jpg"]
    assert contents(source) == [b"p/a.jpg", b"p/c.jpg"]
    assert source.metadata(0) == {"folder": "p"}
    assert source.skipped == {"matched folder": 1}
    assert open_source("p/**/*.jpg").skipped == {}  # what is in the folder matches as well


def test_what_a_pattern_matches_is_read_or_counted(
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
    with refused("No file matches .private/*/*.jpg", "Passed over: 1 system folder (@eaDir)."):
        open_source(".private/*/*.jpg")


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "holiday [2019]/x.jpg")
    assert keys(open_source(tmp_path / "holiday [2019]")) == ["x.jpg"]


def test_a_pattern_that_matches_no_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "folder/x.jpg")
    for pattern in (f"{tmp_path}/*.png", f"{tmp_path}/fold*"):
        with refused(f"No file matches {pattern}; put it in quotes and check the pattern."):
            open_source(pattern)


def test_equal_names_in_two_tars_and_equal_names_of_tars_are_two_items(tmp_path: Path) -> None:
    for name in ("a/t.tar", "b/t.tar", "b/u.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, [("x.jpg", name.encode())])
    assert keys(open_source(tmp_path / "b")) == ["t.tar/x.jpg", "u.tar/x.jpg"]
    assert keys(open_source(f"{tmp_path}/*/*.tar")) == [
        "a/t.tar/x.jpg",
        "b/t.tar/x.jpg",
        "b/u.tar/x.jpg",
    ]


@pytest.mark.parametrize(
    "name",
    ["missing", "missing.jpg", "missing.tar", "missing.parquet", "missing.txt", "x.jpg/y.jpg"],
)
def test_what_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "x.jpg")
    with refused(
        f"{tmp_path}/{name} does not exist; name a folder of images, a .tar, a .parquet, or a"
        " .txt list of paths."
    ):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "https://example.org/a b/t.tar",
            "https://example.org/a b/t.tar is an address, not a file; download it",
        ),
        (Path("s3://bucket/t.tar"), "s3://bucket/t.tar is an address, not a file; download it"),
        (Path("file:///a/t.tar"), "file:///a/t.tar is an address; name the path itself: /a/t.tar."),
        (
            "shard-{000..127}.tar",
            "braces are not expanded here; name a pattern such as 'shard-*.tar'",
        ),
        ("p/{a,b}.jpg", "braces are not expanded here"),
        ("C:/photos", "C:/photos does not exist; name a folder of images"),
        ("a{1}b", "a{1}b does not exist; name a folder of images"),
    ],
)
def test_what_other_programs_read_is_refused_with_the_way_out(spec: str | Path, words: str) -> None:
    with refused(words):
        open_source(spec)


@pytest.mark.parametrize("name", ["pipe.tar", "pipe.jpg", "pipe.txt", "pipe"])
def test_a_pipe_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with refused(tmp_path / name, "is a pipe or a device", "write its data to a file"):
        open_source(tmp_path / name)


def test_a_link_to_nothing_is_refused_with_what_it_names(tmp_path: Path) -> None:
    for name, target in (("gone.jpg", "nothing.jpg"), ("loop.tar", "loop.tar")):
        (tmp_path / name).symlink_to(target)
        with refused(
            tmp_path / name, f"is a link to {target}, which does not exist; name an existing file."
        ):
            open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar.zst", "t.tar.bz2", "t.zip"])
def test_compressed_archives_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, name)
    with refused(
        f"{tmp_path / name} is compressed and cannot be read at random; unpack it, or make it a"
        " .tar."
    ):
        open_source(tmp_path / name)


def test_images_and_containers_of_one_folder_are_all_read(tmp_path: Path) -> None:
    write_files(tmp_path, "z.jpg", "sub/1.jpg", ".hidden/1.jpg", "sub/.2.jpg")
    write_tar(tmp_path / "a.tar", [("x.jpg", b"ax")])
    write_tar(tmp_path / "sub" / "a.tar", [("x.jpg", b"sub")])
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000.parquet", b"p0", b"p1")
    write_tar(tmp_path / "@eaDir" / "t.tar", [("x.jpg", b"no")])
    source = open_source(tmp_path)
    assert dict(zip(keys(source), contents(source), strict=True)) == {
        "sub/1.jpg": b"sub/1.jpg",
        "z.jpg": b"z.jpg",
        "a.tar/x.jpg": b"ax",
        "data/train-00000.parquet/0": b"p0",
        "data/train-00000.parquet/1": b"p1",
        "sub/a.tar/x.jpg": b"sub",
    }
    assert source.skipped == {"hidden folder": 1, "hidden file": 1, "system folder (@eaDir)": 1}


@pytest.mark.parametrize(
    "name", ["X.TAR", "x.Tar", "X.PARQUET", "x.parq", "x.pq", "X.PQ", "shard-0", "x.wds"]
)
def test_containers_are_told_by_suffixes_in_any_case_and_by_their_bytes(
    tmp_path: Path, name: str
) -> None:
    if "p" in name.lower():
        write_parquet(tmp_path / name, b"x")
        expected = f"{name}/0"
    else:
        write_tar(tmp_path / name, [("x.jpg", b"x")])
        expected = f"{name}/x.jpg"
    opened = [open_source(tmp_path / name)]
    if "." in name and name != "x.wds":
        opened += [open_source(tmp_path), open_source(f"{tmp_path}/[xX].*")]
    assert [(keys(source), contents(source)) for source in opened] == [([expected], [b"x"])] * len(
        opened
    )


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "zeros",
        "garbage",
        "gzip",
        "cut",
        "text",
        "page",
        "closed",
        "gone",
        "pipe",
        "no-rows",
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_shard_that_cannot_be_read_is_an_item_among_others(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    def write(name: str) -> Path:
        path = tmp_path / f"{name}{suffix}"
        return (
            write_tar(path, [("x.jpg", b"x" * 700)])
            if suffix == ".tar"
            else write_parquet(path, b"x" * 700)
        )

    for name in ("1", "2", "3"):
        write(name)
    bad = tmp_path / f"2{suffix}"
    data = {
        "empty": b"",
        "zeros": bytes(10240),
        "garbage": random.Random(0).randbytes(5000),
        "gzip": gzip.compress(bad.read_bytes()),
        "cut": bad.read_bytes()[:600],
        "text": b"a note\n" * 99,
        "page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    }.get(kind)
    if data is not None:
        bad.write_bytes(data)
    elif kind == "closed":
        bad.chmod(0)
        if os.access(bad, os.R_OK):
            pytest.skip("this user may read everything")
    elif kind == "no-rows":
        if suffix == ".tar":
            pytest.skip("a tar without members is zeros")
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), bad)
    else:
        bad.unlink()
        if kind == "gone":
            bad.symlink_to("nowhere")
        else:
            os.mkfifo(bad)
    for spec in (tmp_path, f"{tmp_path}/?{suffix}"):
        if kind in ("gone", "pipe") and spec != tmp_path:
            continue  # patterns match files alone
        source = open_source(spec)
        assert len(source) == 3
        failed = [number for number in range(3) if source.key(number).startswith(f"2{suffix}")]
        assert len(failed) == 1
        with refused(bad):
            source.read(failed[0])
        assert [source.read(number) for number in range(3) if number not in failed] == [
            b"x" * 700
        ] * 2
    if kind not in ("gone", "pipe"):
        with refused(bad):
            open_source(bad)


def test_containers_that_all_fail_are_refused_with_the_first_reason(tmp_path: Path) -> None:
    write_files(tmp_path, "a.tar", "b.tar")
    with refused(
        f"None of the 2 containers of {tmp_path} can be read. The first: {tmp_path / 'a.tar'} is "
    ):
        open_source(tmp_path)


def test_a_container_without_images_is_counted_among_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "papers.tar", [("a.md", b"x")])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "metadata.parquet")
    for name in ("metadata.parquet", "papers.tar"):
        with refused(tmp_path / name):
            open_source(tmp_path / name)
    write_files(tmp_path, "x.jpg")
    source = open_source(tmp_path)
    assert (keys(source), source.skipped) == (["x.jpg"], {"container without images": 2})


def test_a_link_to_a_container_is_read_once(tmp_path: Path) -> None:
    # as the Hub's cache keeps files
    blob = write_tar(tmp_path / "blobs" / "0af", [("x.jpg", b"x")])
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    for name in ("data/train.tar", "again.tar"):
        (tmp_path / "snapshot" / name).symlink_to(blob)
    source = open_source(tmp_path / "snapshot")
    assert (keys(source), source.skipped) == (
        ["again.tar/x.jpg"],
        {"link to a file already taken": 1},
    )


def test_patterns_below_a_folder_with_brackets_in_its_name(tmp_path: Path) -> None:
    trip = tmp_path / "[2024] trip"
    write_files(trip, "a.jpg", "sub [x]/c.jpg")
    write_tar(trip / "b.tar", [("b.jpg", b"b")])
    assert keys(open_source(trip)) == ["a.jpg", "sub [x]/c.jpg", "b.tar/b.jpg"]
    assert keys(open_source(f"{trip}/*.tar")) == ["b.tar/b.jpg"]
    assert keys(open_source(f"{trip}/sub [x]/?.jpg")) == [f"{trip}/sub [x]/c.jpg"]
    assert keys(open_source(f"{tmp_path}/*/b.tar")) == ["b.tar/b.jpg"]
    assert contents(open_source(f"{trip}/**/*.jpg")) == [b"a.jpg", b"sub [x]/c.jpg"]


def test_a_pattern_may_match_images_and_containers(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    write_tar(tmp_path / "b.tar", [("b.jpg", b"b")])
    assert keys(open_source(f"{tmp_path}/*")) == [f"{tmp_path}/a.jpg", "b.tar/b.jpg"]


def test_patterns_choose_members_and_rows_and_damage_stays(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "bad.tar")
    write_tar(
        tmp_path / "t.tar", [("keep/x.jpg", b"x"), ("keep/y.png", b"y"), ("drop/z.jpg", b"z")]
    )
    write_parquet(tmp_path / "p.parquet", b"0", b"1")
    source = open_source(
        tmp_path, selection=Selection(include=("t.tar/*/*.jpg", "p.parquet/1"), exclude=("drop",))
    )
    assert keys(source) == ["bad.tar", "p.parquet/1", "t.tar/keep/x.jpg"]
    assert keys(open_source(tmp_path, selection=Selection(exclude=("*.tar",)))) == [
        "a.jpg",
        "p.parquet/0",
        "p.parquet/1",
    ]
    with refused("leave none of them"):
        open_source(tmp_path / "p.parquet", selection=Selection(include=("*.jpg",)))


def test_patterns_for_one_archive_may_leave_out_its_name(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "t.tar",
        [("keep/x.jpg", b"x"), ("drop/keep/y.jpg", b"y"), ("@eaDir/z.jpg", b"z")],
    )
    write_parquet(tmp_path / "p.parquet", b"0", b"1")
    for selection in (
        Selection(include=("keep/**",)),
        Selection(include=("t.tar/keep",)),
        Selection(exclude=("drop/*",)),
    ):
        assert keys(open_source(tmp_path / "t.tar", selection=selection)) == ["t.tar/keep/x.jpg"]
    assert keys(open_source(tmp_path / "t.tar", selection=Selection(include=("@eaDir/*",)))) == [
        "t.tar/@eaDir/z.jpg"
    ]
    assert keys(open_source(tmp_path / "p.parquet", selection=Selection(exclude=("/0",)))) == [
        "p.parquet/1"
    ]
    with refused("leave none"):  # of a folder the root is the folder
        open_source(tmp_path, selection=Selection(include=("keep/**",)))


def test_every_source_says_which_file_an_item_lies_in(tmp_path: Path) -> None:
    write_files(tmp_path, "a/x.jpg")
    (tmp_path / "list.txt").write_text("a/x.jpg\n")
    write_tar(tmp_path / "t.tar", [("x.jpg", b"x"), ("y.jpg", b"y")])
    parquet = write_parquet(tmp_path / "p.parquet", b"0")
    own = tmp_path / "a/x.jpg"
    for spec in (tmp_path / "a", own, tmp_path / "list.txt", f"{tmp_path}/*/x.jpg"):
        assert open_source(spec).file(0) == own
    both = concatenate([open_source(tmp_path / "t.tar"), open_source(parquet)])
    assert [both.file(number) for number in range(3)] == [
        tmp_path / "t.tar",
        tmp_path / "t.tar",
        parquet,
    ]
    assert subset(both, [2]).file(0) == parquet
