"""Compare `featkit duplicates` of this checkout with another one's, as whole processes in turn.

The images are 1,400 small ones of things and 300 photographs. Both have to find the same groups.
Run: python tests/benchmarks/bench_duplicates_versions.py OTHER_CHECKOUT [--quick]
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from featkit.duplicates import calibrate
from featkit.index import Index
from featkit.sources import open_source
from featkit.syncing import sync
from tests.benchmarks.photos import data_folder
from tests.benchmarks.record import alternate, arguments, is_quick, median_ratio, write_result

HERE = Path(__file__).parents[2]
ROUNDS = 1 if is_quick() else 2


def made_index(room: Path) -> Path:
    """Return a new index that is calibrated."""
    images = room / "images"
    images.mkdir()
    num_photographs, num_things = (20, 20) if is_quick() else (300, 1400)
    for path in sorted((data_folder() / "photos").iterdir())[:num_photographs]:
        shutil.copyfile(path, images / path.name)
    things = open_source(data_folder() / "things" / "val-00000.parquet")
    for number in range(num_things):
        (images / f"{number}.jpg").write_bytes(things.read(number))
    sync(images, room / "photos.index")
    with Index.open(room / "photos.index") as index:
        calibrate(index)
    return room / "photos.index"


def children_seconds() -> float:
    """Return the processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and record."""
    if not arguments():
        raise SystemExit(
            "Name the other checkout: python tests/benchmarks/bench_duplicates_versions.py"
            " OTHER_CHECKOUT"
        )
    other = Path(arguments()[0]).resolve()
    results: dict[Path, bytes] = {}
    processor_s: dict[Path, list[float]] = {HERE: [], other: []}
    with tempfile.TemporaryDirectory() as name:
        index = made_index(Path(name))

        def seconds(checkout: Path) -> float:
            before, started = children_seconds(), time.perf_counter()
            words = ["-m", "featkit", "duplicates", str(index), "--level", "similar", "--json"]
            results[checkout] = subprocess.run(
                [sys.executable, *words],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(checkout)},
                cwd=checkout,
            ).stdout
            processor_s[checkout].append(children_seconds() - before)
            return time.perf_counter() - started

        now, before = alternate(lambda: seconds(HERE), lambda: seconds(other), rounds=ROUNDS)
        with Index.open(index) as opened:
            num_images = len(opened)
    write_result(
        "duplicates_versions",
        {
            "images": num_images,
            "same groups": results[HERE] == results[other],
            "seconds": [round(value, 1) for value in now],
            "seconds, other checkout": [round(value, 1) for value in before],
            "medians": [round(statistics.median(now), 1), round(statistics.median(before), 1)],
            "median of the pairs' ratios": round(median_ratio(now, before), 3),
            "processor seconds": [round(value, 1) for value in processor_s[HERE]],
            "processor seconds, other checkout": [round(value, 1) for value in processor_s[other]],
        },
    )


if __name__ == "__main__":
    main()
