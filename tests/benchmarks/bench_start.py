"""Measure `import featkit` and `featkit --help` as whole processes, relative to a bare Python.

Run: python tests/benchmarks/bench_start.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.record import write_result

ROUNDS = 9
COMMANDS = {
    "bare python s": ("-c", "pass"),
    "import featkit s": ("-c", "import featkit"),
    "featkit --help s": ("-m", "featkit", "--help"),
}
TARGETS = {"target of import featkit s": 0.3, "target of featkit --help s": 0.5}


def seconds(arguments: tuple[str, ...]) -> float:
    """Return the seconds of one process, from start to end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure and record."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {
        f"median of {name}": round(statistics.median(values), 3) for name, values in times.items()
    }
    raw = {name: [round(value, 3) for value in values] for name, values in times.items()}
    write_result("start", {**raw, **medians, **TARGETS})


if __name__ == "__main__":
    main()
