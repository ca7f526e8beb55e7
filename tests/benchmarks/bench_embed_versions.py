"""`featkit embed` of this checkout beside that of another one, over the 600 photographs, as whole processes in turn.

The photographs have no color profile, so a version that converts profiles must not be slower by more than noise. featkit-tiny
on ONNX Runtime, since decoding has its largest share there, and on the default engine.
Run: python tests/benchmarks/bench_embed_versions.py OTHER_CHECKOUT
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.record import alternate, arguments, is_quick, median_ratio, write_result
from tests.data import shared_data

HERE = Path(__file__).parents[2]
ROUNDS = 1 if is_quick() else 9
RUNS = {"onnxruntime fp32": ("--backend", "onnxruntime"), "auto": ()}


def seconds(checkout: Path, photos: Path, out: Path, options: tuple[str, ...]) -> float:
    """Wall time of one `featkit embed` in a process of its own."""
    folders = [checkout, *(checkout / name for name in ("train", "export", "demo"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-m", "featkit", "embed", str(photos), "--out", str(out), "--quiet", *options]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=checkout)
    return time.perf_counter() - started


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    if not arguments():
        raise SystemExit("Name the other checkout: python tests/benchmarks/bench_embed_versions.py OTHER_CHECKOUT")
    other = Path(arguments()[0]).resolve()
    figures: dict[str, object] = {"rounds": ROUNDS, "target ratio, at most": 1.03}
    with tempfile.TemporaryDirectory() as name:
        for run, options in RUNS.items():
            count = 0

            def measure(checkout: Path, options: tuple[str, ...] = options, run: str = run) -> float:
                nonlocal count
                count += 1
                return seconds(checkout, data / "photos", Path(name) / f"{run[:4]}{count}", options)

            measure(HERE), measure(other)  # the pictures' pages, and what `auto` measures once
            now, before = alternate(lambda: measure(HERE), lambda: measure(other), rounds=ROUNDS)
            figures |= {
                f"{run}: seconds": [round(value, 3) for value in now],
                f"{run}: seconds, other checkout": [round(value, 3) for value in before],
                f"{run}: medians": [round(statistics.median(now), 3), round(statistics.median(before), 3)],
                f"{run}: median of the pairs' ratios": round(median_ratio(now, before), 4),
            }
    write_result("embed_versions", figures)


if __name__ == "__main__":
    main()
