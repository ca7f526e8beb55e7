"""An index is recognized by its catalogue."""

from __future__ import annotations

from pathlib import Path

from featkit.folders import CATALOGUE_FILE, is_index


def test_is_index_needs_a_catalogue_file(tmp_path: Path) -> None:
    assert not is_index(tmp_path)
    assert not is_index(tmp_path / "missing")
    (tmp_path / CATALOGUE_FILE).mkdir()
    assert not is_index(tmp_path)
    (tmp_path / CATALOGUE_FILE).rmdir()
    (tmp_path / CATALOGUE_FILE).touch()
    assert is_index(tmp_path)
