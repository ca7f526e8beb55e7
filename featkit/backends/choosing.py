"""Choose the engine and precision that run a model file: those requested, else the fastest.

`auto` measures for about a second when a model is first used on a machine, and remembers the result
in featkit's cache folder. It never chooses a run, however fast, whose vectors differ from those of
ONNX Runtime in the file's own precision.

    FEATKIT_BACKEND, FEATKIT_PRECISION    replace `auto`. Like the options, they are strict: it is
    an error if the machine lacks what they name. They yield to an option, to a file that has
        only one precision, and to the vectors that a folder or an index already holds.
    FEATKIT_CACHE                         another cache folder
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from featkit.atomic import write_text
from featkit.backends.base import (
    AUTO,
    BACKENDS,
    BF16,
    FP32,
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    Backend,
    Run,
)
from featkit.backends.drawn import drawn_images
from featkit.backends.opening import is_installed, need_engine, open_backend
from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.modelfile import EMBEDDING, Manifest
from featkit.resources import cache_folder, usable_cpus
from featkit.wording import counted

ENVIRONMENT = {"backend": "FEATKIT_BACKEND", "precision": "FEATKIT_PRECISION"}
PRECISIONS = (FP32, BF16)
FORMAT = 1
CACHE_FILE = "runs.json"
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "featkit")
MEASURED_S = 1.0
LEAST_COSINE = 0.999  # cosine of a drawn image's vector with that of the first run
LEAST_IMAGES = 4
# Larger files are measured one session after the other, not side by side: each may take as much
# memory again.
SIDE_BY_SIDE_BYTES = 2**30
CPU_FLAGS = frozenset(("avx512_bf16", "amx_bf16"))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run's figures on this machine, or the `error` that prevented them.

    images_per_s: with one thread. least_cosine: the smallest cosine with the reference run.
    """

    images_per_s: float = 0.0
    least_cosine: float = 0.0
    error: str = ""

    @property
    def usable(self) -> bool:
        """Return whether auto may choose the run."""
        return not self.error and self.least_cosine >= LEAST_COSINE


def choose_run(
    model: Path,
    manifest: Manifest,
    *,
    backend: str = AUTO,
    precision: str = AUTO,
    accepts: Callable[[Run], bool] = lambda _run: True,
    batch_size: int,
) -> Run:
    """Return the requested run or, if several are possible, the fastest one on this machine.

    The figures are measured now, or remembered from an earlier time. Raises InputError for a
    combination that does not exist. Raises EnvironmentProblem if the requested engine is missing or
    does not work on this CPU, or if `accepts` allows no run.
    """
    runs = possible_runs(manifest, backend=backend, precision=precision, accepts=accepts)
    if not runs:
        raise EnvironmentProblem(
            f"No engine installed here gives vectors of {model} compatible with those already"
            " stored; install featkit[openvino]."
        )
    if len(runs) == 1:
        return runs[0]
    figures = _remembered_or_measured(model, manifest, batch_size=batch_size)
    usable = [run for run in runs if run in figures and figures[run].usable]
    return max(usable, key=lambda run: figures[run].images_per_s) if usable else runs[0]


def possible_runs(
    manifest: Manifest,
    *,
    backend: str = AUTO,
    precision: str = AUTO,
    accepts: Callable[[Run], bool] = lambda _run: True,
) -> list[Run]:
    """Return the runs that are installed, work on this CPU and pass `accepts`; ONNX Runtime first.

    An environment variable replaces `auto` if it is set and compatible with the rest. TensorRT is
    offered only on request, since building its engine takes minutes. bf16 is offered on request, if
    the CPU has instructions for it, or if nothing else is left. Raises as `choose_run` does, and
    InputError if the two variables contradict each other.
    """
    _check_choice("backend", backend, BACKENDS)
    _check_choice("precision", precision, tuple(dict.fromkeys((*PRECISIONS, manifest.precision))))
    if not _exists(manifest, backend, precision):
        raise InputError(_why_not(manifest, backend, precision))
    for name, asked in (_with_environment(manifest, backend, precision), (backend, precision)):
        runs = [run for run in _installed_runs(manifest, name, asked) if accepts(run)]
        if asked == AUTO:
            fast = [run for run in runs if run.precision != BF16 or processor_multiplies_bf16()]
            runs = fast or [run for run in runs if run.precision != BF16 or _computes_bf16()]
        if runs:
            return runs
    return []


def offered_runs(manifest: Manifest) -> list[Run]:
    """Return every run that is installed and works on this CPU, except TensorRT; ONNX Runtime
    first."""
    return [
        run
        for run in _installed_runs(manifest, AUTO, AUTO)
        if run.precision != BF16 or _computes_bf16()
    ]


def reference_run(manifest: Manifest) -> Run:
    """Return the run that others are compared with: ONNX Runtime in the file's own precision."""
    return Run(ONNXRUNTIME, manifest.precision)


def images_per_call(backend: Backend, manifest: Manifest, most: int) -> int:
    """Return the best number of images of the native size per call, at most `most`."""
    # if an image's vector depends on the rest of its batch, every image is run alone
    if not manifest.batch_invariant:
        return 1
    tokens = max(1, manifest.geometry.height * manifest.geometry.width // manifest.patch**2)
    return min(most, max(1, backend.tokens_per_call // tokens))


def processor_multiplies_bf16() -> bool:
    """Return whether this CPU has instructions for bfloat16; without them it saves no time."""
    return bool(CPU_FLAGS & set(cpu_facts().get("flags", "").split())) and _computes_bf16()


def _computes_bf16() -> bool:
    if not is_installed(OPENVINO):
        return False
    from featkit.backends.openvino import has_bf16

    return has_bf16()


def measure_runs(
    model: Path, manifest: Manifest, runs: Sequence[Run], *, batch_size: int
) -> dict[Run, Measured]:
    """Time runs on drawn images, alternating batch by batch, for MEASURED_S in total.

    Runs of a large file are timed one after the other, MEASURED_S each. The vectors of all runs are
    compared with those of the first. A run that does not load or fails gets an `error`; if the
    first fails, FeatkitError is raised, since nothing can be compared.
    """
    num_bytes = model.stat().st_size + (manifest.external.num_bytes if manifest.external else 0)
    groups = [list(runs)] if num_bytes < SIDE_BY_SIDE_BYTES else [[run] for run in runs]
    found: dict[Run, Measured] = {}
    expected: np.ndarray | None = None
    for group in groups:
        measured, vectors = _measure_group(
            model, manifest, group, first=runs[0], batch_size=batch_size
        )
        expected = vectors[runs[0]] if expected is None else expected
        for run, each in vectors.items():
            cosines = np.einsum("nd,nd->n", each, expected, dtype=np.float64)
            measured[run] = dataclasses.replace(measured[run], least_cosine=float(cosines.min()))
        found |= measured
    return found


def _measure_group(
    model: Path, manifest: Manifest, runs: Sequence[Run], *, first: Run, batch_size: int
) -> tuple[dict[Run, Measured], dict[Run, np.ndarray]]:
    """Return rates and vectors of runs, with all their sessions open at the same time."""
    timed: dict[Run, _Timed] = {}
    found: dict[Run, Measured] = {}
    for run in runs:
        try:
            timed[run] = _Timed(model, manifest, run, batch_size=batch_size)
        except FeatkitError as error:
            if run == first:
                raise
            found[run] = Measured(error=str(error))
    deadline = time.perf_counter() + MEASURED_S
    while timed:
        for each in timed.values():
            each.turn()
        if time.perf_counter() >= deadline:
            break
    found |= {run: Measured(images_per_s=each.rate) for run, each in timed.items()}
    return found, {run: each.vectors for run, each in timed.items()}


class _Timed:
    """An open session, its vectors of the drawn images, and the durations of its turns."""

    def __init__(self, model: Path, manifest: Manifest, run: Run, *, batch_size: int) -> None:
        self._backend = open_backend(model, run, threads=1)
        self._count = images_per_call(self._backend, manifest, batch_size)
        geometry = manifest.geometry
        images = drawn_images(
            max(LEAST_IMAGES, self._count), height=geometry.height, width=geometry.width
        )
        self._images = images[: self._count]
        starts = range(0, len(images), self._count)
        self.vectors = np.concatenate([self._run(images[at : at + self._count]) for at in starts])
        self._seconds: list[float] = []

    def turn(self) -> None:
        """Run the batch once more."""
        started = time.perf_counter()
        self._run(self._images)
        self._seconds.append(time.perf_counter() - started)

    @property
    def rate(self) -> float:
        """Images per second, by the median turn."""
        return self._count / statistics.median(self._seconds)

    def _run(self, images: np.ndarray) -> np.ndarray:
        return self._backend.run(images)[EMBEDDING]


# Remembered figures -------------------------------------------------------------------------------


def _remembered_or_measured(
    model: Path, manifest: Manifest, *, batch_size: int
) -> dict[Run, Measured]:
    """Return figures of every run that auto could choose here; one measurement serves them all."""
    offered = _installed_runs(manifest, AUTO, AUTO)
    runs = [run for run in offered if run.precision != BF16 or processor_multiplies_bf16()]
    machine = _machine()
    with suppress(OSError, RuntimeError):  # without a writable home, measure every time
        file = cache_folder() / CACHE_FILE
        remembered = _read(file)
        known = _figures(remembered.get(machine, {}).get(manifest.fingerprint))
        if set(runs) <= known.keys():
            return known
    found = measure_runs(model, manifest, runs, batch_size=batch_size)
    with suppress(OSError, RuntimeError, EnvironmentProblem):
        file = cache_folder() / CACHE_FILE
        remembered = _read(file)  # again, since another process may have written to it
        remembered.setdefault(machine, {})[manifest.fingerprint] = {
            str(run): dataclasses.asdict(each) for run, each in found.items()
        }
        write_text(file, json.dumps({"format": FORMAT, "machines": remembered}, indent=1) + "\n")
    return found


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of all machines, or {} if the file is missing or cannot be parsed."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        machines = values["machines"] if values["format"] == FORMAT else {}
        fits = isinstance(machines, dict) and all(
            isinstance(models, dict) for models in machines.values()
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    return machines if fits else {}


def _figures(entry: object) -> dict[Run, Measured]:
    """Return the remembered figures of one model, or {} if another version wrote them."""
    if not isinstance(entry, dict):
        return {}
    try:
        found = {Run.parse(text): Measured(**values) for text, values in entry.items()}
        fits = all(
            isinstance(each.images_per_s + each.least_cosine, float) for each in found.values()
        )
    except (TypeError, ValueError, AttributeError):
        return {}
    return found if fits else {}


def _machine() -> str:
    """Return what the figures depend on besides the model."""
    processor = cpu_facts().get("model name") or platform.processor() or platform.machine()
    installed = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed.append(f"{package} {version(package)}")
    return ", ".join([processor, counted(usable_cpus(), "processor"), *installed])


def cpu_facts(file: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Return the properties of the first CPU by name, or {} on a system without /proc/cpuinfo."""
    try:
        first = file.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


# Possible combinations ----------------------------------------------------------------------------


def _installed_runs(manifest: Manifest, backend: str, precision: str) -> list[Run]:
    """Return the installed runs. Raises EnvironmentProblem if there is none for the request."""
    names = (
        [name for name in (ONNXRUNTIME, OPENVINO) if is_installed(name)]
        if backend == AUTO
        else [backend]
    )
    for name in names or [ONNXRUNTIME]:
        need_engine(name)
    runs = [
        Run(name, each)
        for name in names
        for each in _precisions(manifest, name)
        if precision in (AUTO, each)
    ]
    if not runs:  # only OpenVINO computes in this precision
        need_engine(OPENVINO)
    return runs


def _precisions(manifest: Manifest, backend: str) -> tuple[str, ...]:
    """Return the precisions in which an engine can compute this file."""
    if manifest.precision != FP32:
        return (manifest.precision,)
    return PRECISIONS if backend == OPENVINO else (FP32,)


def _exists(manifest: Manifest, backend: str, precision: str) -> bool:
    names = (ONNXRUNTIME, OPENVINO, TENSORRT) if backend == AUTO else (backend,)
    return precision == AUTO or any(precision in _precisions(manifest, name) for name in names)


def _why_not(manifest: Manifest, backend: str, precision: str) -> str:
    if manifest.precision != FP32:
        return (
            f"{manifest.name} is a file in {manifest.precision} and cannot run in {precision};"
            " leave the precision at auto, or use the file that it was made from."
        )
    return (
        f"{backend} computes {manifest.name} in {FP32}, not in {precision}; use --backend"
        f" {OPENVINO}."
    )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in (AUTO, *known):
        raise InputError(
            f"There is no {name} {value!r}; use {', '.join((AUTO, *known[:-1]))} or {known[-1]}."
        )


def _with_environment(manifest: Manifest, backend: str, precision: str) -> tuple[str, str]:
    """Replace each `auto` by its environment variable, if that is possible."""
    name = _or_environment("backend", backend, BACKENDS)
    asked = _or_environment("precision", precision, PRECISIONS)
    if precision == AUTO and not _exists(manifest, backend, asked):
        asked = AUTO
    if backend == AUTO and not _exists(manifest, name, precision):
        name = AUTO
    if not _exists(manifest, name, asked):
        raise InputError(
            f"{ENVIRONMENT['backend']} is {name} and {ENVIRONMENT['precision']} is {asked}, but "
            f"{_why_not(manifest, name, asked)}"
        )
    return name, asked


def _or_environment(name: str, value: str, known: Sequence[str]) -> str:
    instead = os.environ.get(ENVIRONMENT[name], AUTO) or AUTO
    if value != AUTO:
        return value
    if instead not in (AUTO, *known):
        raise InputError(
            f"{ENVIRONMENT[name]} is {instead!r}; use {', '.join((AUTO, *known[:-1]))} or"
            f" {known[-1]}."
        )
    return instead
