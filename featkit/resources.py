"""How much of the machine this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cpus() -> int:
    """Processors this process may use: the smaller of its affinity and its cgroup v2 quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup/cpu.max"))
    return max(1, min(allowed, quota if quota is not None else allowed))


def _cgroup_quota(cpu_max: Path) -> int | None:
    """Processors granted by a cgroup v2 `cpu.max` file ("200000 100000" grants 2), or None without a limit."""
    try:
        granted, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return None
    return None if granted == "max" else math.ceil(int(granted) / int(period))


def cache_folder() -> Path:
    """Where featkit keeps what it can make again: $FEATKIT_CACHE, else `featkit` in $XDG_CACHE_HOME or ~/.cache.

    RuntimeError where none is set and this user has no home.
    """
    if own := os.environ.get("FEATKIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "featkit"
