"""A sync that is killed at any moment leaves an index that is right, and the next one finishes."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featkit.errors import Interrupted
from featkit.index import Index
from featkit.syncing import Changes, applying, sync
from tests.featkit.syncing.conftest import CountingEmbedder, content, draw

NUM_IMAGES, NUM_KILLS = 60, 12
SYNC = """
import sys
from featkit.syncing import applying, sync
applying.ROWS_PER_COMMIT = 4
sync(sys.argv[1], sys.argv[2], model=sys.argv[3])
"""


def change(photos: Path, seed: int) -> None:
    """Draw, delete, rename and copy a few of the images."""
    rng = random.Random(seed)
    for name in rng.sample([f"{i:02}.png" for i in range(NUM_IMAGES)], 12):
        path = photos / name
        kind = rng.choice(["draw", "delete", "move", "copy"])
        if kind == "draw" or not path.exists():
            draw(path, rng.randrange(10**6))
        elif kind == "delete":
            path.unlink()
        elif kind == "move":
            path.rename(photos / f"{rng.randrange(1000):03}.png")
        else:
            shutil.copy2(path, photos / f"{rng.randrange(1000):03}.png")


def check_consistent(index: Path, sources: list[dict[str, object]]) -> None:
    """Every item is one that a fresh index of one of the folder's states has."""
    for key, stored in content(index).items():
        assert any(source.get(key) == stored for source in sources), key


def test_kills_at_random_moments_lose_nothing(model: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "photos.index"
    for seed in range(NUM_IMAGES):
        draw(photos / f"{seed:02}.png", seed)
    states: list[dict[str, object]] = []
    rng = random.Random(0)
    longest = 0.0
    for turn in range(NUM_KILLS):
        if turn:
            change(photos, turn)
        sync(photos, tmp_path / f"fresh-{turn}.index", model=model)
        states.append(dict(content(tmp_path / f"fresh-{turn}.index")))
        command = [sys.executable, "-c", SYNC, str(photos), str(index), str(model)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        started = time.monotonic()
        # most of the time passes before the first commit
        while not (index / "catalogue.sqlite").exists() and time.monotonic() < started + 30:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, max(0.5, longest)))
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        longest = max(longest, min(2.0, time.monotonic() - started))
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        if index.exists():
            check_consistent(index, states)
    sync(photos, index, model=model)
    assert content(index) == states[-1]


def test_ctrl_c_keeps_what_was_committed(
    model: Path, tmp_path: Path, embedded: CountingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, index, add = tmp_path / "photos", tmp_path / "i", applying.Applier._add
    for seed in range(NUM_IMAGES):
        draw(photos / f"{seed:02}.png", seed)
    monkeypatch.setattr(applying, "ROWS_PER_COMMIT", 1)

    def add_and_stop(applier: applying.Applier, rows: object) -> None:
        add(applier, rows)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(applying.Applier, "_add", add_and_stop)
    with pytest.raises(Interrupted, match=r"Stopped by Ctrl-C; .* holds .* images?, and the same"):
        sync(photos, index, model=model)
    with Index.open(index) as opened:
        held = len(opened)
    assert 0 < held < NUM_IMAGES
    monkeypatch.setattr(applying.Applier, "_add", add)
    embedded.since()
    assert sync(photos, index).num_new == embedded.since() == NUM_IMAGES - held


def test_nothing_to_do_is_false() -> None:
    assert not Changes()
    assert not Changes(kept=["a"], digests={"a": b"x"})
    assert Changes(gone=["a"])
    assert Changes(touched=["a"])
