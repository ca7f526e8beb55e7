"""An index that keeps changing: 50 rounds in which 2 % are removed and 2 % added.

The vectors are those of shared/data/vectors.py, 384 wide; what is added are new points of the same
world. The index has promised a recall@10 of 0.95 and, after each round, does what `featkit sync`
does at its end. Recall and time are measured after each round, and at the end in turn with a fresh
index of the same vectors.

Run: python tests/benchmarks/bench_churn.py [--count 100000] [--rounds 50] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.index import Index
from featkit.index.approximate.planning import Promise
from featkit.index.approximate.tuning import Truth, lower_end, recalls
from featkit.index.approximate.upkeep import give_promise, keep_promise
from featkit.index.exact import exact_search
from featkit.index.searcher import Neighbors
from tests.benchmarks.made_up_index import WIDTH, vectors_of
from tests.benchmarks.record import alternate, median_ratio, write_result
from tests.model_files import make_model_file

K, NUM_QUERIES, RECALL, SHARE = 10, 1000, 0.95, 0.02
COMPARED = 9  # pairs of batches


def promised(path: Path, model: Path, vectors: np.ndarray) -> Index:
    """Return a new index of these vectors, open for writing, that keeps its promise."""
    index = Index.create(path, model=model, background=False)  # built here, to be timed
    index.add([f"{i}.jpg" for i in range(len(vectors))], vectors)
    give_promise(index, Promise(recall=RECALL))
    keep_promise(index)
    return index


def nearest(index: Index, queries: np.ndarray) -> list[Neighbors]:
    """Search all queries at once."""
    return index.read(lambda state: state.nearest(queries, k=K))


def seconds(index: Index, queries: np.ndarray) -> float:
    """Time that search."""
    started = time.perf_counter()
    nearest(index, queries)
    return time.perf_counter() - started


def shares_of(index: Index, vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the recall@10 of each query against all rows of an index that are live."""
    live = index.read(lambda state: state.vectors.live)
    truth = Truth(queries, exact_search(queries, vectors[: len(live)], k=K, allowed=live))
    return recalls(nearest(index, queries), truth, k=K)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    count, rounds = (3000, 2) if options.quick else (options.count, options.rounds)
    step = int(SHARE * count)
    vectors, queries = vectors_of(count + rounds * step, split=0), vectors_of(NUM_QUERIES, split=1)
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        model = make_model_file(room / "m.onnx", width=WIDTH)
        index = promised(room / "old.index", model, vectors[:count])
        for number in range(1, rounds + 1):
            started = time.perf_counter()
            gone = rng.choice(index.read(lambda state: state.ids()), step, replace=False).tolist()
            index.remove([f"{i}.jpg" for i in gone])
            first = count + (number - 1) * step
            index.add([f"{i}.jpg" for i in range(first, first + step)], vectors[first:][:step])
            written = time.perf_counter()
            was_built = keep_promise(index) is not None
            built = time.perf_counter()
            shares = shares_of(index, vectors, queries)
            for _ in range(2 + count // (K * NUM_QUERIES)):  # until vectors are in memory
                seconds(index, queries)
            rows.append(
                {
                    "round": number,
                    "recall@10": round(float(shares.mean()), 4),
                    "at least": round(lower_end(shares), 4),
                    "queries/s": round(
                        NUM_QUERIES / statistics.median(seconds(index, queries) for _ in range(3))
                    ),
                    "write s": round(written - started, 2),
                    "build s": round(built - written, 1) if was_built else None,
                }
            )
            print(rows[-1], flush=True)
        live = index.read(lambda state: state.ids())
        fresh = promised(room / "fresh.index", model, vectors[live])
        for each in (index, fresh):
            for _ in range(2 + count // (K * NUM_QUERIES)):
                seconds(each, queries)
        pairs = alternate(
            lambda: seconds(fresh, queries), lambda: seconds(index, queries), rounds=COMPARED
        )
        figures = {
            "count": count,
            "removed and added each round": step,
            "least recall@10": min(float(str(row["recall@10"])) for row in rows),
            "speed / fresh": round(median_ratio(*pairs), 2),
            "rounds": rows,
        }
        index.close()
        fresh.close()
    write_result(f"churn_{count}", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
