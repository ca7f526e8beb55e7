"""Compare `featkit embed` of this checkout with another one's, as whole processes in turn.

The images are 600 photographs. Of these 163 have a color profile and 56 are not in sRGB. They are
also embedded without profiles, where converting profiles must cost nothing beyond noise. The model
is featkit-tiny, on ONNX Runtime and on the default engine.
Run: python tests/benchmarks/bench_embed_versions.py OTHER_CHECKOUT
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled
    command = [
        sys.executable,
        "-m",
        "featkit",
        "embed",
        str(photos),
        "--out",
        str(out),
        "--quiet",
        *options,
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=checkout)
    return time.perf_counter() - started


def without_profiles(photos: Path, folder: Path) -> Path:
    """The same JPEG files without their ICC segments, byte for byte else."""
    folder.mkdir()
    for path in photos.iterdir():
        data = path.read_bytes()
        while (at := data.find(b"ICC_PROFILE\0")) > 0:
            data = data[: at - 4] + data[at - 2 + int.from_bytes(data[at - 2 : at], "big") :]
        (folder / path.name).write_bytes(data)
    return folder


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    if not arguments():
        raise SystemExit(
            "Name the other checkout: python tests/benchmarks/bench_embed_versions.py"
            " OTHER_CHECKOUT"
        )
    other = Path(arguments()[0]).resolve()
    figures: dict[str, object] = {"rounds": ROUNDS, "target ratio, at most": 1.03}
    with tempfile.TemporaryDirectory() as name:
        folders = {
            "as they are": data / "photos",
            "no profiles": without_profiles(data / "photos", Path(name) / "plain"),
        }
        for run, (kind, photos) in itertools.product(RUNS, folders.items()):
            numbers = itertools.count()

            def measure(
                checkout: Path,
                run: str = run,
                photos: Path = photos,
                numbers: Iterator[int] = numbers,
            ) -> float:
                return seconds(
                    checkout,
                    photos,
                    Path(name) / f"{run[:4]}-{photos.name}-{next(numbers)}",
                    RUNS[run],
                )

            measure(HERE), measure(other)  # the images' pages, and what `auto` measures once
            now, before = alternate(lambda: measure(HERE), lambda: measure(other), rounds=ROUNDS)
            figures |= {
                f"{run}, {kind}: seconds": [round(value, 3) for value in now],
                f"{run}, {kind}: seconds, other checkout": [round(value, 3) for value in before],
                f"{run}, {kind}: medians": [
                    round(statistics.median(now), 3),
                    round(statistics.median(before), 3),
                ],
                f"{run}, {kind}: median of the pairs' ratios": round(median_ratio(now, before), 4),
            }
    write_result("embed_versions", figures)


if __name__ == "__main__":
    main()
