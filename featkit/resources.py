"""The processors and memory that this process may use, and its cache folder.

Linux limits a process by control groups (cgroups) of version 1, version 2, or both. A limit on a
parent group also applies to all groups below it, so every level is read, from the mount down to
this process's own group.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = "/sys/fs/cgroup"
UNLIMITED = 2**60  # version 1 writes "no limit" as a number near 2**63
# The least that is reported: the process has to try, and no model runs with less.
LEAST_MEMORY = 64 * 2**20


def usable_cpus() -> int:
    """Return the number of processors this process may use: the smallest of its affinity and the
    quotas of its cgroups, at least 1."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quotas = [quota for folder in cgroup_folders("cpu") if (quota := cpu_quota(folder)) is not None]
    return max(1, min([allowed, *quotas]))


def usable_memory() -> int:
    """Return the bytes of memory this process may use: the smallest of the machine's memory and the
    limits on its cgroups and address space."""
    limits = [
        limit for folder in cgroup_folders("memory") if (limit := _memory_limit(folder)) is not None
    ]
    return max(LEAST_MEMORY, min([*machine_memory(), *address_limit(), *limits]))


def spare_memory() -> int:
    """Return the bytes this process may still allocate: `usable_memory` without what it, and others
    under the same limit, use already.

    Cached files do not count, since the system drops them when memory is short.
    """
    addresses, resident = own_memory()
    spare = [limit - resident for limit in machine_memory()] + [
        limit - addresses for limit in address_limit()
    ]
    for folder in cgroup_folders("memory"):
        if (limit := _memory_limit(folder)) is not None:
            spare.append(limit - max(resident, _memory_held(folder)))
    return max(0, min(spare, default=UNLIMITED))


def workers_that_fit(wanted: int, *, worker_bytes: int, reserved: int = 0) -> int:
    """Return `wanted`, or as many workers of `worker_bytes` each as fit in the spare memory, at
    least 1. reserved: bytes of it that something else will take."""
    return max(1, min(wanted, (spare_memory() - reserved) // max(1, worker_bytes)))


# Control groups -----------------------------------------------------------------------------------


def cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield each folder that may hold a limit of this process on `controller` ("cpu", "memory"),
    outermost first."""
    for mount, group in dict.fromkeys(_mounted_groups(controller)):
        levels = [level for level in group.split("/") if level]
        if ".." in levels:  # a group outside of what this container sees
            levels = []
        for depth in range(len(levels) + 1):
            yield Path("/".join([mount, *levels[:depth]]))


def _mounted_groups(controller: str) -> Iterator[tuple[str, str]]:
    """Yield each mount of a hierarchy with the controller, and this process's group below it."""
    groups = _own_groups()
    unified, own = groups.get("", "/"), groups.get(controller, "/")
    for line in _lines("/proc/self/mountinfo"):
        fields, _, options = line.partition(" - ")
        words, kind = fields.split(" "), options.split(" ")
        if len(words) < 5 or len(kind) < 3:
            continue
        # \040 is a space
        root, mount = (
            word.encode("ascii", "replace").decode("unicode_escape") for word in words[3:5]
        )
        if kind[0] == "cgroup2":
            yield mount, _below(unified, root)
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            yield mount, _below(own, root)
    # The usual mounts, in case the list of mounts is hidden.
    yield CGROUPS, unified
    yield f"{CGROUPS}/{controller}", own
    yield f"{CGROUPS}/cpu,cpuacct", own


def _below(group: str, root: str) -> str:
    """Return the group's path below the root of a mount, which in a container is only a part of the
    hierarchy."""
    if root == "/" or not (group + "/").startswith(root + "/"):
        return group if root == "/" else "/"
    return group.removeprefix(root) or "/"


def _own_groups() -> dict[str, str]:
    """Return this process's group by controller, for version 1, and by "", for version 2."""
    groups: dict[str, str] = {}
    for line in _lines("/proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def cpu_quota(folder: Path) -> int | None:
    """Return the processors that a group's quota grants, rounded up; None without a quota."""
    granted, _, period = (_text(folder / "cpu.max") or "").partition(" ")
    if not granted:
        granted, period = (
            _text(folder / "cpu.cfs_quota_us") or "",
            _text(folder / "cpu.cfs_period_us") or "",
        )
    try:
        quota, microseconds = int(granted), int(period)
    except ValueError:  # "max", or no such file
        return None
    return max(1, math.ceil(quota / microseconds)) if quota > 0 and microseconds > 0 else None


def _memory_limit(folder: Path) -> int | None:
    """Return the bytes that a group may use; None without a limit. Processes above `memory.high`
    are throttled almost to a halt."""
    values = [
        _number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
    ]
    values.append(_statistics(folder).get("hierarchical_memory_limit"))
    limits = [value for value in values if value is not None and value < UNLIMITED]
    return min(limits, default=None)


def _memory_held(folder: Path) -> int:
    """Return the bytes that the processes of a group use, without cached files."""
    held = _number(folder / "memory.current")
    if held is None:
        held = _number(folder / "memory.usage_in_bytes") or 0
    statistics = _statistics(folder)
    cached = [
        statistics.get(f"total_{name}", statistics.get(name, 0))
        for name in ("inactive_file", "active_file")
    ]
    return max(0, held - sum(cached))


def _statistics(folder: Path) -> dict[str, int]:
    pairs = (line.split(" ") for line in (_text(folder / "memory.stat") or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def peak_memory() -> int:
    """Return the most memory in bytes that this process has had in RAM; 0 if the system does not
    report it, as Windows does not."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


# The process and the machine ----------------------------------------------------------------------


def machine_memory() -> list[int]:
    """Return the machine's memory in bytes; [] if the system does not report it."""
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return []


def address_limit() -> list[int]:
    """Return the limit on this process's address space in bytes (`ulimit -v`); [] without one."""
    try:
        import resource
    except ImportError:
        return []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [] if soft == resource.RLIM_INFINITY or not 0 <= soft < UNLIMITED else [soft]


def own_memory() -> tuple[int, int]:
    """Return the bytes of address space and of memory that this process uses now; zeros if the
    system does not report them."""
    pages = (_text(Path("/proc/self/statm")) or "0 0").split()
    return int(pages[0]) * page_size(), int(pages[1]) * page_size()


def page_size() -> int:
    """Return the bytes of a page of memory."""
    return os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text is not None and text.isdecimal() else None


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return None


def _lines(path: str) -> list[str]:
    return (_text(Path(path)) or "").splitlines()


def cache_folder() -> Path:
    """Return the folder for files that can be made again: $FEATKIT_CACHE, else `featkit` in
    $XDG_CACHE_HOME or ~/.cache. RuntimeError if neither is set and the user has no home folder."""
    if own := os.environ.get("FEATKIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "featkit"
