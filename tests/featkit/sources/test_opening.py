"""Opening what a user typed; what cannot be opened is refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.sources import concatenate, open_source, subset
from tests.featkit.sources.files import contents, keys, write_files, write_tar
from tests.sentences import refused


def write_parquet(path: Path, *rows: bytes) -> Path:
    """Write a Parquet file of these images."""
    pq.write_table(pa.table({"image": pa.array(rows)}), path)
    return path


def test_one_image_is_a_source_of_one_item(tmp_path: Path) -> None:
    write_files(tmp_path, "a/x.jpg", "a/scan")
    for name in ("x.jpg", "scan"):
        source = open_source(tmp_path / "a" / name)
        assert (keys(source), contents(source), source.metadata(0)) == (
            [name],
            [f"a/{name}".encode()],
            {},
        )


def test_source_can_be_given_as_text_or_path(tmp_path: Path) -> None:
    write_files(tmp_path, "x.jpg")
    assert keys(open_source(str(tmp_path))) == keys(open_source(tmp_path)) == ["x.jpg"]
    assert open_source(f"{tmp_path}/.").name == f"{tmp_path}"


@pytest.mark.parametrize(
    "name",
    ["missing", "missing.jpg", "missing.tar", "missing.parquet", "missing.txt", "x.jpg/y.jpg"],
)
def test_missing_path_is_refused(tmp_path: Path, name: str) -> None:
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
def test_addresses_and_braces_are_refused_with_advice(spec: str | Path, words: str) -> None:
    with refused(words):
        open_source(spec)


@pytest.mark.parametrize("name", ["pipe.tar", "pipe.jpg", "pipe.txt", "pipe"])
def test_pipe_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with refused(tmp_path / name, "is a pipe or a device", "write its data to a file"):
        open_source(tmp_path / name)


def test_dangling_link_is_refused_with_its_target(tmp_path: Path) -> None:
    for name, target in (("gone.jpg", "nothing.jpg"), ("loop.tar", "loop.tar")):
        (tmp_path / name).symlink_to(target)
        with refused(
            tmp_path / name, f"is a link to {target}, which does not exist; name an existing file."
        ):
            open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar.zst", "t.tar.bz2", "t.zip"])
def test_compressed_archive_is_refused_with_advice(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, name)
    with refused(
        f"{tmp_path / name} is compressed and does not allow random access; unpack it, or convert"
        " it to a"
        " .tar."
    ):
        open_source(tmp_path / name)


def test_every_source_names_the_file_of_an_item(tmp_path: Path) -> None:
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
