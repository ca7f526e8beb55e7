"""A writer, a builder, a compactor and a reader can be killed at any moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

ROLES = ("writer", "builder", "compactor", "reader")


def kill(path: Path, *, seed: int, num_rounds: int) -> dict[str, int]:
    """Run tests/featkit/index/killing.py, and return its counts."""
    script = "tests.featkit.index.killing"
    process = subprocess.run(
        [sys.executable, "-m", script, str(path), str(seed), str(num_rounds)],
        cwd=REPOSITORY,
        # OpenMP's threads do not survive a fork
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    counts: dict[str, int] = json.loads(process.stdout)
    return counts


def test_kills_at_20_moments_lose_no_change(tmp_path: Path) -> None:
    counts = kill(tmp_path / "i", seed=0, num_rounds=20)
    assert sum(counts[role] for role in ROLES) == 20
    assert counts["changes"] > 20
    assert counts["files"] > 3  # rows were reclaimed and codes built


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_1000_moments_lose_no_change(tmp_path: Path) -> None:
    counts = kill(tmp_path / "i", seed=1, num_rounds=1000)
    assert min(counts[role] for role in ROLES) > 200
    assert counts["cut off"] > counts["cut off and made"] > 0
