"""Which of the installed engines runs a model file, and in which precision: what was asked for,
else what is fastest here.

`auto` measures at a model's first use on a machine, for about a second, and remembers what it found
in featkit's cache folder. A run whose vectors are not those of the first one (ONNX Runtime's, in
the file's own precision) is never chosen, however fast.

    FEATKIT_BACKEND, FEATKIT_PRECISION    stand in for an `auto`, and are demands like the option: what they name and this
                                          machine cannot have is an error. They give way to an option, to a file that has
                                          one precision, and to the vectors that a folder or an index already holds.
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
LEAST_COSINE = 0.999  # of a drawn image's vector with that of the first run
LEAST_IMAGES = 4
# Larger files are measured one session after the other, not side by side: each may take as much
# memory again.
SIDE_BY_SIDE_BYTES = 2**30
CPU_FLAGS = frozenset(("avx512_bf16", "amx_bf16"))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run on this machine: images a second with one thread, and the least cosine with the first
    run's vectors.

    `error` says why there are no figures.
    """

    images_per_s: float = 0.0
    least_cosine: float = 0.0
    error: str = ""

    @property
    def usable(self) -> bool:
        """Whether auto may choose it."""
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
    """The run asked for; of several that `accepts` leaves, the fastest here, as measured now or at
    an earlier time.

    InputError for a combination that does not exist; EnvironmentProblem when what was asked for is
    not installed, or does not work on this processor, or when `accepts` leaves nothing.
    """
    runs = possible_runs(manifest, backend=backend, precision=precision, accepts=accepts)
    if not runs:
        raise EnvironmentProblem(
            f"{model} cannot be run here so that its vectors may meet those that are there; install"
            " featkit[openvino]."
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
    """Runs of a model file that the installed packages and this processor offer and `accepts`
    allows, ONNX Runtime's first.

    An `auto` is replaced by its environment variable where that is set and fits the rest. TensorRT
    is only offered when it is asked for, since it builds an engine for minutes; bf16, unless asked
    for, where the processor has instructions for it, or where there is nothing else. Errors as for
    `choose_run`; InputError when the two variables contradict each other.
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
    """Every run of a model file that the installed packages and this processor have, ONNX Runtime's
    first, but TensorRT's."""
    return [
        run
        for run in _installed_runs(manifest, AUTO, AUTO)
        if run.precision != BF16 or _computes_bf16()
    ]


def reference_run(manifest: Manifest) -> Run:
    """What other runs are compared with: ONNX Runtime, in the file's own precision."""
    return Run(ONNXRUNTIME, manifest.precision)


def images_per_call(backend: Backend, manifest: Manifest, most: int) -> int:
    """How many images of the native size a call should have: as many as are faster together, and
    no more than `most`."""
    # where an image's vector would depend on who shares its batch, nobody shares it
    if not manifest.batch_invariant:
        return 1
    tokens = max(1, manifest.geometry.height * manifest.geometry.width // manifest.patch**2)
    return min(most, max(1, backend.tokens_per_call // tokens))


def processor_multiplies_bf16() -> bool:
    """Whether this processor has instructions for bfloat16, so that it is faster and not only
    smaller."""
    return bool(CPU_FLAGS & set(_cpu_facts().get("flags", "").split())) and _computes_bf16()


def _computes_bf16() -> bool:
    if not is_installed(OPENVINO):
        return False
    from featkit.backends.openvino import has_bf16

    return has_bf16()


def measure_runs(
    model: Path, manifest: Manifest, runs: Sequence[Run], *, batch_size: int
) -> dict[Run, Measured]:
    """Time runs on drawn images, a batch a turn, for MEASURED_S, or for that long each where they
    are large.

    The first run's vectors are what those of the others are compared with.

    A run that does not load or fails has its `error`, unless it is the first: then FeatkitError, as
    nothing can be compared.
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
    """Rates, and vectors of the drawn images, of runs whose sessions are open at once, and closed
    when this returns."""
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
    """An open session with its vectors of the drawn images, and what its turns took."""

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
        """Images a second, by the median turn."""
        return self._count / statistics.median(self._seconds)

    def _run(self, images: np.ndarray) -> np.ndarray:
        return self._backend.run(images)[EMBEDDING]


# What was measured before -------------------------------------------------------------------------


def _remembered_or_measured(
    model: Path, manifest: Manifest, *, batch_size: int
) -> dict[Run, Measured]:
    """Figures of every run that auto could choose for this model here: one measurement serves
    whatever is asked for later."""
    offered = _installed_runs(manifest, AUTO, AUTO)
    runs = [run for run in offered if run.precision != BF16 or processor_multiplies_bf16()]
    machine = _machine()
    with suppress(OSError, RuntimeError):  # no home, or no permission: measured again each time
        file = cache_folder() / CACHE_FILE
        remembered = _read(file)
        known = _figures(remembered.get(machine, {}).get(manifest.fingerprint))
        if set(runs) <= known.keys():
            return known
    found = measure_runs(model, manifest, runs, batch_size=batch_size)
    with suppress(OSError, RuntimeError, EnvironmentProblem):
        file = cache_folder() / CACHE_FILE
        remembered = _read(file)  # anew: another process may have written meanwhile
        remembered.setdefault(machine, {})[manifest.fingerprint] = {
            str(run): dataclasses.asdict(each) for run, each in found.items()
        }
        write_text(file, json.dumps({"format": FORMAT, "machines": remembered}, indent=1) + "\n")
    return found


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The figures of all machines; none where there is no file, or none that can be made sense of."""
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
    """What is remembered of one model; nothing where it is not as this version writes it."""
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
    """What the figures depend on beside the model."""
    processor = _cpu_facts().get("model name") or platform.processor() or platform.machine()
    installed = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed.append(f"{package} {version(package)}")
    return ", ".join([processor, counted(usable_cpus(), "processor"), *installed])


def _cpu_facts(file: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The lines of the first processor, by name; nothing where the system has no such file."""
    try:
        first = file.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


# What can be asked for ----------------------------------------------------------------------------


def _installed_runs(manifest: Manifest, backend: str, precision: str) -> list[Run]:
    """EnvironmentProblem when the engine that was asked for is not there, or none that could do it."""
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
    if not runs:  # what computes in this precision is not installed
        need_engine(OPENVINO)
    return runs


def _precisions(manifest: Manifest, backend: str) -> tuple[str, ...]:
    """What an engine can compute this file in."""
    if manifest.precision != FP32:
        return (manifest.precision,)
    return PRECISIONS if backend == OPENVINO else (FP32,)


def _exists(manifest: Manifest, backend: str, precision: str) -> bool:
    names = (ONNXRUNTIME, OPENVINO, TENSORRT) if backend == AUTO else (backend,)
    return precision == AUTO or any(precision in _precisions(manifest, name) for name in names)


def _why_not(manifest: Manifest, backend: str, precision: str) -> str:
    if manifest.precision != FP32:
        return (
            f"{manifest.name} is a file in {manifest.precision} and runs as it is, not in"
            f" {precision}; leave the precision at auto, or use the file that it was made from."
        )
    return (
        f"{backend} computes {manifest.name} in {FP32}, not in {precision}; use --backend"
        f" {OPENVINO} for that."
    )


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in (AUTO, *known):
        raise InputError(
            f"The {name} {value!r} is not known; use {', '.join((AUTO, *known[:-1]))} or"
            f" {known[-1]}."
        )


def _with_environment(manifest: Manifest, backend: str, precision: str) -> tuple[str, str]:
    """Backend and precision, each `auto` replaced by its environment variable unless what was asked
    for excludes that."""
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
