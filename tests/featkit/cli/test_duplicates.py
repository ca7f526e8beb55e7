"""The command `featkit duplicates`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.commands import run_featkit
from tests.featkit.duplicates.conftest import scenes as scenes


@pytest.fixture
def index(scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "photos.index"))


def test_groups_are_listed_with_what_to_keep(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    code, out, _ = run_featkit("duplicates", index, "--csv", file, "--quiet")
    assert code == 0
    assert "keep: largest, 256×192" in " ".join(out.split())
    assert "Nothing" not in out
    rows = [*csv.DictReader(file.read_text().splitlines())]
    assert [*rows[0]] == ["group", "level", "score", "keep", "reason", "key"]
    kept = {row["key"] for row in rows if row["keep"] == "yes"}
    assert len(kept & {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}) >= 3


def test_decisions_hide_pairs(index: Path) -> None:
    _, out, _ = run_featkit("duplicates", index, "--json")
    groups = json.loads(out)["groups"]
    first = [groups[0]["keep"], groups[0]["others"][0]]
    code, out, _ = run_featkit("duplicates", index, "--distinct", *first)
    assert (code, out) == (0, "1 pair will not be listed any more.\n")
    _, out, _ = run_featkit("duplicates", index, "--json")
    for group in json.loads(out)["groups"]:
        assert not {*first} <= {group["keep"], *group["others"]}


def test_two_indexes_are_compared(index: Path, scenes: Path) -> None:
    code, out, _ = run_featkit("duplicates", index, "--against", scenes, "--json")
    assert code == 0
    pairs = json.loads(out)["pairs"]
    assert {pair["key"] for pair in pairs if pair["key"] == pair["also"]} >= {"0.jpg", "29.jpg"}
    code, out, _ = run_featkit("duplicates", index, "--against", scenes, "--quiet")
    assert out.rstrip().endswith("as well.")
