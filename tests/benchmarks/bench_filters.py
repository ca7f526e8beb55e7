"""Filtered search of a large index: milliseconds and recall at every selectivity and correlation.

The index is that of made_up_index.py, searched by a graph over 4-bit codes. Filters allow rows at
random; rows on the side of the query; or rows on the other side, which a walk through a graph does
not come by. Each is measured by single queries in turn with unfiltered ones, and by its recall@10
against a scan of the allowed rows.

Run: python tests/benchmarks/bench_filters.py [--count 1000000] [--room FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.index import Index
from featkit.index.approximate.tuning import Truth, lower_end, recalls
from featkit.index.exact import exact_search
from featkit.index.searcher import Neighbors
from tests.benchmarks.made_up_index import (
    all_vectors,
    columns,
    direction,
    make_graph_index,
    vectors_of,
)
from tests.benchmarks.record import markdown_table, median_ratio, write_result

K, NUM_QUERIES = 10, 100
SHARES = (1.0, 0.5, 0.1, 0.05, 0.03, 0.01, 0.001, 0.0001)
FEW = (10, 1, 0)  # rows in all


def filters(count: int) -> Iterator[tuple[str, float, str]]:
    """Yield the correlation, the allowed share and the text of each filter."""
    for share in [*SHARES, *[few / count for few in FEW]]:
        yield "none", share, f"anyhow < {share!r}"
        if share < 1:
            yield "the query's side", share, f"along < {share!r}"
            yield "the other side", share, f"along >= {1 - share!r}"


def measure(index: Index, room_vectors: np.ndarray, queries: np.ndarray) -> list[dict[str, object]]:
    """Return a row for each filter. All queries are on the side of small `along`."""
    anyhow, along = columns(room_vectors)

    def search(query: np.ndarray, where: str | None) -> Neighbors:
        return index.read(lambda state: state.nearest(query[None], k=K, where=where))[0]

    def seconds(query: np.ndarray, where: str | None) -> float:
        started = time.perf_counter()
        search(query, where)
        return time.perf_counter() - started

    for query in queries:
        search(query, None)
    rows: list[dict[str, object]] = []
    for correlation, share, where in filters(len(room_vectors)):
        allowed = {"none": anyhow < share, "the query's side": along < share}.get(
            correlation, along >= 1 - share
        )
        truth = Truth(queries, exact_search(queries, room_vectors, k=K, allowed=allowed))
        started = time.perf_counter()
        search(queries[0], where)
        first = time.perf_counter() - started
        found = [search(query, where) for query in queries]
        wanted = min(K, int(np.count_nonzero(allowed)))
        shares = recalls(found, truth, k=K) if wanted else np.ones(len(found))
        plain, filtered = [], []
        for query in queries:
            plain.append(seconds(query, None))
            filtered.append(seconds(query, where))
        rows.append(
            {
                "allowed": f"{share:.4%}",
                "rows": int(np.count_nonzero(allowed)),
                "related to": correlation,
                "recall@10": round(float(shares.mean()), 4),
                "at least": round(lower_end(shares), 4),
                "short": sum(len(each.ids) < wanted for each in found),
                "exact": round(sum(each.is_exact for each in found) / len(found), 2),
                "first ms": round(1000 * first, 1),
                "median ms": round(1000 * statistics.median(filtered), 2),
                "x unfiltered": round(median_ratio(filtered, plain), 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--room", type=Path)
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    count = 3000 if options.quick else options.count
    with tempfile.TemporaryDirectory() as temporary:
        room = options.room or Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        path = make_graph_index(room, count)
        with Index.open(path) as index:
            vectors = all_vectors(path)
            along = np.sort(vectors @ direction())
            queries = vectors_of(20 * NUM_QUERIES, split=1)
            low = np.searchsorted(along, queries @ direction()) < 0.1 * count
            rows = measure(index, vectors, queries[low][:NUM_QUERIES])
    print(markdown_table(rows))
    write_result(f"filters_{count}", {"count": count, "rows": rows}, keep=not options.quick)


if __name__ == "__main__":
    main()
