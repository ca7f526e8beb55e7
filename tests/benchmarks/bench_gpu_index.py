"""Build the codes of an index on a GPU and on the CPU, in turn: time, recall and speed of search.

The vectors are those of shared/data/vectors.py, 384 wide, and queries are new points of the same
world. Both are tuned to a recall@10 of 0.95, searched on the CPU, by batches on all processors.
Run: python tests/benchmarks/bench_gpu_index.py [--count N] [--room FOLDER]
(--cpu-check tries the code on a CPU, in seconds)
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.backends.choosing import cpu_facts
from featkit.doctor import NVIDIA_GPUS
from featkit.errors import EnvironmentProblem
from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.approximate.codes import FINE_GRAPH, LISTS, Kind
from featkit.index.approximate.generation import Generation
from featkit.index.approximate.on_gpu import BuildOn, check_gpu
from featkit.index.approximate.tuning import Truth, lower_end, recalls
from featkit.index.exact import exact_search
from tests.benchmarks.bench_large_index import copy_index
from tests.benchmarks.made_up_index import all_vectors, make_index, vectors_of
from tests.benchmarks.other_indexes import TARGET, K, rescored
from tests.benchmarks.record import markdown_table, write_result

KINDS = (FINE_GRAPH, LISTS)
ROUNDS, NUM_SEARCHES = 3, 5
COUNT, NUM_QUERIES = 1_000_000, 1000
TRIED_COUNT, TRIED_QUERIES = 3000, 60


def build(index: Path, kind: Kind, build_on: BuildOn) -> tuple[Generation, float]:
    """Build codes; return their record and the seconds of the build without the measurement."""
    begun: dict[str, float] = {}

    def on_step(step: str) -> None:
        begun.setdefault(step.partition(" ")[0], time.perf_counter())

    with Index.open(index) as opened:
        record = compact(
            opened,
            kind=kind,
            target=TARGET,
            allow_low_recall=True,
            build_on=build_on,
            on_step=on_step,
        )
    return record, begun["measuring"] - begun["building"]


def search(index: Path, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the recall of each query (Q,) and the median of queries/s, vectors in memory."""
    vectors = all_vectors(index)
    allowed = np.ones(len(vectors), bool)
    truth = Truth(queries, exact_search(queries, vectors, k=K, allowed=allowed))
    rates = []
    with Index.open(index) as opened:
        for _ in range(2 + len(vectors) // (K * len(queries)) + NUM_SEARCHES):
            started = time.perf_counter()
            nearest = opened.read(lambda state: state.nearest(queries, k=K))
            rates.append(len(queries) / (time.perf_counter() - started))
    shares = recalls(rescored(nearest, queries, vectors), truth, k=K)
    return shares, statistics.median(rates[-NUM_SEARCHES:])


def compare(
    index: Path, queries: np.ndarray, room: Path, devices: Sequence[BuildOn]
) -> list[dict[str, Any]]:
    """Build on all devices in turn, search what the last round built, and return a row for each."""
    seconds: dict[tuple[str, BuildOn], list[float]] = {}
    rows: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        for kind in KINDS:
            for device in devices:
                copy = room / f"{kind.name}-{device}.index"
                copy_index(index, copy)
                record, taken = build(copy, kind, device)
                seconds.setdefault((kind.name, device), []).append(round(taken, 1))
                print(f"{kind.name} on {device}: {taken:.1f} s", file=sys.stderr, flush=True)
                if number < ROUNDS - 1:
                    continue
                shares, rate = search(copy, queries)
                times = seconds[kind.name, device]
                rows.append(
                    {
                        "codes": kind.name,
                        "built on": record.built_on,
                        "build s": statistics.median(times),
                        "times as fast as the CPU": round(
                            statistics.median(
                                ours / other
                                for ours, other in zip(
                                    seconds[kind.name, devices[0]], times, strict=True
                                )
                            ),
                            2,
                        ),
                        "recall@10": round(float(shares.mean()), 4),
                        "at least": round(lower_end(shares), 4),
                        "effort": record.effort,
                        "queries/s": round(rate),
                        "rounds": times,
                    }
                )
    return rows


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure and record, under the chip's name; return the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--room", type=Path, help="keep what is built")
    parser.add_argument("--cpu-check", action="store_true", help="try the code; writes nothing")
    options = parser.parse_args(words)
    count = TRIED_COUNT if options.cpu_check else options.count
    devices: list[BuildOn] = ["cpu"]
    chip = "CPU"
    if not options.cpu_check:
        try:
            check_gpu(links=True)
        except EnvironmentProblem as problem:
            raise SystemExit(f"{problem} --cpu-check tries the code without one.") from None
        devices.append("gpu")
        facts = cpu_facts(next(NVIDIA_GPUS.glob("*/information")))  # the same format
        chip = facts["Model"]
    with tempfile.TemporaryDirectory() as temporary:
        room = options.room or Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        queries = vectors_of(TRIED_QUERIES if options.cpu_check else NUM_QUERIES, split=1)
        rows = compare(make_index(room, count), queries, room, devices)
    print(markdown_table(rows))
    slug = re.sub("[^a-z0-9]+", "_", chip.lower()).strip("_")
    figures = {"chip": chip, "count": count, "rows": rows}
    write_result(f"gpu_index_{slug}", figures, keep=not options.cpu_check)
    return rows


if __name__ == "__main__":
    main()
