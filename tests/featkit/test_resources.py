"""Processors counted as the system grants them: the smaller of affinity and cgroup quota, at least one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featkit import resources
from featkit.resources import cache_folder, usable_cpus
from tests.processes import run_python

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no processor affinity")


@needs_affinity
@pytest.mark.parametrize("num_cpus", [1, 2])
def test_a_process_bound_to_some_processors_uses_no_more(num_cpus: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < num_cpus:
        pytest.skip(f"the system grants {len(allowed)} processor, and the test is about {num_cpus}")
    code = (
        "import os, sys; os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[1:]}); from featkit import resources; "
        "resources._cgroup_quota = lambda _path: None; print(resources.usable_cpus())"
    )
    assert run_python(code, *allowed[:num_cpus]) == (0, f"{num_cpus}\n", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("100000 100000\n", 1),
        ("20000 100000\n", 1),
        ("25000 50000\n", 1),
        ("6400000 100000\n", 64),
        ("max 100000\n", None),
        ("", None),
        ("max\n", None),
    ],
)
def test_the_quota_is_rounded_up_to_whole_processors(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert resources._cgroup_quota(tmp_path / "cpu.max") == expected


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert resources._cgroup_quota(tmp_path / "missing" / "cpu.max") is None
    assert resources._cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("allowed", "quota", "expected"), [(8, None, 8), (8, 2, 2), (2, 8, 2), (3, 3, 3), (8, 0, 1), (1, None, 1)]
)
def test_the_smaller_of_affinity_and_quota_counts(
    monkeypatch: pytest.MonkeyPatch, allowed: int, quota: int | None, expected: int
) -> None:
    asked: list[Path] = []

    def granted(path: Path) -> int | None:
        asked.append(path)
        return quota

    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(allowed)), raising=False)
    monkeypatch.setattr(resources, "_cgroup_quota", granted)
    assert usable_cpus() == expected
    assert asked == [Path("/sys/fs/cgroup/cpu.max")]


@pytest.mark.parametrize(("counted", "expected"), [(6, 6), (None, 1)])
def test_a_system_without_affinity_counts_all(monkeypatch: pytest.MonkeyPatch, counted: int | None, expected: int) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    monkeypatch.setattr(resources, "_cgroup_quota", lambda _path: None)
    assert usable_cpus() == expected


@needs_affinity
def test_this_process_has_at_least_one_and_no_more_than_it_may() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


def test_the_cache_folder_is_the_one_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FEATKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "featkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "featkit"
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
