"""What every benchmark does with its figures: alternate, take medians, print them, keep the raw ones."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featkit.resources import usable_cpus

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "onnxruntime", "faiss-cpu", "numpy", "pillow", "lightly")


def alternate(first: Callable[[], float], second: Callable[[], float], *, rounds: int) -> tuple[list[float], list[float]]:
    """Measure two things in turn, so that a machine that slows down slows both: first, second, first, second, ..."""
    firsts, seconds = [], []
    for _ in range(rounds):
        firsts.append(first())
        seconds.append(second())
    return firsts, seconds


def median_ratio(firsts: list[float], seconds: list[float]) -> float:
    """The median of the pairs' ratios first / second."""
    return statistics.median(a / b for a, b in zip(firsts, seconds, strict=True))


def write_result(name: str, figures: Mapping[str, Any]) -> None:
    """Print the figures, and write them with the machine and the versions to results/NAME.json."""
    record = {"figures": figures, "machine": machine(), "versions": {package: version(package) for package in PACKAGES}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for figure, value in figures.items():
        print(f"{figure:>42}  {value}")


def machine() -> dict[str, Any]:
    """What can be said of this machine without naming it."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {"processor": model, "cpus": usable_cpus(), "load_before": os.getloadavg()[0], "python": platform.python_version()}
