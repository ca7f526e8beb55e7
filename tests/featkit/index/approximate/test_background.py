"""A writer whose changes make a build due starts it in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from featkit.errors import InputError
from featkit.index import Index
from featkit.index.approximate import background, planning
from featkit.index.approximate.background import Failure, main
from featkit.index.approximate.generation import FOLDER, SETTING, Generation
from featkit.index.approximate.planning import EXACT_BELOW, Promise
from featkit.index.approximate.upkeep import give_promise, is_due
from featkit.index.builders import FAILURE_FILE, excluding_builders
from featkit.index.reclaiming import DeadRows
from featkit.resources import usable_cpus
from tests.commands import run_featkit
from tests.featkit.index.approximate.conftest import StandIn, clumped, use
from tests.model_files import make_model_file
from tests.processes import run_python

NUM_ITEMS = 200
REMOVE_MANY = """
import sys
from featkit.index import Index
with Index.open(sys.argv[1], writable=True) as index:
    index.remove([f"{i}.jpg" for i in range(100)])
"""


def wait_until(is_met: Callable[[], bool], *, at_most_s: float = 120.0) -> None:
    ends = time.monotonic() + at_most_s
    while not is_met():
        assert time.monotonic() < ends
        time.sleep(0.02)


def num_dead(path: Path) -> int:
    with Index.open(path) as index:
        return DeadRows.of(index).num_dead


def is_idle() -> bool:
    return not background._running


@pytest.fixture
def promised(tmp_path: Path, model: Path) -> Path:
    """An index with a promise, which so small an index keeps without codes."""
    with Index.create(tmp_path / "photos.index", model=model) as made:
        made.add([f"{i}.jpg" for i in range(NUM_ITEMS)], clumped(NUM_ITEMS))
        give_promise(made, Promise())
    return made.path


def test_removals_are_reclaimed_while_the_writer_writes(promised: Path) -> None:
    with Index.open(promised, writable=True) as index:
        index.remove([f"{i}.jpg" for i in range(100)])
        added = 0

        def add_one() -> bool:
            nonlocal added
            index.add([f"new{added}"], clumped(1, seed=added))
            added += 1
            return DeadRows.of(index).num_dead == 0

        wait_until(add_one)
        assert len(index) == 100 + added
        for i in range(added):
            vector = index.vector(index.item_by_key(f"new{i}").id)
            np.testing.assert_array_equal(vector, clumped(1, seed=i)[0])
    wait_until(is_idle)
    assert Failure.of(promised) is None


def test_the_process_outlives_the_writer(promised: Path) -> None:
    assert run_python(REMOVE_MANY, promised) == (0, "", "")
    wait_until(lambda: num_dead(promised) == 0)


def test_few_changes_and_no_promise_start_nothing(
    promised: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_start", lambda _path: pytest.fail("a process was started"))
    with Index.open(promised, writable=True) as index:
        index.remove([f"{i}.jpg" for i in range(10)])
    with Index.open(promised, writable=True, background=False) as index:
        index.remove([f"{i}.jpg" for i in range(150)])
        assert is_due(index)
    with Index.create(tmp_path / "other", model=model) as index:
        index.add(["a", "b"], clumped(2))
        index.remove(["a"])
        assert not is_due(index)


def test_one_process_is_started_at_a_time(promised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(_path: Path) -> subprocess.Popen[bytes]:
        waiting = [sys.executable, "-c", "input()"]
        started.append(subprocess.Popen(waiting, stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(background, "_process_for", start)
    monkeypatch.setattr(background, "CHECK_EVERY_S", 0.0)
    with Index.open(promised, writable=True) as index:
        for i in range(100):
            index.remove([f"{i}.jpg"])
    (process,) = started
    process.stdin.write(b"\n")  # type: ignore[union-attr]
    process.stdin.close()  # type: ignore[union-attr]
    wait_until(is_idle)


def test_the_process_has_half_the_processors_and_low_priority(
    promised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, object] = {}
    monkeypatch.setattr(subprocess, "Popen", lambda words, **rest: called.update(rest, words=words))
    background._process_for(promised)
    environment = called["env"]
    assert isinstance(environment, dict)
    assert environment["OMP_NUM_THREADS"] == str(max(1, usable_cpus() // 2))
    assert called["start_new_session"] is True
    nice: list[int] = []
    monkeypatch.setattr(os, "nice", nice.append)
    assert main(promised) == 0
    assert nice == [10]


def test_a_second_process_leaves_the_work_to_the_first(promised: Path) -> None:
    with Index.open(promised, writable=True, background=False) as index:
        index.remove([f"{i}.jpg" for i in range(100)])
    with excluding_builders(promised):
        code = subprocess.run(
            [sys.executable, "-m", "featkit.index.approximate.background", str(promised)],
            check=False,
            stderr=subprocess.PIPE,
        )
    assert (code.returncode, code.stderr) == (0, b"")
    assert num_dead(promised) == 100
    assert Failure.of(promised) is None


def test_a_killed_process_is_reported(promised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_path: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"]
        )

    monkeypatch.setattr(background, "_process_for", start)
    with Index.open(promised, writable=True) as index:
        index.remove([f"{i}.jpg" for i in range(100)])
    wait_until(is_idle)
    wait_until(lambda: Failure.of(promised) is not None)
    code, out, error = run_featkit("check", promised, "--quiet")
    assert (code, "is sound" in " ".join(out.split())) == (0, True)
    assert "could not be brought up to date in the background" in error
    assert "its process ended by signal 9" in error
    facts = json.loads(run_featkit("inspect", promised, "--json")[1])
    assert facts["failed_build"].endswith("its process ended by signal 9")


def test_a_failure_is_kept_and_not_repeated_at_once(
    promised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_index: Index, **_: object) -> None:
        raise InputError("something is wrong.")

    with Index.open(promised, writable=True, background=False) as index:
        index.remove([f"{i}.jpg" for i in range(100)])
    with monkeypatch.context() as patch:
        patch.setattr(background, "keep_promise", fail)
        patch.setattr(os, "nice", lambda _by: None)
        assert main(promised) == 2
    failure = Failure.of(promised)
    assert failure is not None
    assert (failure.error, failure.age_s < 60) == ("something is wrong.", True)
    started: list[Path] = []
    monkeypatch.setattr(background, "_start", started.append)
    with Index.open(promised, writable=True) as index:
        index.remove(["100.jpg"])
        assert started == []
        old = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        record = json.dumps({"error": "x", "when": old})
        (promised / FOLDER / FAILURE_FILE).write_text(record)
        index.remove(["101.jpg"])
    assert started == [promised]


def test_a_build_that_succeeds_clears_the_failure(promised: Path) -> None:
    (promised / FOLDER).mkdir()
    (promised / FOLDER / FAILURE_FILE).write_text('{"error": "x", "when": "y"}')
    assert Failure.of(promised) == Failure("x", "y")
    assert main_in_a_process(promised) == 0
    assert Failure.of(promised) is None


def main_in_a_process(path: Path) -> int:
    return subprocess.run(
        [sys.executable, "-m", "featkit.index.approximate.background", str(path)], check=False
    ).returncode


def test_a_problem_of_the_check_never_reaches_the_writer(
    promised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> subprocess.Popen[bytes]:
        raise OSError("no more processes")

    monkeypatch.setattr(background, "_process_for", fail)
    with Index.open(promised, writable=True) as index:
        assert index.remove([f"{i}.jpg" for i in range(100)]) == 100
    failure = Failure.of(promised)
    assert failure is not None
    assert failure.error == "no more processes"


def test_codes_are_built_when_the_index_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, added = 8, EXACT_BELOW - 500
    model = make_model_file(tmp_path / "m.onnx", width=width)
    vectors = clumped(EXACT_BELOW + 500, width=width)
    monkeypatch.setattr(background, "CHECK_EVERY_S", 0.1)
    with Index.create(tmp_path / "i", model=model) as index:
        index.add([f"{i}.jpg" for i in range(added)], vectors[:added])
        give_promise(index, Promise(recall=0.5))

        def add_some() -> bool:
            nonlocal added
            if added < len(vectors):
                index.add([f"{added + i}.jpg" for i in range(50)], vectors[added : added + 50])
                added += 50
            hits = index.search(vectors=vectors[added - 1 :][:1], k=1)
            assert hits[0][0].id == added - 1
            return SETTING in index.read(lambda state: state.catalogue.settings())

        wait_until(add_some)
        assert added > EXACT_BELOW
    wait_until(is_idle)
    assert Failure.of(tmp_path / "i") is None


def test_a_gpu_is_left_to_others(promised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(StandIn(), monkeypatch)
    monkeypatch.setattr(planning, "EXACT_BELOW", 20)
    monkeypatch.setattr(os, "nice", lambda _by: None)
    with Index.open(promised, writable=True, background=False) as index:
        give_promise(index, Promise(recall=0.5))
    assert main(promised) == 0
    with Index.open(promised) as index:
        text = index.read(lambda state: state.catalogue.settings()[SETTING])
    assert Generation.from_json(str(text)).built_on == "cpu"
