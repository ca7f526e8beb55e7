"""Find the near-copies among many vectors: seconds, peak memory, and the recall by codes.

Vectors are those of shared/data/vectors.py, 384 wide; one of 100 is replaced by a near-copy of
another one. There are no thumbnails, so the comparison alone is measured: all pairs that score as
copies do, of which 99 % of the images have none but planted ones. It runs in a process of its own,
exactly and by codes (`featkit compact`, whose time is listed too). Recall is the share of the exact
pairs that codes find; where exact comparison would take too long (--sampled), it is measured on a
sample, by each image's own search alone.

Run: python tests/benchmarks/bench_duplicates.py [--count 100000] [--sampled] [--room FOLDER]
[--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.duplicates import Calibration, Level, candidates, finding_pairs
from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.exact import exact_search
from tests.benchmarks.made_up_index import ADDED_AT_ONCE, WIDTH, vectors_of
from tests.benchmarks.record import write_result
from tests.model_files import make_model_file

PLANTED_SHARE = 0.01
COPY_SCORES = (0.9, 0.99)
NUM_SAMPLED = 500
CALIBRATION = "calibration.json"


def make_index(path: Path, count: int) -> None:
    """Make an index with planted near-copies, and note their ids and which scores mean a copy."""
    vectors = vectors_of(count, split=0)
    rng = np.random.default_rng(0)
    num_planted = int(PLANTED_SHARE * count)
    ids = rng.permutation(count)[: 2 * num_planted]
    sources, copies = ids[:num_planted], ids[num_planted:]
    noise = rng.standard_normal((num_planted, WIDTH)).astype(np.float32)
    noise -= np.einsum("nd,nd->n", noise, vectors[sources])[:, None] * vectors[sources]
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    cosines = rng.uniform(*COPY_SCORES, (num_planted, 1)).astype(np.float32)
    vectors[copies] = cosines * vectors[sources] + np.sqrt(1 - cosines**2) * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = make_model_file(path.with_suffix(".onnx"), width=WIDTH)
    with Index.create(path, model=model) as index:
        for start in range(0, count, ADDED_AT_ONCE):
            part = vectors[start : start + ADDED_AT_ONCE]
            index.add([f"{start + i}.jpg" for i in range(len(part))], part)
    others = np.setdiff1d(np.arange(count), ids)
    some = rng.choice(others, min(NUM_SAMPLED, len(others)), replace=False)
    nearest = exact_search(vectors[some], vectors, k=2, allowed=np.ones(count, bool))
    level = float(np.quantile([each.scores[-1] for each in nearest], 0.99))
    planted = np.sort(np.stack([sources, copies], axis=1), axis=1)
    facts = {"copy": round(level, 4), "planted": planted.tolist()}
    (path / CALIBRATION).write_text(json.dumps(facts))


def calibration_of(path: Path) -> tuple[Calibration, set[tuple[int, int]]]:
    """Return which scores mean a copy, and the planted pairs."""
    facts = json.loads((path / CALIBRATION).read_text())
    calibration = Calibration(
        candidate=facts["copy"],
        copy=facts["copy"],
        similar=0.5,
        copies_found=1.0,
        num_images=NUM_SAMPLED,
        num_items=0,
        edits_version=0,
        made="",
    )
    return calibration, {(first, second) for first, second in facts["planted"]}


def peak_mb() -> int:
    """Return the most memory that this process has had resident. (That of getrusage includes the
    parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def search(path: Path, method: str) -> None:
    """Find the pairs, and print them with seconds and peak memory; for a process of its own."""
    calibration, _planted = calibration_of(path)
    candidates.WORTH_S = -math.inf  # codes even where exact comparison takes seconds
    steps: list[str] = []
    started = time.perf_counter()
    with (
        Index.open(path) as index,
        finding_pairs(
            index,
            calibration,
            most=Level.SIMILAR,
            exact=method == "exact",
            on_step=steps.append,
            on_progress=lambda *state: print(*state, file=sys.stderr),
        ) as pairs,
    ):
        facts = {
            "seconds": round(time.perf_counter() - started, 1),
            "peak MB": peak_mb(),
            "said": steps,
            "pairs": [(pair.first, pair.second) for pair in pairs],
        }
    print(json.dumps(facts))


def build(path: Path) -> None:
    """Build the codes; for a process of its own."""
    started = time.perf_counter()
    with Index.open(path) as index:
        compact(index)
    print(json.dumps({"build s": round(time.perf_counter() - started, 1)}))


def in_child(*words: str) -> dict[str, object]:
    """Run this file with other arguments, and return what it prints."""
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts: dict[str, object] = json.loads(done.stdout)
    return facts


def compare(path: Path, *, is_sampled: bool) -> list[dict[str, object]]:
    """Return a row for each method."""
    _calibration, planted = calibration_of(path)
    rows: list[dict[str, object]] = []
    found: dict[str, set[tuple[int, int]]] = {}
    for method in ("codes",) if is_sampled else ("exact", "codes"):
        built = in_child("--build", str(path)) if method == "codes" else {}
        facts = in_child("--search", method, str(path))
        pairs = facts.pop("pairs")
        assert isinstance(pairs, list)
        found[method] = {(first, second) for first, second in pairs}
        share = len(planted & found[method]) / max(1, len(planted))
        rows.append(
            {
                "method": method,
                **built,
                **facts,
                "pairs": len(pairs),
                "of planted": round(share, 4),
            }
        )
    if not is_sampled:
        shared = len(found["exact"] & found["codes"])
        rows[-1]["recall"] = round(shared / max(1, len(found["exact"])), 4)
        rows[-1]["beyond exact"] = len(found["codes"] - found["exact"])
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--room", type=Path)
    parser.add_argument("--sampled", action="store_true", help="leave out exact comparison")
    parser.add_argument("--search", nargs=2, metavar=("METHOD", "INDEX"))
    parser.add_argument("--build", type=Path, metavar="INDEX")
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    if options.build:
        build(options.build)
        return
    if options.search:
        search(Path(options.search[1]), options.search[0])
        return
    count = 3000 if options.quick else options.count
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.room or Path(temporary)) / f"duplicates-{count}.index"
        if not (path / CALIBRATION).exists():
            make_index(path, count)
        rows = compare(path, is_sampled=options.sampled)
    for row in rows:
        print(row)
    write_result(f"duplicates_{count}", {"count": count, "rows": rows}, keep=not options.quick)


if __name__ == "__main__":
    main()
