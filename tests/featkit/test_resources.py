"""Processors and memory are the smallest of all limits, including those on parent groups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from featkit import resources
from featkit.resources import (
    cache_folder,
    spare_memory,
    usable_cpus,
    usable_memory,
    workers_that_fit,
)
from tests.processes import run_python

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system has no processor affinity"
)


class System:
    """A folder that replaces /sys/fs/cgroup and /proc/self, empty at first: no cgroups, no
    limits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: object) -> None:
        """Write a file of the system."""
        file = self.at(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def at(self, path: object) -> Path:
        """Return the path of a file of the system."""
        elsewhere = str(path).startswith(("/sys/fs/cgroup", "/proc/self", "/mnt"))
        return self.folder / str(path).removeprefix("/") if elsewhere else Path(str(path))


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """A system of 8 processors and 32 GB, of which this process uses 1 GB."""
    made = System(tmp_path)
    monkeypatch.setattr(resources, "Path", made.at)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    monkeypatch.setattr(resources, "machine_memory", lambda: [32 * GB])
    monkeypatch.setattr(resources, "address_limit", list)
    made.write(
        "/proc/self/statm",
        f"{4 * GB // resources.page_size()} {GB // resources.page_size()} 0 0 0 0 0",
    )
    return made


GB = 2**30


@pytest.mark.usefixtures("all_cores")
@needs_affinity
@pytest.mark.parametrize("num_cpus", [1, 2])
def test_affinity_limits_processors(num_cpus: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < num_cpus:
        pytest.skip(f"the system grants {len(allowed)} processor, and the test is about {num_cpus}")
    code = (
        "import os, sys; os.sched_setaffinity(0, {int(cpu) for cpu in sys.argv[1:]}); from featkit"
        " import resources; resources.cpu_quota = lambda _path: None;"
        " print(resources.usable_cpus())"
    )
    assert run_python(code, *allowed[:num_cpus]) == (0, f"{num_cpus}\n", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("100000 100000", 1),
        ("20000 100000", 1),
        ("25000 50000", 1),
        ("6400000 100000", 8),
        ("max 100000", 8),
        ("", 8),
        ("max", 8),
        ("0 100000", 8),
        ("100000 0", 8),
    ],
)
def test_quota_is_rounded_up_to_whole_processors(
    system: System, content: str, expected: int
) -> None:
    assert usable_cpus() == 8
    system.write("/sys/fs/cgroup/cpu.max", content)
    assert usable_cpus() == expected


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [(100000, 100000, 1), (250000, 100000, 3), (-1, 100000, 8), ("", "", 8)],
)
def test_quota_of_version_1_counts(
    system: System, folder: str, quota: object, period: object, expected: int
) -> None:
    system.write(f"/sys/fs/cgroup/{folder}/cpu.cfs_quota_us", quota)
    system.write(f"/sys/fs/cgroup/{folder}/cpu.cfs_period_us", period)
    assert usable_cpus() == expected


@pytest.mark.parametrize(
    "level", ["", "/user.slice", "/user.slice/app.slice", "/user.slice/app.slice/featkit.scope"]
)
def test_smallest_quota_of_all_parents_counts(system: System, level: str) -> None:
    system.write("/proc/self/cgroup", "0::/user.slice/app.slice/featkit.scope")
    for each in ("", "/user.slice", "/user.slice/app.slice", "/user.slice/app.slice/featkit.scope"):
        system.write(
            f"/sys/fs/cgroup{each}/cpu.max", "300000 100000" if each == level else "max 100000"
        )
    assert usable_cpus() == 3
    system.write("/sys/fs/cgroup/other.slice/cpu.max", "100000 100000")
    assert usable_cpus() == 3  # of another process


def test_parent_group_of_version_1_counts(system: System) -> None:
    system.write("/proc/self/cgroup", "5:memory:/else\n3:cpu,cpuacct:/docker/abc\n0::/")
    system.write("/sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", 200000)
    system.write("/sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", 100000)
    system.write("/sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", -1)
    assert usable_cpus() == 2


def test_unusual_and_partial_mounts_are_followed(system: System) -> None:
    system.write("/proc/self/cgroup", "4:cpu:/docker/abc/job\n0::/")
    mounts = [
        "30 1 0:1 /docker/abc /mnt/my\\040groups rw - cgroup cgroup rw,cpu",
        "31 1 0:2 / /mnt/two rw - cgroup2 none rw",
        "x",
    ]
    system.write("/proc/self/mountinfo", "\n".join(mounts))
    system.write("/mnt/my groups/job/cpu.cfs_quota_us", 300000)
    system.write("/mnt/my groups/job/cpu.cfs_period_us", 100000)
    assert usable_cpus() == 3
    system.write("/mnt/two/cpu.max", "200000 100000")
    assert usable_cpus() == 2


def test_group_outside_the_container_is_ignored(system: System) -> None:
    system.write("/proc/self/cgroup", "0::/../../elsewhere")
    system.write("/sys/fs/cgroup/cpu.max", "100000 100000")
    assert usable_cpus() == 1


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", GB, GB),
        ("memory.max", "max", 32 * GB),
        ("memory.high", 2 * GB, 2 * GB),
        ("user.slice/memory.max", GB, GB),
        ("user.slice/app/memory.max", 64 * GB, 32 * GB),
        ("memory/memory.limit_in_bytes", GB, GB),
        ("memory/docker/memory.limit_in_bytes", GB, GB),
        ("memory/memory.limit_in_bytes", 9223372036854771712, 32 * GB),
        ("memory/docker/memory.stat", f"cache 5\nhierarchical_memory_limit {GB}", GB),
        ("memory.max", "garbage", 32 * GB),
        ("memory.max", 5, resources.LEAST_MEMORY),
    ],
)
def test_smallest_memory_limit_counts(
    system: System, file: str, text: object, expected: int
) -> None:
    system.write("/proc/self/cgroup", "6:memory:/docker/abc\n0::/user.slice/app")
    assert usable_memory() == 32 * GB
    system.write(f"/sys/fs/cgroup/{file}", text)
    assert usable_memory() == expected


@pytest.mark.usefixtures("system")
def test_limit_on_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "address_limit", lambda: [5 * GB])
    assert usable_memory() == 5 * GB
    assert spare_memory() == GB  # 4 of them are reserved already, though only 1 is used


def test_memory_in_use_is_not_spare(system: System) -> None:
    assert spare_memory() == 31 * GB
    system.write("/sys/fs/cgroup/memory.max", 8 * GB)
    assert spare_memory() == 7 * GB
    system.write(
        "/sys/fs/cgroup/memory.current", 6 * GB
    )  # other processes in the container use the rest
    # cached files
    system.write("/sys/fs/cgroup/memory.stat", f"anon 1\ninactive_file {GB}\nactive_file {GB}")
    assert spare_memory() == 4 * GB
    system.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", 4 * GB)
    system.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", 3 * GB)
    system.write(
        "/sys/fs/cgroup/memory/memory.stat",
        f"inactive_file 1\ntotal_inactive_file {GB}\ntotal_active_file 0",
    )
    assert spare_memory() == 2 * GB
    system.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", 9 * GB)
    assert spare_memory() == 0


def test_no_more_workers_than_fit_in_memory(system: System) -> None:
    assert workers_that_fit(16, worker_bytes=GB) == 16
    system.write("/sys/fs/cgroup/memory.max", 4 * GB)
    assert workers_that_fit(16, worker_bytes=GB) == 3
    assert workers_that_fit(2, worker_bytes=GB) == 2
    assert workers_that_fit(16, worker_bytes=100 * GB) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on addresses is Linux's")
def test_limit_of_this_process_is_seen() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)); from"
        " featkit.resources import spare_memory, usable_memory; print(usable_memory() <= 2**31, 0 <"
        " spare_memory() < 2**31)"
    )
    assert run_python(code) == (0, "True True\n", "")


@pytest.mark.parametrize(("counted", "expected"), [(6, 6), (None, 1)])
def test_system_without_affinity_counts_all_processors(
    monkeypatch: pytest.MonkeyPatch, counted: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    monkeypatch.setattr(resources, "cpu_quota", lambda _path: None)
    assert usable_cpus() == expected


@needs_affinity
def test_this_process_may_use_at_least_one_processor() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FEATKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "featkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "featkit"
    monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
