"""The command `featkit sync`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featkit.index import Index
from tests.commands import run_featkit
from tests.featkit.syncing.conftest import draw, wait_until
from tests.images import draw_folder
from tests.model_files import make_model_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return draw_folder(tmp_path / "photos", 3)


def without_seconds(text: str) -> str:
    return text.rpartition(". ")[0]


def test_each_run_says_what_it_did(photos: Path, model: Path) -> None:
    code, out, _ = run_featkit("sync", "photos", "i", "--model", model, "--quiet")
    assert (code, without_seconds(out)) == (0, "Of 3 images: 3 new; i holds 3 images")
    code, out, _ = run_featkit("sync", "photos", "i", "--quiet")
    assert (code, without_seconds(out)) == (0, "No change; i holds 3 images")
    (photos / "000.jpg").rename(photos / "moved.jpg")
    shutil.copy(photos / "001.jpg", photos / "copy.jpg")
    (photos / "002.jpg").write_bytes(b"broken")
    code, out, _ = run_featkit("sync", "photos", "i", "--quiet")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Without an embedding"
    assert "002.jpg" in lines[2]
    assert without_seconds(lines[-1]) == (
        "Of 4 images: 1 changed, 1 moved, 1 the same as another; i holds 3 images"
    )


def test_a_dry_run_lists_what_would_be_done(photos: Path, model: Path) -> None:
    run_featkit("sync", "photos", "i", "--model", model, "--quiet")
    (photos / "000.jpg").rename(photos / "moved.jpg")
    (photos / "001.jpg").unlink()
    code, out, _ = run_featkit("sync", "photos", "i", "--dry-run")
    assert code == 0
    assert "Moved (1)" in out
    assert "000.jpg → moved.jpg" in out
    assert "Gone (1)" in out
    assert "001.jpg" in out
    with Index.open("i") as index:
        assert "000.jpg" in index


@pytest.mark.usefixtures("photos")
def test_json_has_every_count_and_change(model: Path) -> None:
    code, out, _ = run_featkit("sync", "photos", "i", "--model", model, "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["items"], report["new"], report["indexed"], report["moved"]) == (3, 3, 3, 0)
    assert report["changes"]["new"] == ["000.jpg", "001.jpg", "002.jpg"]


def test_an_unmounted_disk_removes_nothing(photos: Path, model: Path) -> None:
    run_featkit("sync", "photos", "i", "--model", model, "--quiet")
    for path in photos.iterdir():
        path.unlink()
    code, _, error = run_featkit("sync", "photos", "i")
    assert code == 2
    assert error.startswith("featkit: ")
    with Index.open("i") as index:
        assert len(index) == 3


@pytest.fixture
def watching(photos: Path, model: Path) -> Iterator[subprocess.Popen[str]]:
    words = ["sync", str(photos), "i", "--model", str(model), "--watch"]
    process = subprocess.Popen(
        [sys.executable, "-m", "featkit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell ignores it for background jobs
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_watch_follows_changes_until_ctrl_c(photos: Path, watching: subprocess.Popen[str]) -> None:
    assert watching.stderr is not None
    for line in watching.stderr:
        if line.startswith("Watching"):
            break

    def has(name: str) -> bool:
        with Index.open("i") as index:
            return name in index

    assert has("000.jpg")
    draw(photos / "sub" / "new.png", 5)
    wait_until(lambda: has("sub/new.png"))
    (photos / "000.jpg").unlink()
    wait_until(lambda: not has("000.jpg"))
    watching.send_signal(signal.SIGINT)
    out, error = watching.communicate(timeout=20)
    assert watching.returncode == 130, error
    assert out.count("holds") >= 2
