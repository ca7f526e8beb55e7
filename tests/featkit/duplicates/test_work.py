"""A comparison that was stopped continues, whatever stopped it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featkit import atomic
from featkit.duplicates import Calibration, Level, Pair, find_pairs, finding_pairs, lookers, nearest
from featkit.duplicates import candidates as candidates_module
from featkit.duplicates import work as work_module
from featkit.duplicates.work import FOLDER, Work
from featkit.errors import EnvironmentProblem, Interrupted
from featkit.index import Index
from featkit.index.reclaiming import reclaim
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.model_files import make_model_file

COUNT = 300
CALIBRATION = Calibration(
    candidate=0.55,
    copy=0.6,
    similar=0.3,
    copies_found=1,
    num_images=1,
    num_items=COUNT,
    edits_version=1,
    made="",
)
# Compares the index with small panels and saves after each; slowly, so that it can be killed.
CHILD = """
import sys, time
from featkit.duplicates import Level, candidates, find_pairs, finding_pairs, lookers, nearest, work
from featkit.index import Index
from featkit.index.reclaiming import reclaim
from tests.featkit.duplicates.test_work import CALIBRATION
nearest.PANEL, nearest.TILE, lookers.PAIRS_PER_RUN, work.SAVE_EVERY_S = 16, 16, 20, 0.0
def slowly(unit, done, total):
    print(unit, done, flush=True)
    time.sleep(0.02)
with Index.open(sys.argv[1]) as index, finding_pairs(
    index, CALIBRATION, most=Level.SIMILAR, on_progress=slowly
) as pairs:
    print("pairs", len(pairs), flush=True)
"""


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "photos.index"
    vectors = unit_vectors(COUNT)
    vectors[COUNT // 2 :] = vectors[: COUNT // 2] + 0.6 * vectors[COUNT // 2 :]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Index.create(path, model=make_model_file(tmp_path / "m.onnx", width=WIDTH)) as made:
        made.add([f"{i}.jpg" for i in range(COUNT)], vectors)
    return path


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (nearest, "PANEL", 16),
        (nearest, "TILE", 16),
        (lookers, "PAIRS_PER_RUN", 20),
        (work_module, "SAVE_EVERY_S", 0.0),
    ):
        monkeypatch.setattr(module, name, value)


def all_pairs(path: Path) -> list[Pair]:
    with Index.open(path) as opened:
        return find_pairs(opened, CALIBRATION, most=Level.SIMILAR)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [("images", 1), ("images", 7), ("pairs", 1), ("pairs", 4)])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_a_stopped_comparison_continues(
    index: Path, stop_at: tuple[str, int], error: type[BaseException]
) -> None:
    expected = all_pairs(index)
    assert len(expected) >= COUNT // 2
    calls: list[str] = []

    def stop(unit: str, _done: int, _total: int) -> None:
        calls.append(unit)
        if (unit, calls.count(unit)) == stop_at:
            raise error

    def run(seen: list[tuple[str, int]] | None) -> list[Pair]:
        with (
            Index.open(index) as opened,
            finding_pairs(
                opened,
                CALIBRATION,
                most=Level.SIMILAR,
                on_progress=stop if seen is None else lambda *state: seen.append(state[:2]),
            ) as pairs,
        ):
            return pairs

    with pytest.raises(Interrupted if error is KeyboardInterrupt else Stop):
        run(None)
    seen: list[tuple[str, int]] = []
    assert run(seen) == expected
    # what was saved before is not repeated
    num_panels = 1 + (COUNT - 1) // 16
    num_done = stop_at[1] - 1 if stop_at[0] == "images" else num_panels
    assert [unit for unit, _ in seen].count("images") == num_panels - num_done
    assert not (index / FOLDER).exists()


def test_work_is_kept_until_the_result_is_used(index: Path) -> None:
    def fail() -> None:
        with Index.open(index) as opened, finding_pairs(opened, CALIBRATION, most=Level.SIMILAR):
            raise Stop

    with pytest.raises(Stop):
        fail()
    assert [*(index / FOLDER).iterdir()]
    units: list[str] = []
    with (
        Index.open(index) as opened,
        finding_pairs(
            opened,
            CALIBRATION,
            most=Level.SIMILAR,
            on_progress=lambda unit, *_: units.append(unit),
        ) as pairs,
    ):
        assert len(pairs) >= COUNT // 2
    assert units == []
    assert not (index / FOLDER).exists()


def test_a_changed_index_begins_again(index: Path) -> None:
    def fail() -> None:
        with Index.open(index) as opened, finding_pairs(opened, CALIBRATION, most=Level.SIMILAR):
            raise Stop

    with pytest.raises(Stop):
        fail()
    with Index.open(index, writable=True) as opened:
        opened.remove(["0.jpg"])
    assert 0 not in {pair.first for pair in all_pairs(index)}


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_work_file_is_ignored(index: Path, damage: bytes | None) -> None:
    expected = all_pairs(index)

    def fail() -> None:
        with Index.open(index) as opened, finding_pairs(opened, CALIBRATION, most=Level.SIMILAR):
            raise Stop

    with pytest.raises(Stop):
        fail()
    (file,) = (index / FOLDER).iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert all_pairs(index) == expected


def test_a_full_disk_is_reported_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise EnvironmentProblem("No space left to write it; free some space.")

    expected = all_pairs(index)
    monkeypatch.setattr(work_module, "replace_file", full)
    steps: list[str] = []
    with (
        Index.open(index) as opened,
        finding_pairs(opened, CALIBRATION, most=Level.SIMILAR, on_step=steps.append) as pairs,
    ):
        assert pairs == expected
    (step,) = [each for each in steps if "begin again" in each]
    assert "No space left" in step


def test_old_files_of_other_comparisons_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name, days in (("old.npz", 8), (f"new.npz{atomic.TEMPORARY_MARK}1", 1)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - days * 86400,) * 2)
    assert Work(tmp_path, "mine", on_problem=lambda _problem: None).read() == {}
    assert [file.name for file in folder.iterdir()] == [f"new.npz{atomic.TEMPORARY_MARK}1"]


def test_a_killed_process_continues(index: Path) -> None:
    expected = len(all_pairs(index))
    words = [sys.executable, "-c", CHILD, str(index)]
    printed: list[str] = []
    for num_lines in (3, 8, 25):
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline().strip() for _ in range(num_lines)]
            child.send_signal(signal.SIGKILL)
        assert all(lines)
        printed += lines
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"pairs {expected}"
    # each run began after what the one before had saved
    images = [int(line.split()[1]) for line in printed if line.startswith("images")]
    assert images[3] > images[1]
    assert not (index / FOLDER).exists()


def test_items_removed_before_and_meanwhile_are_in_no_pair(index: Path) -> None:
    expected = all_pairs(index)
    gone = {expected[0].first, expected[1].second}
    with Index.open(index, writable=True) as opened:
        opened.remove([f"{item}.jpg" for item in gone])
        reclaim(opened)
    left = [pair for pair in expected if not {pair.first, pair.second} & gone]
    assert all_pairs(index) == left

    def remove(unit: str, _done: int, _total: int) -> None:
        if unit == "images" and f"{left[0].first}.jpg" in opened:
            opened.remove([f"{left[0].first}.jpg"])
            reclaim(opened)

    with (
        Index.open(index, writable=True) as opened,
        finding_pairs(opened, CALIBRATION, most=Level.SIMILAR, on_progress=remove) as pairs,
    ):
        assert pairs == [pair for pair in left if left[0].first not in (pair.first, pair.second)]


def test_codes_are_used_if_they_save_time(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featkit.index.approximate.building import compact

    monkeypatch.setattr(candidates_module, "WORTH_S", -1e9)
    with Index.open(index) as opened:
        expected = find_pairs(opened, CALIBRATION, most=Level.SIMILAR, exact=True)
        compact(opened, allow_low_recall=True)
    with Index.open(index) as opened:
        steps: list[str] = []
        with finding_pairs(opened, CALIBRATION, most=Level.SIMILAR, on_step=steps.append) as pairs:
            shared = len({*pairs} & {*expected}) / len(expected)
        assert {*pairs} <= {*expected}
        assert shared >= 0.9
        assert "comparing by a graph over 4-bit codes" in steps[0]
        assert "sampled images it finds" in steps[0]
        steps.clear()
        with finding_pairs(
            opened, CALIBRATION, most=Level.SIMILAR, exact=True, on_step=steps.append
        ) as pairs:
            assert pairs == expected
        assert steps == []
