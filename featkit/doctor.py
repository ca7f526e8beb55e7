"""An examination of this machine: can it run featkit, and what is wrong if not?

Engines are tried on an image, not looked up: an installed package may still fail to load a library.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np

from featkit._version import __version__
from featkit.backends import Run
from featkit.backends.base import ONNXRUNTIME
from featkit.backends.choosing import cpu_facts, offered_runs
from featkit.backends.opening import check_exclusive_packages
from featkit.embedder import Embedder
from featkit.errors import EnvironmentProblem, FeatkitError
from featkit.modelfile import read_manifest
from featkit.models import default_model_path
from featkit.resources import (
    cache_folder,
    machine_memory,
    spare_memory,
    usable_cpus,
    usable_memory,
)
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
    "afs",
    "beegfs",
    "ceph",
    "davfs",
    "fuse.ceph",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "gpfs",
    "lustre",
)
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
# By which times of files and the clock may differ: FAT stores times in steps of 2 s.
CLOCK_TOLERANCE_S = 3.0
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
    yield _gpus()
    yield from _disks(folder)
    yield _clock(folder)
    yield _packages()
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
    usable, spare = usable_memory(), min(spare_memory(), _available_memory())
    little = spare < LITTLE_MEMORY
    total = max([usable, *machine_memory()])
    limited = "" if usable == total else f" of {total / 2**30:.1f} GiB, by a cgroup or `ulimit -v`"
    return Finding(
        "memory",
        f"{usable / 2**30:.1f} GiB usable{limited}, {spare / 2**30:.1f} GiB free",
        WARNING if little else OK,
        "Fewer threads will be used; close other programs or raise the limit." if little else "",
    )


def _available_memory() -> float:
    """Return the bytes that the machine could give to a process; infinite where /proc does not
    say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return math.inf if kib is None else 1024 * int(kib)


def _gpus() -> Finding:
    """Return which NVIDIA GPUs the driver has; the engines say below whether they run on one."""
    models = []
    for file in sorted(NVIDIA_GPUS.glob("*/information")):
        facts = cpu_facts(file)  # the same format
        models.append(facts.get("Model", file.parent.name))
    if not models:
        return Finding("GPU", "none with NVIDIA's driver")
    value = ", ".join(models)
    if _version("onnxruntime-gpu") is None:
        advice = "It is not used: pip uninstall onnxruntime faiss-cpu; pip install 'featkit[gpu]'."
        return Finding("GPU", value, WARNING, advice)
    return Finding("GPU", value)


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


def _clock(folder: Path) -> Finding:
    """Return the time, which times of files are compared with."""
    now = time.gmtime()
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", now)
    if now.tm_year < EARLIEST_YEAR:
        return Finding(
            "clock", text, PROBLEM, "Set the clock: times of files are compared with it."
        )
    with suppress(OSError):  # a folder that cannot be written is another finding
        before = time.time()
        with tempfile.TemporaryFile(dir=_existing(folder.absolute())) as file:
            file.write(b"featkit")
            file.flush()
            ahead = os.fstat(file.fileno()).st_mtime - before
        if abs(ahead) > CLOCK_TOLERANCE_S:
            return Finding(
                "clock",
                f"{text}; files in this folder get a time {ahead:+.0f} s from it",
                WARNING,
                "Set the clocks of this machine and of its disk by one time server.",
            )
    return Finding("clock", text)


def _packages() -> Finding:
    """Return the versions of the packages that featkit always needs."""
    names = _packages_of("")
    value = ", ".join(f"{name} {_version(name) or 'is missing'}" for name in names)
    try:
        check_exclusive_packages()
    except EnvironmentProblem as error:
        return Finding("packages", value, PROBLEM, str(error))
    if any(_version(name) is None for name in names):
        advice = "Install featkit again: pip install --force-reinstall 'featkit[cpu]'."
        return Finding("packages", value, PROBLEM, advice)
    return Finding("packages", value)


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
    """Return the packages that an extra asks for, or featkit itself by ""."""
    try:
        wanted = requires("featkit") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
        return []
    marked = [
        line
        for line in wanted
        if (f"extra == '{extra}'" in line.replace('"', "'") if extra else "extra ==" not in line)
    ]
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
    return Finding(
        "FAISS", f"{faiss.__version__} ({options}), {counted(MOST_THREADS, 'thread')}{built}"
    )


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
    milliseconds = 1000 * (time.perf_counter() - started)
    value = f"works on {embedder.backend_name}, {milliseconds:.1f} ms"
    if run.backend == ONNXRUNTIME and _misses_gpu(embedder.backend_name):
        advice = (
            "The GPU is not used: NVIDIA's driver may be too old for onnxruntime-gpu; update it."
        )
        return Finding(f"engine {run}", value, WARNING, advice)
    return Finding(f"engine {run}", value)


def _misses_gpu(name: str) -> bool:
    """Return whether ONNX Runtime fell back to the CPU although it and the machine have a GPU."""
    has_gpu = _version("onnxruntime-gpu") is not None and any(NVIDIA_GPUS.glob("*"))
    return has_gpu and name.endswith("CPU")
