"""Shared files are made once for all workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.shared_files import made_once


def test_a_file_is_made_once_and_its_value_kept(tmp_path: Path) -> None:
    calls: list[Path] = []

    def make(path: Path) -> int:
        calls.append(path)
        path.write_text("made", encoding="utf-8")
        return 7

    with ThreadPoolExecutor(4) as pool:
        results = set(pool.map(lambda _: made_once(str(tmp_path), make, suffix=".txt"), range(8)))

    [(path, value)] = results
    assert (path.read_text(encoding="utf-8"), value, len(calls)) == ("made", 7, 1)


def test_a_failed_file_is_made_again(tmp_path: Path) -> None:
    def fail(path: Path) -> int:
        path.write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once(f"{tmp_path} again", fail, suffix=".txt")

    assert made_once(f"{tmp_path} again", lambda _: 3, suffix=".txt")[1] == 3
