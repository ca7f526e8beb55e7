"""Shared by all benchmarks: alternate, take medians, print figures and keep the raw ones.

`--quick` after a benchmark's name tries its code with the smallest counts. Such figures mean
nothing and are not kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featkit.atomic import write_text
from featkit.resources import usable_cpus

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "onnxruntime", "faiss-cpu", "numpy", "pillow", "lightly")


def is_quick() -> bool:
    """Return whether the code is only tried."""
    return "--quick" in sys.argv


def arguments() -> list[str]:
    """Return the arguments of a benchmark that are not flags."""
    return [word for word in sys.argv[1:] if not word.startswith("-")]


def alternate(
    first: Callable[[], float], second: Callable[[], float], *, rounds: int
) -> tuple[list[float], list[float]]:
    """Measure two things in turn, so that a machine that slows down slows both: first, second,
    first, second, ..."""
    firsts, seconds = [], []
    for _ in range(rounds):
        firsts.append(first())
        seconds.append(second())
    return firsts, seconds


def median_ratio(firsts: list[float], seconds: list[float]) -> float:
    """The median of the pairs' ratios first / second."""
    return statistics.median(a / b for a, b in zip(firsts, seconds, strict=True))


def write_result(name: str, figures: Mapping[str, Any], *, keep: bool | None = None) -> None:
    """Print the figures and, unless `keep` is False or the path alone is tried, write them with the
    machine and the versions to results/NAME.json."""
    for figure, value in figures.items():
        print(f"{figure:>42}  {value}")
    if not is_quick() if keep is None else keep:
        save_result(name, figures)


def save_result(name: str, figures: Mapping[str, Any], *, folder: Path | None = None) -> None:
    """Write figures with the machine and the versions to FOLDER/NAME.json, results/ by default,
    complete or not at all."""
    record = {"figures": figures, "machine": machine(), "versions": versions()}
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")


def read_figures(name: str, *, folder: Path | None = None) -> dict[str, Any]:
    """Return those of FOLDER/NAME.json, results/ by default, or none."""
    path = (folder or RESULTS) / f"{name}.json"
    return json.loads(path.read_text())["figures"] if path.is_file() else {}


def versions() -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as a table, numbers to the right."""
    head = list(rows[0])
    align = ["---:" if isinstance(rows[0][name], int | float) else "---" for name in head]
    lines = [head, align, *[[str(row[name]) for name in head] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """Describe this machine without naming it."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "processor": model,
        "cpus": usable_cpus(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
    }
