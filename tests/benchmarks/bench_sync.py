"""`featkit sync` of 100,000 small files: the first run, no change, 100 changed, 1,000 moved; and a
first run that is killed half-way and run again.

The model is a trivial one, so the figures are the cost of everything else.

Run: python tests/benchmarks/bench_sync.py [--files N] [--room FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from PIL import Image

from featkit.index import Index
from tests.benchmarks.record import write_result
from tests.model_files import make_model_file

NUM_FILES, PER_FOLDER = 100_000, 1000
LONG_AGO = 1_700_000_000
CHILD = """
import json, resource, sys, time
started = time.perf_counter()
from featkit.syncing import sync
report = sync(sys.argv[1], sys.argv[2], model=sys.argv[3])
facts = {
    "seconds": round(time.perf_counter() - started, 2),
    "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "embedded": report.num_embedded,
    "moved": report.num_moved,
    "items": report.num_indexed,
}
print(json.dumps(facts))
"""


def draw(path: Path, seed: int) -> None:
    """Write a JPEG of 64×48 with colored blocks, modified long ago."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(blocks).resize((64, 48), Image.Resampling.NEAREST)
    image.save(buffer, "JPEG", quality=80)
    path.write_bytes(buffer.getvalue())
    os.utime(path, (LONG_AGO, LONG_AGO + seed))


def run(photos: Path, index: Path, model: Path) -> dict[str, Any]:
    """Sync in a process of its own, with its start, and return what it printed."""
    words = [sys.executable, "-c", CHILD, str(photos), str(index), str(model)]
    started = time.perf_counter()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return {"process seconds": round(time.perf_counter() - started, 2), **facts}


def run_command(photos: Path, index: Path) -> dict[str, Any]:
    """Run `featkit sync` and return how long the process takes."""
    words = [sys.executable, "-m", "featkit", "sync", str(photos), str(index), "--quiet"]
    started = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return {"process seconds": round(time.perf_counter() - started, 2)}


def run_killed(photos: Path, index: Path, model: Path, *, after_s: float) -> dict[str, Any]:
    """Kill a sync some seconds after it has begun an index, and run it again."""
    words = [sys.executable, "-c", CHILD, str(photos), str(index), str(model)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while not index.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(after_s)
    process.kill()
    process.wait()
    with Index.open(index) as opened:
        num_kept = len(opened)
    return {"killed after": round(after_s, 1), "kept": num_kept, **run(photos, index, model)}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--room", type=Path)
    parser.add_argument("--files", type=int, default=NUM_FILES)
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    count = 300 if options.quick else options.files
    with tempfile.TemporaryDirectory() as temporary:
        room = options.room or Path(temporary)
        photos, index = room / "photos", room / "photos.index"
        model = make_model_file(room / "m.onnx")
        for i in range(count):
            folder = photos / f"{i // PER_FOLDER:03}"
            folder.mkdir(parents=True, exist_ok=True)
            draw(folder / f"{i:06}.jpg", i)
        figures = {"first run": run(photos, index, model)}
        figures["no change"] = run(photos, index, model)
        run_command(photos, index)  # calibrates the index
        figures["no change, by the command"] = run_command(photos, index)
        half = figures["first run"]["seconds"] / 2
        killed = room / "killed.index"
        figures["killed, and run again"] = run_killed(photos, killed, model, after_s=half)
        for i in range(0, count, max(1, count // 100)):
            draw(photos / f"{i // PER_FOLDER:03}" / f"{i:06}.jpg", count + i)
        figures["100 changed"] = run(photos, index, model)
        moved = photos / "moved"
        moved.mkdir()
        for i in range(1, count, max(2, count // 1000)):
            old = photos / f"{i // PER_FOLDER:03}" / f"{i:06}.jpg"
            old.rename(moved / old.name)
        figures["1,000 moved"] = run(photos, index, model)
    write_result("sync", {"files": count, **figures}, keep=not options.quick)


if __name__ == "__main__":
    main()
