"""A text file that lists pictures: one a line, in its order, relative to its own folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featkit.sources import open_source
from tests.featkit.sources.files import contents, keys, write_files
from tests.sentences import refused


def write_list(folder: Path, content: str | bytes, *, name: str = "list.txt") -> Path:
    """A list of the pictures in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize("name", ["list.txt", "list.lst"])
def test_a_list_keeps_its_order_and_passes_over_comments_and_empty_lines(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "b.jpg", "a/1.jpg", "with space.jpg", "no-suffix")
    source = open_source(write_list(tmp_path, "# mine\n\nb.jpg\n  a/1.jpg  \n\n#x.jpg\nwith space.jpg\nno-suffix", name=name))
    assert keys(source) == ["b.jpg", "a/1.jpg", "with space.jpg", "no-suffix"]
    assert contents(source) == [b"b.jpg", b"a/1.jpg", b"with space.jpg", b"no-suffix"]
    assert [source.metadata(number) for number in range(4)] == [{}, {"folder": "a"}, {}, {}]


def test_paths_are_relative_to_the_list_not_to_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "lists/x.jpg", "pictures/y.jpg", "x.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source(write_list(Path("lists"), f"x.jpg\n../pictures/y.jpg\n{tmp_path}/x.jpg\n"))
    assert contents(source) == [b"lists/x.jpg", b"pictures/y.jpg", b"x.jpg"]
    assert keys(source) == ["x.jpg", "../pictures/y.jpg", f"{tmp_path}/x.jpg"]


def test_an_entry_that_is_missing_is_an_item_that_says_so(tmp_path: Path) -> None:
    write_files(tmp_path, "here.jpg")
    source = open_source(write_list(tmp_path, "gone.jpg\nhere.jpg\n"))
    assert keys(source) == ["gone.jpg", "here.jpg"]
    with refused(tmp_path / "gone.jpg", "does not exist"):
        source.read(0)
    assert source.read(1) == b"here.jpg"


def test_a_list_from_windows_is_read_alike(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "b.jpg")
    source = open_source(write_list(tmp_path, b"\xef\xbb\xbfa.jpg\r\n# c\r\nb.jpg\r\n"))
    assert contents(source) == [b"a.jpg", b"b.jpg"]


def test_names_with_unusual_characters_are_one_line_each(tmp_path: Path) -> None:
    names = ["a\x0cb.jpg", "c\u2028d.jpg", "e\x85f.jpg", os.fsdecode(b"caf\xe9.jpg")]
    write_files(tmp_path, *names)
    source = open_source(write_list(tmp_path, "\n".join(names).encode("utf-8", "surrogateescape")))
    assert keys(source) == [*names[:3], "caf\\xe9.jpg"]
    assert contents(source) == [name.encode("utf-8", "surrogateescape") for name in names]


@pytest.mark.parametrize("content", ["", "\n \n", "# only\n# remarks\n"])
def test_an_empty_list_is_refused(tmp_path: Path, content: str) -> None:
    path = write_list(tmp_path, content)
    with refused(f"{path} lists no pictures; write one path a line."):
        open_source(path)


def test_a_path_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path, "a.jpg\nb.jpg\n# a.jpg\nb.jpg\na.jpg\n")
    with refused(f"{path} lists b.jpg twice; every picture has one place."):
        open_source(path)
