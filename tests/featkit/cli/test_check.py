"""The commands `featkit check` and `featkit repair`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.commands import run_featkit
from tests.featkit.index.test_checking import overwrite
from tests.featkit.index.test_checking import synced as synced


def test_a_damaged_index_is_repaired_and_synced(synced: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(synced / "i", tmp_path / "i"))
    code, out, _ = run_featkit("check", index, "--quiet")
    assert (code, " ".join(out.split())) == (
        0,
        f"{index} is sound: 60 vectors and 60 sampled thumbnails are as they should be.",
    )
    overwrite(index, 5, np.zeros(16))
    code, out, _ = run_featkit("check", index, "--json")
    assert code == 1
    assert [problem["part"] for problem in json.loads(out)["problems"]] == ["vectors"]
    code, out, _ = run_featkit("check", index, "--quiet")
    assert code == 1
    assert "1 vectors differ from what was written; run `featkit repair`" in " ".join(out.split())
    code, out, _ = run_featkit("repair", index, "--quiet")
    assert code == 0
    assert "Removed 1 images with a damaged vector" in out
    code, out, _ = run_featkit("sync", synced / "photos", index, "--quiet")
    assert code == 0
    assert "1 new" in out
    assert run_featkit("check", index, "--quiet")[0] == 0


def test_damage_that_keeps_an_index_from_opening_is_repaired(synced: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(synced / "i", tmp_path / "i"))
    overwrite(index, 0, np.zeros(16))  # the first vector is always sampled
    code, _, error = run_featkit("list", index)
    assert code == 2
    assert "or run `featkit repair`" in error
    assert run_featkit("check", index, "--quiet")[0] == 1
    code, out, _ = run_featkit("repair", index, "--quiet")
    assert (code, "Removed 1 images" in out) == (0, True)
    assert run_featkit("list", index)[0] == 0
