"""Long work is announced with its costs, and work that cannot fit is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit import forecast
from featkit.errors import InputError
from featkit.forecast import EXACT, outlook
from featkit.index.approximate.planning import Promise
from tests.commands import run_featkit
from tests.images import draw_folder

COUNT = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("outlook") / "images", COUNT)


@pytest.fixture
def long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few images count as long work."""
    monkeypatch.setattr(forecast, "MANY", COUNT)
    monkeypatch.setattr(forecast, "FEW", 4)


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))


ANNOUNCED = r"24 images to \w+: (about \d+ s, )?about [\d.]+ [kM]B of disk \([\d.]+ [GT]B free\)\."
SEARCH = "Search among 24: exact, less than 1 ms a query."


@pytest.mark.usefixtures("long_work")
def test_long_work_is_announced_once(photos: Path, tmp_path: Path) -> None:
    emb, index = tmp_path / "emb", tmp_path / "a.index"
    for words, lines in (
        (("embed", photos, "--out", emb), [ANNOUNCED]),
        (("index", emb, "--out", index), [ANNOUNCED, SEARCH]),
        (("sync", photos, tmp_path / "synced.index"), [ANNOUNCED, SEARCH]),
    ):
        code, out, error = run_featkit(*words)
        assert code == 0
        for pattern, line in zip(lines, error.splitlines(), strict=False):
            assert re.fullmatch(pattern, line), line
        assert ("Search among" in error) == (SEARCH in lines)
        assert "of disk" not in out
        assert "of disk" not in run_featkit(*words)[2]


def test_short_work_is_not_announced(photos: Path, tmp_path: Path) -> None:
    assert "of disk" not in run_featkit("embed", photos, "--out", tmp_path / "emb")[2]
    assert "of disk" not in run_featkit("sync", photos, tmp_path / "a.index")[2]


@pytest.mark.usefixtures("long_work")
def test_a_sync_without_changes_announces_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_featkit("sync", photos, tmp_path / "a.index")[0] == 0
    monkeypatch.setattr(shutil, "disk_usage", None)
    code, out, _ = run_featkit("sync", photos, tmp_path / "a.index")
    assert (code, out.splitlines()[0][:9]) == (0, "No change")


@pytest.mark.usefixtures("long_work")
def test_quiet_commands_and_json_announce_nothing(photos: Path, tmp_path: Path) -> None:
    for flag in ("--quiet", "--json"):
        emb, index = tmp_path / f"emb{flag}", tmp_path / f"index{flag}"
        for words in (
            ("embed", photos, "--out", emb),
            ("index", emb, "--out", index),
            ("sync", photos, tmp_path / f"synced{flag}"),
        ):
            code, out, error = run_featkit(*words, flag)
            assert (code, error) == (0, "")
            if flag == "--json":
                json.loads(out)


@pytest.mark.usefixtures("long_work")
def test_a_full_disk_is_refused_before_work_starts(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, free=9_000)
    for words in (
        ("embed", photos, "--out", tmp_path / "emb"),
        ("sync", photos, tmp_path / "a.index"),
        ("sync", photos, tmp_path / "a.index", "--quiet"),
    ):
        code, out, error = run_featkit(*words)
        assert (code, out) == (3, "")
        assert "more for 24 images, and its disk has 9.0 kB left; free some space" in error
    assert not (tmp_path / "a.index").exists()
    assert not [*(tmp_path / "emb").rglob("*.parquet")]
    monkeypatch.undo()
    assert run_featkit("embed", photos, "--out", tmp_path / "emb")[0] == 0
    assert run_featkit("sync", photos, tmp_path / "a.index", "--quiet")[0] == 0
    fill_disk(monkeypatch, free=9_000)
    code, _, error = run_featkit("index", tmp_path / "emb", "--out", tmp_path / "b.index")
    assert (code, (tmp_path / "b.index").exists()) == (3, False)
    assert "b.index needs about" in error
    more = draw_folder(tmp_path / "more", COUNT + 20)
    code, _, error = run_featkit("sync", more, tmp_path / "a.index", "--new-source")
    assert (code, "a.index needs about" in error) == (3, True)


def test_short_work_is_refused_if_not_even_vectors_fit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, free=COUNT * 4 * 256)
    code, _, error = run_featkit("sync", photos, tmp_path / "a.index")
    assert (code, "free some space, or choose another disk" in error) == (3, True)


def test_a_promise_that_cannot_be_kept_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"need at least .* of memory"):
        outlook(tmp_path, 5, 256, num_after=1_000_000, promise=Promise(memory=1_000_000))
    kept = outlook(tmp_path, 5, 256, num_after=1_000_000, promise=Promise(memory=10**9)).search
    assert kept is not None
    assert kept.kind is not None
    assert outlook(tmp_path, 5, 256, num_after=1_000_000).search == EXACT.plan(1_000_000, 256)
    assert outlook(tmp_path, 5, 256).search is None


def test_a_file_of_vectors_is_refused_before_an_index_is_made(tmp_path: Path) -> None:
    vectors = np.zeros((60_000, 256), np.float32)
    vectors[:, 0] = 1
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 256)
    keys = pa.array([str(i) for i in range(len(vectors))])
    pq.write_table(pa.table({"key": keys, "embedding": embedding}), tmp_path / "v.parquet")
    model = Path(forecast.__file__).parent / "models" / "featkit-tiny.onnx"
    words = ("index", tmp_path / "v.parquet", "--out", tmp_path / "v.index", "--model", model)
    code, _, error = run_featkit(*words, "--memory", "1MB")
    assert (code, "60,000 vectors of width 256 need at least" in error) == (2, True)
    assert not (tmp_path / "v.index").exists()


@pytest.mark.usefixtures("long_work")
def test_images_that_cannot_be_read_are_left_to_the_work(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(COUNT):
        (images / f"{i}.jpg").write_bytes(b"no image")
    code, _, error = run_featkit("embed", images, "--out", tmp_path / "emb")
    assert (code, "None of the 24 images could be embedded" in error) == (2, True)
