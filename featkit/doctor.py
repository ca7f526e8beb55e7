"""An examination of this machine: can it run featkit, and what is wrong if not?

Engines are tried on an image, not looked up: an installed package may still fail to load a library.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np

from featkit._version import __version__
from featkit.backends import Run
from featkit.backends.choosing import cpu_facts, offered_runs
from featkit.embedder import Embedder
from featkit.errors import FeatkitError
from featkit.modelfile import read_manifest
from featkit.models import default_model_path
from featkit.resources import cache_folder, spare_memory, usable_cpus, usable_memory
from featkit.wording import counted, first_line

OK, WARNING, PROBLEM = "ok", "warning", "problem"
EXTRAS = (
    "cpu",
    "gpu",
    "openvino",
    "demo",
    "serve",
    "train",
    "export",
    "evaluate",
    "formats",
    "watch",
)
# Instruction sets that engines and FAISS use, from slow to fast.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
LITTLE_MEMORY, LITTLE_DISK = 2 * 2**30, 5 * 2**30
# On these, locks and mapped files may not work as SQLite needs them.
NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse.sshfs",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
)
EARLIEST_YEAR = 2026  # before this, the clock is wrong


@dataclass(frozen=True)
class Finding:
    """One fact of the machine. advice: what to do if the status is not OK."""

    name: str
    value: str
    status: str = OK
    advice: str = ""


def examine(folder: Path = Path()) -> Iterator[Finding]:
    """Yield what there is to know, the slow tries last. folder: where indexes will be written."""
    yield Finding("featkit", f"{__version__} on Python {platform.python_version()}, {sys.platform}")
    yield from _processor()
    yield _memory()
    yield from _disks(folder)
    yield _clock()
    yield from _extras()
    yield _faiss()
    yield from _engines()


def _processor() -> Iterator[Finding]:
    facts = cpu_facts()
    yield Finding("processor", facts.get("model name") or platform.machine())
    total, usable = os.cpu_count() or 1, usable_cpus()
    limited = "" if usable == total else f" of {total}, by an affinity or a cgroup"
    yield Finding("CPUs", f"{usable}{limited}")
    flags = facts.get("flags", facts.get("Features", "")).split()
    if flags:
        known = [name for name in INSTRUCTIONS if name in flags]
        is_fast = not {"avx2", "asimd"}.isdisjoint(known)
        yield Finding(
            "instruction sets",
            ", ".join(known) or "none of those that engines use",
            OK if is_fast else WARNING,
            "" if is_fast else "Embedding will be slow on this processor.",
        )
    if (threads := os.environ.get("OMP_NUM_THREADS")) is not None:
        yield Finding("OMP_NUM_THREADS", threads)


def _memory() -> Finding:
    usable, spare = usable_memory(), spare_memory()
    little = spare < LITTLE_MEMORY
    return Finding(
        "memory",
        f"{usable / 2**30:.1f} GiB usable, {spare / 2**30:.1f} GiB free",
        WARNING if little else OK,
        "Fewer threads will be used; close other programs or raise the limit." if little else "",
    )


def _disks(folder: Path) -> Iterator[Finding]:
    for name, path in (("this folder", folder), ("cache", cache_folder())):
        place = _existing(path.absolute())
        free = shutil.disk_usage(place).free
        kind = _file_system(place)
        value = f"{place}: {free / 2**30:.1f} GiB free" + (f", {kind}" if kind else "")
        if not os.access(place, os.W_OK):
            yield Finding(name, value, PROBLEM, "It cannot be written; choose another folder.")
        elif kind.startswith(NETWORK_FILE_SYSTEMS):
            advice = "A network file system: keep indexes on a local disk, and copy them."
            yield Finding(name, value, WARNING, advice)
        elif free < LITTLE_DISK:
            yield Finding(name, value, WARNING, "Little space is left; free some.")
        else:
            yield Finding(name, value)


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds a path; "" where /proc does not say."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == Path(point) or Path(point) in path.parents
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


def _clock() -> Finding:
    now = time.gmtime()
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", now)
    if now.tm_year < EARLIEST_YEAR:
        return Finding(
            "clock", text, PROBLEM, "Set the clock: times of files are compared with it."
        )
    return Finding("clock", text)


def _extras() -> Iterator[Finding]:
    """Yield which optional packages are installed."""
    for extra in EXTRAS:
        packages = _packages_of(extra)
        if not packages:  # an older featkit is installed than the one that runs
            continue
        installed = {name: found for name in packages if (found := _version(name)) is not None}
        if len(installed) == len(packages):
            value = ", ".join(f"{name} {found}" for name, found in installed.items())
        else:
            missing = [name for name in packages if name not in installed]
            value = f"not installed: {', '.join(missing)}"
        yield Finding(f"extra {extra}", value)


def _packages_of(extra: str) -> list[str]:
    """Return the packages that an extra asks for."""
    try:
        wanted = requires("featkit") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
        return []
    marked = [line for line in wanted if f"extra == '{extra}'" in line.replace('"', "'")]
    names = []
    for line in marked:
        name = line.partition(";")[0].strip()
        for mark in "[<>=!~ (":
            name = name.partition(mark)[0]
        names.append(name)
    return sorted({*names})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _faiss() -> Finding:
    try:
        from featkit.index.bounded_faiss import MOST_THREADS, faiss
    except ImportError as error:
        return Finding(
            "FAISS", first_line(error), PROBLEM, "Search needs it: pip install 'featkit[cpu]'."
        )
    options = " ".join(str(faiss.get_compile_options()).split())
    gpus = int(getattr(faiss, "get_num_gpus", lambda: 0)())
    built = f", {counted(gpus, 'GPU')}" if gpus else ""
    return Finding("FAISS", f"{faiss.__version__} ({options}), {MOST_THREADS} threads{built}")


def _engines() -> Iterator[Finding]:
    """Try each engine and precision that is offered for the model that ships."""
    model = default_model_path()
    try:
        runs = offered_runs(read_manifest(model))
    except FeatkitError as error:
        yield Finding("engines", first_line(error), PROBLEM, "Install one: 'featkit[cpu]'.")
        return
    if not runs:
        advice = "Embedding needs one: pip install 'featkit[cpu]'."
        yield Finding("engines", "none is installed", PROBLEM, advice)
    for run in runs:
        yield _tried(model, run)


def _tried(model: Path, run: Run) -> Finding:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    try:
        embedder = Embedder(model, backend=run.backend, precision=run.precision)
        embedder.embed(image)
        started = time.perf_counter()
        embedder.embed(image)
    except Exception as error:  # an engine may fail in any way
        return Finding(
            f"engine {run}",
            first_line(error, most=200),
            PROBLEM,
            "It is installed but does not run here; install its package again, or another engine.",
        )
    return Finding(f"engine {run}", f"works, {1000 * (time.perf_counter() - started):.1f} ms")
