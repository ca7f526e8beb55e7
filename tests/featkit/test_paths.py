"""Paths for libraries that accept only UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featkit.paths import is_text, map_arrow, open_arrow, text_path

NOT_TEXT = os.fsdecode(b"caf\xe9")


@pytest.fixture
def odd_file(tmp_path: Path) -> Path:
    """A file whose name is not UTF-8, if the system allows one."""
    path = tmp_path / f"{NOT_TEXT}.bin"
    try:
        path.write_bytes(b"data")
    except OSError:
        pytest.skip("names of files are UTF-8 here")
    return path


@pytest.mark.parametrize(("name", "text"), [("café", True), (NOT_TEXT, False), ("\ud800", False)])
def test_is_text_accepts_only_valid_utf8(name: str, text: bool) -> None:
    assert is_text(name) == text


def test_text_path_is_the_path_itself_if_it_is_text(tmp_path: Path) -> None:
    with text_path(tmp_path / "é.bin") as path:
        assert path == str(tmp_path / "é.bin")


def test_text_path_links_to_a_file_with_another_name(odd_file: Path) -> None:
    with text_path(odd_file) as path:
        assert is_text(path)
        assert path.endswith(".bin")
        assert Path(path).read_bytes() == b"data"
    assert not Path(path).exists()


def test_text_path_links_companions_under_their_own_names(odd_file: Path) -> None:
    odd_file.with_name("weights").write_bytes(b"weights")
    with text_path(odd_file, companions=lambda: ["weights"]) as path:
        assert Path(path).with_name("weights").read_bytes() == b"weights"


def test_text_path_works_below_a_folder_with_another_name(tmp_path: Path) -> None:
    folder = tmp_path / NOT_TEXT
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("names of files are UTF-8 here")
    (folder / "a.bin").write_bytes(b"a")
    (folder / "b.bin").write_bytes(b"b")
    with text_path(folder / "a.bin") as path:
        assert is_text(path)
        assert Path(path).with_name("b.bin").read_bytes() == b"b"


def test_arrow_opens_and_maps_any_name(odd_file: Path) -> None:
    with open_arrow(odd_file) as opened:
        assert opened.read() == b"data"
    with map_arrow(odd_file) as mapped:
        assert mapped.read() == b"data"
