"""Processes look at pairs as this process does, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from featkit.duplicates import lookers
from featkit.duplicates.look import SAME
from featkit.duplicates.lookers import Key, Lookers, OtherLooker, PairToLookAt
from featkit.errors import EnvironmentProblem
from featkit.images import thumbnail_jpeg
from tests.featkit.duplicates.conftest import copy_of, scene
from tests.processes import REPOSITORY

SCENES = [scene(seed) for seed in range(6)] + [copy_of(seed).convert("RGB") for seed in range(3)]
THUMBNAILS = [thumbnail_jpeg(np.asarray(image)) for image in SCENES]
MISSING, DAMAGED = 20, 21
PAIRS = [
    PairToLookAt((0, first), (1, second), SAME)
    for first, second in [*combinations(range(9), 2), (0, MISSING), (DAMAGED, 1), (0, 0)]
]


class Reader:
    """Returns thumbnails, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, keys: Sequence[Key]) -> dict[Key, bytes | None]:
        self.count += len(keys)
        special = {MISSING: None, DAMAGED: b"no jpeg"}
        return {key: special[key[1]] if key[1] in special else THUMBNAILS[key[1]] for key in keys}


def looked(*, reader: Reader | None = None) -> list[float | None]:
    with Lookers(len(PAIRS)) as all_lookers:
        return all_lookers.look(PAIRS, reader or Reader())


@pytest.fixture(scope="module")
def here() -> list[float | None]:
    """The agreements as this process finds them."""
    return looked()


def test_processes_agree_with_this_one(
    here: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookers, "FEW_PAIRS", 10)
    monkeypatch.setattr(lookers, "usable_cpus", lambda: 3)
    monkeypatch.setattr(lookers, "PAIRS_PER_TASK", 5)
    with Lookers(len(PAIRS)) as all_lookers:
        assert len(all_lookers._all) == 3
        there = all_lookers.look(PAIRS, Reader())
    assert [each is None for each in there] == [each is None for each in here]
    assert [each is None for each in here][-3:] == [True, True, False]
    np.testing.assert_allclose(np.array(there, float), np.array(here, float), atol=1e-4)


def test_few_images_are_kept_and_read_again(
    here: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader()
    assert looked(reader=reader) == here
    assert reader.count == len({key for pair in PAIRS for key in pair[:2]})
    monkeypatch.setattr(lookers, "LOOKS_KEPT", 3)
    monkeypatch.setattr(lookers, "PAIRS_PER_TASK", 2)
    few = Reader()
    again = looked(reader=few)
    assert few.count > reader.count
    assert [each is None for each in again] == [each is None for each in here]


def test_a_process_that_is_killed_is_an_error() -> None:
    looker = OtherLooker()
    os.kill(looker._process.pid, signal.SIGTERM)
    looker._process.wait()
    with pytest.raises(EnvironmentProblem, match="run the same command again"):
        looker.look(lookers._task(looker, PAIRS, Reader()))
    looker.close()


def test_a_process_ends_with_its_input() -> None:
    command = [sys.executable, "-m", "featkit.duplicates.lookers"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=100) == 0


def test_processes_are_ended_in_the_middle_of_work() -> None:
    looker = OtherLooker()
    started = time.monotonic()
    looker.close()
    assert time.monotonic() < started + 50
    assert looker._process.returncode is not None


def test_without_more_processes_this_one_looks(
    here: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(lookers, "FEW_PAIRS", 10)
    monkeypatch.setattr(lookers, "usable_cpus", lambda: 4)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert looked() == here
