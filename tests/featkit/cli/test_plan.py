"""The command `featkit plan`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from featkit.index.approximate import planning
from tests.commands import run_featkit
from tests.images import draw_folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return draw_folder(tmp_path / "photos", 30)


def test_a_plan_names_time_disk_and_search(photos: Path) -> None:
    said = run_featkit("plan", "photos", "--sample", "10", "--quiet")
    assert said.code == 0, said.error
    for words in ("30, about", "10 images", "images/s on", "for the index", "exact, less than 1"):
        assert words in said.out
    assert "Next: featkit sync photos photos.index" in said.out
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]


@pytest.mark.usefixtures("photos")
def test_a_promise_is_planned_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "EXACT_BELOW", 20)
    flags = ("--memory", "1MB", "--recall", "0.9")
    said = run_featkit("plan", "photos", "--quiet", *flags)
    assert "a graph over 4-bit codes" in said.out
    assert "building" in said.out
    assert "Next: featkit sync photos photos.index --memory 1MB --recall 0.9" in said.out
    said = run_featkit("plan", "photos", "--json", *flags)
    facts = json.loads(said.out)
    assert (facts["num_images"], facts["search"]["kind"], facts["fits"]) == (30, "graph-4", True)
    said = run_featkit("plan", "photos", "--memory", "1KB", "--quiet")
    assert said.code == 2
    assert "need at least" in said.error


@pytest.mark.usefixtures("photos")
def test_a_disk_that_is_too_small_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    small = type(shutil.disk_usage("."))(100, 90, 10)
    monkeypatch.setattr("featkit.forecast.shutil.disk_usage", lambda _path: small)
    said = run_featkit("plan", "photos", "--quiet")
    assert said.code == 4
    assert "and the disk of photos.index has 10 bytes left" in said.error
