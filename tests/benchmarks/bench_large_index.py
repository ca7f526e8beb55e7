"""Search of a large index: exact, featkit's codes of every kind, and other libraries, in one run.

The vectors are those of shared/data/vectors.py, 384 wide, and queries are new points of the same
world; or, with --vectors, those of all images of shared/data and edited copies, and queries are
other images (real_index.py). Each structure is built in a process of its own, whose peak memory is
measured. Each is tuned to its own smallest efSearch whose recall@10 is at least 0.95, by the lower
end of the 95 % interval, or to the largest that was tried if none is; autofaiss has no such target,
and tunes itself. No speed is compared with an index that misses the target. All answer the same
queries in turn, after as many that nothing changes any more: batches on all CPUs, and single
queries.

Run: python tests/benchmarks/bench_large_index.py [--vectors MODEL] [--count N] [--room FOLDER]
    [--autofaiss FOLDER] [--only METHOD ...] [--quick]
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
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.folders import VECTORS_FILE
from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.approximate.codes import KINDS, Kind
from featkit.index.approximate.generation import SETTING, Generation
from featkit.index.approximate.tuning import Truth, lower_end, recalls
from featkit.index.exact import exact_search
from tests.benchmarks import autofaiss_beside
from tests.benchmarks.autofaiss_beside import AUTOFAISS
from tests.benchmarks.autofaiss_process import peak_mb
from tests.benchmarks.made_up_index import all_vectors, make_index, vectors_of
from tests.benchmarks.other_indexes import (
    FAISS,
    REFINED,
    TARGET,
    USEARCH,
    Ask,
    K,
    Opened,
    build_faiss,
    build_usearch,
    open_faiss,
    open_refined,
    open_usearch,
    rescored,
    timed,
)
from tests.benchmarks.real_index import MODELS, make_real_index
from tests.benchmarks.record import write_result

NUM_QUERIES, NUM_SINGLE, ROUNDS = 1000, 300, 5
FEATKIT = "featkit"
MADE_UP = "made-up"
COUNTS = {MADE_UP: 1_000_000, **dict.fromkeys(MODELS, 200_000)}
QUICK_COUNT, QUICK_QUERIES = 3000, 60


# Builds, each in a process of its own -----------------------------------------------------------


def build_featkit(kind: Kind, index: Path, copy: Path) -> None:
    """Build featkit's codes in a copy of the index."""
    copy_index(index, copy)
    with Index.open(copy) as opened:
        compact(opened, kind=kind, target=TARGET, allow_low_recall=True, build_on="cpu")


def copy_index(index: Path, copy: Path) -> None:
    """Copy an index, except for its vectors, which both share. An earlier copy is replaced."""
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(index, copy, copy_function=_link_vectors)


def _link_vectors(source: str, target: str) -> str:
    if source.endswith(VECTORS_FILE):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    **{f"{FEATKIT} {kind.name}": partial(build_featkit, kind) for kind in KINDS.values()},
    FAISS: build_faiss,
    USEARCH: build_usearch,
}


def build(method: str, index: Path, file: Path) -> dict[str, float]:
    """Build in a child process; return its seconds and its peak memory in MB."""
    words = [sys.executable, __file__, "--build", method, str(index), str(file)]
    started = time.perf_counter()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    return {"build s": round(seconds, 1), "build peak MB": json.loads(done.stdout)}


# Searches -----------------------------------------------------------------------------------------


def open_featkit(copy: Path, stack: ExitStack) -> Opened:
    """Open an index with codes, as it was tuned when they were built."""
    opened = stack.enter_context(Index.open(copy))
    text = opened.read(lambda state: state.catalogue.settings()[SETTING])
    record = Generation.from_json(str(text))
    return Opened(
        timed(lambda queries: opened.read(lambda state: state.nearest(queries, k=K))),
        record.num_bytes + 8 * record.num_items,
        {"effort": record.effort, "candidates": record.num_candidates},
    )


def compare(
    index: Path, queries: np.ndarray, room: Path, methods: Sequence[str], autofaiss: Path | None
) -> list[dict[str, object]]:
    """Build, tune and measure all methods; return a row for each.

    queries: (Q, D) float32. autofaiss: the Python that has it, to compare with it too.
    """
    vectors = all_vectors(index)
    allowed = np.ones(len(vectors), bool)
    truth = Truth(queries, exact_search(queries, vectors, k=K, allowed=allowed))
    rows: dict[str, dict[str, object]] = {}
    asks: dict[str, Ask] = {}
    with ExitStack() as stack:
        for method in [*methods, *([AUTOFAISS] if autofaiss else [])]:
            file = room / f"{index.stem}-{method.lower().replace(' ', '-')}"
            if method == AUTOFAISS:
                assert autofaiss is not None
                built = autofaiss_beside.build(autofaiss, vectors, file)
                ask = stack.enter_context(autofaiss_beside.served(autofaiss, file))
                opened = Opened(ask, file.stat().st_size, {})
            else:
                built = build(method, index, file)
                if method == FAISS:
                    opened = open_faiss(file, truth, vectors)
                    refined = open_refined(file, truth, vectors)
                    asks[REFINED] = refined.ask
                    rows[REFINED] = {
                        "method": REFINED,
                        "bytes": refined.num_bytes,
                        "bytes / raw": round(refined.num_bytes / vectors.nbytes, 3),
                        **refined.facts,
                    }
                elif method == USEARCH:
                    opened = open_usearch(file, truth, vectors)
                else:
                    opened = open_featkit(file, stack)
            asks[method] = opened.ask
            rows[method] = {
                "method": method,
                **built,
                "bytes": opened.num_bytes,
                "bytes / raw": round(opened.num_bytes / vectors.nbytes, 3),
                **opened.facts,
            }
            print(rows[method], file=sys.stderr, flush=True)
        for method, figures in measure(asks, truth, vectors).items():
            rows[method] |= figures
    exact = [
        seconds_of(lambda: exact_search(queries[:100], vectors, k=K, allowed=allowed))
        for _ in range(3)
    ]
    rate = round(len(queries[:100]) / min(exact))
    return [*rows.values(), {"method": "exact, in memory", "queries/s": rate}]


def measure(
    asks: dict[str, Ask], truth: Truth, vectors: np.ndarray
) -> dict[str, dict[str, object]]:
    """Ask all in turn, and return recall and times of each."""
    queries = truth.queries
    for method, ask in asks.items():
        # featkit keeps vectors in memory once it has read as many rows as the index has
        for _ in range(2 + (len(vectors) // (K * len(queries)) if FEATKIT in method else 0)):
            ask(queries)
    times: dict[str, list[float]] = {method: [] for method in asks}
    for _ in range(ROUNDS):
        for method, ask in asks.items():
            times[method].append(ask(queries).seconds)
    figures: dict[str, dict[str, object]] = {}
    for method, ask in asks.items():
        shares = recalls(rescored(ask(queries).nearest, queries, vectors), truth, k=K)
        single = sorted(ask(query[None]).seconds for query in queries[:NUM_SINGLE])
        figures[method] = {
            "recall@10": round(float(shares.mean()), 4),
            "at least": round(lower_end(shares), 4),
            "queries/s": round(len(queries) / statistics.median(times[method])),
            "p50 ms": round(1000 * single[len(single) // 2], 2),
            "p99 ms": round(1000 * single[int(0.99 * (len(single) - 1))], 2),
        }
    for other in (FAISS, REFINED):
        if float(str(figures[other]["at least"])) >= TARGET:
            for method in asks:
                pairs = zip(times[other], times[method], strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                figures[method][f"speed / {other}"] = round(ratio, 2)
    return figures


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(words: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Measure and record; return the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", choices=COUNTS, default=MADE_UP)
    parser.add_argument("--count", type=int, help="1,000,000 made-up or 200,000 real by default")
    parser.add_argument("--room", type=Path, help="keep what is built, to continue a stopped run")
    parser.add_argument(
        "--autofaiss",
        type=Path,
        metavar="FOLDER",
        help="compare with autofaiss too, whose environment is made in this folder if needed",
    )
    parser.add_argument(
        "--only", nargs="+", choices=BUILDERS, help="compare these with FAISS, and no others"
    )
    parser.add_argument("--build", nargs=3, metavar=("METHOD", "INDEX", "FILE"))
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    if options.build:
        method, index, file = options.build
        BUILDERS[method](Path(index), Path(file))
        print(json.dumps(peak_mb()))
        return []
    count = QUICK_COUNT if options.quick else options.count or COUNTS[options.vectors]
    num_queries = QUICK_QUERIES if options.quick else NUM_QUERIES
    methods = [method for method in BUILDERS if method != USEARCH or find_spec("usearch")]
    if options.only:
        methods = [method for method in methods if method in (*options.only, FAISS)]
    autofaiss = options.autofaiss and autofaiss_beside.make_environment(options.autofaiss)
    about: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        room = options.room or Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        if options.vectors == MADE_UP:
            made, queries = make_index(room, count), vectors_of(num_queries, split=1)
        else:
            made, queries, about = make_real_index(
                room, options.vectors, count, num_queries=num_queries
            )
        rows = compare(made, queries, room, methods, autofaiss)
    for row in rows:
        print(row)
    figures = {"count": count, **about, "rows": rows}
    name = f"large_index_{made.stem}{'_some' if options.only else ''}"
    write_result(name, figures, keep=not options.quick)
    return rows


if __name__ == "__main__":
    main()
