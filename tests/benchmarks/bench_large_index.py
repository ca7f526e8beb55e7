"""Search of a large index: exact, featkit's codes of every kind, and other libraries, in one run.

The vectors are those of shared/data/vectors.py, 384 wide; queries are new points of the same world.
Each structure is built in a process of its own, whose peak memory is measured. Each is tuned to its
own smallest efSearch whose recall@10 is at least 0.95, by the lower end of the 95 % interval. Then
all answer the same queries in turn, after as many that nothing changes any more: batches on all
CPUs, and single queries.

Run: python tests/benchmarks/bench_large_index.py [--count 1000000] [--room FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.folders import VECTORS_FILE
from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.approximate.codes import KINDS, Kind
from featkit.index.approximate.generation import SETTING, Generation
from featkit.index.approximate.tuning import Truth, lower_end, recalls
from featkit.index.bounded_faiss import faiss
from featkit.index.exact import exact_search
from featkit.index.searcher import Neighbors
from tests.benchmarks.made_up_index import WIDTH, all_vectors, make_index, vectors_of
from tests.benchmarks.record import write_result

K, TARGET = 10, 0.95
NUM_QUERIES, NUM_SINGLE, ROUNDS = 1000, 300, 5
EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
FEATKIT, FAISS, USEARCH = "featkit", "FAISS HNSW32,SQ8", "usearch i8"

Search = Callable[[np.ndarray], list[Neighbors]]


# Builds, each in a process of its own -----------------------------------------------------------


def build_featkit(kind: Kind, index: Path, copy: Path) -> None:
    """Build featkit's codes in a copy of the index, which shares its vectors."""
    shutil.copytree(index, copy, copy_function=_link_vectors)
    with Index.open(copy) as opened:
        compact(opened, kind=kind, target=TARGET, allow_low_recall=True)


def _link_vectors(source: str, target: str) -> str:
    if source.endswith(VECTORS_FILE):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


def build_faiss(index: Path, file: Path) -> None:
    """Build the graph that others build: twice the links, codes of 8 bits."""
    vectors = all_vectors(index)
    built: Any = faiss.index_factory(WIDTH, "HNSW32,SQ8", faiss.METRIC_INNER_PRODUCT)
    built.train(vectors[:: max(1, len(vectors) // 50_000)])
    built.add(vectors)
    faiss.write_index(built, str(file))


def build_usearch(index: Path, file: Path) -> None:
    """Build usearch's graph over codes of 8 bits."""
    from usearch.index import Index as Usearch

    vectors = all_vectors(index)
    built = Usearch(ndim=WIDTH, metric="cos", dtype="i8", connectivity=16, expansion_add=128)
    built.add(np.arange(len(vectors)), vectors)
    built.save(str(file))


BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    **{f"{FEATKIT} {kind.name}": partial(build_featkit, kind) for kind in KINDS.values()},
    FAISS: build_faiss,
    USEARCH: build_usearch,
}


def build(method: str, index: Path, file: Path) -> dict[str, float]:
    """Build in a child process; return its seconds and its peak memory in MB."""
    words = [sys.executable, __file__, "--build", method, str(index), str(file)]
    started = time.perf_counter()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    return {"build s": round(seconds, 1), "build peak MB": json.loads(done.stdout)}


# Searches -----------------------------------------------------------------------------------------


def search_by_faiss(built: Any, ef: int) -> Search:
    """Return a search of a FAISS graph."""
    parameters = faiss.SearchParametersHNSW(efSearch=ef)  # type: ignore[attr-defined]

    def search(queries: np.ndarray) -> list[Neighbors]:
        scores, ids = built.search(queries, K, params=parameters)
        return [Neighbors(*row) for row in zip(ids, scores, strict=True)]

    return search


def search_by_usearch(built: Any, ef: int) -> Search:
    """Return a search of usearch's graph."""

    def search(queries: np.ndarray) -> list[Neighbors]:
        built.expansion_search = ef
        found = built.search(queries, K)
        keys = np.atleast_2d(found.keys)
        distances = np.atleast_2d(found.distances)
        return [
            Neighbors(ids.astype(np.int64), 1 - each)
            for ids, each in zip(keys, distances, strict=True)
        ]

    return search


def tuned(
    make: Callable[[Any, int], Search], built: Any, truth: Truth, vectors: np.ndarray
) -> tuple[int, Search]:
    """Return the smallest efSearch that reaches the target, and its search."""
    for ef in EFS:
        search = make(built, ef)
        if (
            lower_end(recalls(rescored(search(truth.queries), truth, vectors), truth, k=K))
            >= TARGET
        ):
            break
    return ef, search


def rescored(found: Sequence[Neighbors], truth: Truth, vectors: np.ndarray) -> list[Neighbors]:
    """Return the same ids with exact scores, since codes give approximate ones."""
    exact = []
    for each, query in zip(found, truth.queries, strict=True):
        ids = each.ids[each.ids >= 0]
        # as exact search computes them: rounding must not count as a miss
        scores = np.einsum("nd,d->n", vectors[ids].astype(np.float64), query.astype(np.float64))
        exact.append(Neighbors(ids, scores.astype(np.float32)))
    return exact


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(index: Path, room: Path, methods: Sequence[str]) -> list[dict[str, object]]:
    """Build, tune and measure all methods; return a row for each."""
    vectors = all_vectors(index)
    queries = vectors_of(NUM_QUERIES, split=1)
    truth = Truth(queries, exact_search(queries, vectors, k=K, allowed=np.ones(len(vectors), bool)))
    rows: dict[str, dict[str, object]] = {}
    searches: dict[str, Search] = {}
    raw = vectors.nbytes
    for method in methods:
        file = room / f"{len(vectors)}-{method.lower().replace(' ', '-')}"
        facts: dict[str, object] = {"method": method, **build(method, index, file)}
        if method.startswith(FEATKIT):
            opened = Index.open(file)
            record = Generation.from_json(
                str(opened.read(lambda state: state.catalogue.settings()[SETTING]))
            )
            facts |= {
                "bytes": record.num_bytes + 8 * record.num_items,
                "effort": record.effort,
                "candidates": record.num_candidates,
            }
            searches[method] = lambda each, opened=opened: opened.read(  # type: ignore[misc]
                lambda state: state.nearest(each, k=K)
            )
        elif method == FAISS:
            ef, searches[method] = tuned(
                search_by_faiss, faiss.read_index(str(file)), truth, vectors
            )
            facts |= {"bytes": file.stat().st_size, "effort": ef}
        else:
            from usearch.index import Index as Usearch

            built = Usearch(ndim=WIDTH, metric="cos", dtype="i8")
            built.load(str(file))
            ef, searches[method] = tuned(search_by_usearch, built, truth, vectors)
            facts |= {"bytes": file.stat().st_size, "effort": ef}
        rows[method] = facts
    for method, search in searches.items():
        # featkit keeps vectors in memory once it has read as many rows as the index has
        for _ in range(2 + (len(vectors) // (K * NUM_QUERIES) if FEATKIT in method else 0)):
            search(queries)
    times: dict[str, list[float]] = {method: [] for method in searches}
    for _ in range(ROUNDS):
        for method, search in searches.items():
            times[method].append(seconds_of(lambda search=search: search(queries)))  # type: ignore[misc]
    for method, search in searches.items():
        shares = recalls(rescored(search(queries), truth, vectors), truth, k=K)
        single = sorted(
            seconds_of(lambda search=search, query=query: search(query[None]))  # type: ignore[misc]
            for query in queries[:NUM_SINGLE]
        )
        rows[method] |= {
            "bytes / raw": round(float(str(rows[method]["bytes"])) / raw, 3),
            "recall@10": round(float(shares.mean()), 4),
            "at least": round(lower_end(shares), 4),
            "queries/s": round(NUM_QUERIES / statistics.median(times[method])),
            "p50 ms": round(1000 * single[len(single) // 2], 2),
            "p99 ms": round(1000 * single[int(0.99 * (len(single) - 1))], 2),
        }
    if FAISS in times:
        for method in times:
            pairs = zip(times[FAISS], times[method], strict=True)
            rows[method]["speed / FAISS"] = round(statistics.median(a / b for a, b in pairs), 2)
    exact = [
        seconds_of(
            lambda: exact_search(queries[:100], vectors, k=K, allowed=np.ones(len(vectors), bool))
        )
        for _ in range(3)
    ]
    rows["exact"] = {"method": "exact, in memory", "queries/s": round(100 / min(exact))}
    return list(rows.values())


def main(words: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--room", type=Path)
    parser.add_argument("--build", nargs=3, metavar=("METHOD", "INDEX", "FILE"))
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    if options.build:
        method, index, file = options.build
        BUILDERS[method](Path(index), Path(file))
        # Not by getrusage, whose peak includes that of the process which started this one.
        status = Path("/proc/self/status").read_text()
        print(json.dumps(int(status.split("VmHWM:")[1].split()[0]) // 1024))
        return
    count = 3000 if options.quick else options.count
    methods = [method for method in BUILDERS if method != USEARCH or find_spec("usearch")]
    with tempfile.TemporaryDirectory() as temporary:
        room = options.room or Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        rows = compare(make_index(room, count), room, methods)
    for row in rows:
        print(row)
    write_result(f"large_index_{count}", {"count": count, "rows": rows}, keep=not options.quick)


if __name__ == "__main__":
    main()
