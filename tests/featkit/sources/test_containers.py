"""Archives and Parquet files, alone and several as one source."""

from __future__ import annotations

import gzip
import os
import pickle
import random
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


def test_shards_of_a_folder_are_sorted_by_name(tmp_path: Path) -> None:
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


def test_folder_named_like_a_shard_is_a_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "old.tar/x.jpg", "y.jpg")
    assert keys(open_source(tmp_path)) == ["old.tar/x.jpg", "y.jpg"]
    assert keys(open_source(tmp_path / "old.tar")) == ["x.jpg"]


def test_equal_names_in_different_tars_are_different_items(tmp_path: Path) -> None:
    for name in ("a/t.tar", "b/t.tar", "b/u.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, [("x.jpg", name.encode())])
    assert keys(open_source(tmp_path / "b")) == ["t.tar/x.jpg", "u.tar/x.jpg"]
    assert keys(open_source(f"{tmp_path}/*/*.tar")) == [
        "a/t.tar/x.jpg",
        "b/t.tar/x.jpg",
        "b/u.tar/x.jpg",
    ]


def test_images_and_containers_of_a_folder_are_all_read(tmp_path: Path) -> None:
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
def test_container_is_recognized_by_its_suffix_or_first_bytes(tmp_path: Path, name: str) -> None:
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
def test_unreadable_shard_is_an_item_among_others(tmp_path: Path, kind: str, suffix: str) -> None:
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
            continue  # patterns match only files
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


def test_containers_that_all_fail_are_refused_with_one_reason(tmp_path: Path) -> None:
    write_files(tmp_path, "a.tar", "b.tar")
    with refused(
        f"None of the 2 containers of {tmp_path} can be read. The first: {tmp_path / 'a.tar'} is "
    ):
        open_source(tmp_path)


def test_container_without_images_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "papers.tar", [("a.md", b"x")])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "metadata.parquet")
    for name in ("metadata.parquet", "papers.tar"):
        with refused(tmp_path / name):
            open_source(tmp_path / name)
    write_files(tmp_path, "x.jpg")
    source = open_source(tmp_path)
    assert (keys(source), source.skipped) == (["x.jpg"], {"container without images": 2})


def test_container_and_a_link_to_it_are_read_once(tmp_path: Path) -> None:
    # as in the Hub's cache
    blob = write_tar(tmp_path / "blobs" / "0af", [("x.jpg", b"x")])
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    for name in ("data/train.tar", "again.tar"):
        (tmp_path / "snapshot" / name).symlink_to(blob)
    source = open_source(tmp_path / "snapshot")
    assert (keys(source), source.skipped) == (
        ["again.tar/x.jpg"],
        {"link to a file already taken": 1},
    )


def test_selection_applies_to_members_and_rows_not_to_damage(tmp_path: Path) -> None:
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


def test_selection_in_one_archive_can_leave_out_its_name(tmp_path: Path) -> None:
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
