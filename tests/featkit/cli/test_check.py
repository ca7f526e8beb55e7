"""The commands `featkit check` and `featkit repair`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from featkit.index import Index
from featkit.index.reclaiming import reclaim
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
    assert "Removed 1 image with a damaged vector" in out
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
    assert (code, "Removed 1 image" in out) == (0, True)
    assert run_featkit("list", index)[0] == 0


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_truncated_index_is_repaired_and_synced(
    synced: Path, tmp_path: Path, is_compacted: bool
) -> None:
    index = Path(shutil.copytree(synced / "i", tmp_path / "i"))
    with Index.open(index, writable=True) as opened:
        opened.remove(["03.png"])
        if is_compacted:
            reclaim(opened)
    (vectors,) = index.glob("*.f32")
    os.truncate(vectors, vectors.stat().st_size - 2 * 16 * 4 - 7)
    code, _, error = run_featkit("check", index)
    assert (code, "or run `featkit repair`, which drops the images" in error) == (2, True)
    code, out, _ = run_featkit("repair", index, "--json")
    assert (code, json.loads(out)["items"]) == (0, 56)
    first = json.loads(out)["done"][0]
    assert first == f"filled {vectors.name}, which had lost 3 vectors at its end"
    report = json.loads(run_featkit("sync", synced / "photos", index, "--json")[1])
    assert (report["new"], report["indexed"]) == (3, 60)
    assert run_featkit("check", index, "--quiet")[0] == 0
    assert json.loads(run_featkit("repair", index, "--json")[1])["done"] == []


def test_repair_restores_vectors_and_lists_the_rest(synced: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(synced / "i", tmp_path / "i"))
    images = Path(shutil.copytree(synced / "photos", tmp_path / "photos"))
    before = (index / "vectors.f32").read_bytes()
    (images / "05.png").unlink()
    for row in range(30):
        overwrite(index, row, np.zeros(16))
    code, out, _ = run_featkit("repair", index, "--from", images, "--quiet")
    assert code == 1
    assert f"Not restored image why 05.png {images} does not have it" in " ".join(out.split())
    assert "1 vectors differ from what was written" in " ".join(out.split())
    code, out, _ = run_featkit("repair", index, "--from", synced / "photos", "--json")
    said = json.loads(out)
    assert (code, said["left"], said["problems"]) == (0, [], [])
    after = np.frombuffer((index / "vectors.f32").read_bytes(), "<f4")
    np.testing.assert_allclose(after, np.frombuffer(before, "<f4"), atol=1e-5)


def test_repair_says_that_an_index_is_not_an_origin(synced: Path) -> None:
    code, _, error = run_featkit("repair", synced / "i", "--from", synced / "i")
    assert (code, "is an index; name the embeddings folder" in error) == (2, True)


def test_repair_refuses_what_is_no_index(tmp_path: Path) -> None:
    for name in ("missing", "."):
        code, _, error = run_featkit("repair", tmp_path / name)
        assert (code, error.startswith("featkit: ")) == (2, True)
    assert list(tmp_path.iterdir()) == []
