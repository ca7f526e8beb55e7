"""Search of a large index by a process that may use little memory, and by one without a limit.

The index is that of made_up_index.py, searched by a graph over 4-bit codes. A control group of
Linux limits one process to what Python and its packages take plus a share of the vectors' bytes,
page cache included. Both answer the same batches in turn, after as many that nothing changes.

Run as root: python tests/benchmarks/bench_memory_limit.py [--count 1000000] [--share 0.3]
[--room FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.index import Index
from featkit.resources import own_memory
from tests.benchmarks.made_up_index import WIDTH, make_graph_index, vectors_of
from tests.benchmarks.record import alternate, median_ratio, write_result

K, NUM_QUERIES, WARM_UPS, ROUNDS = 10, 1000, 5, 7
CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def limited_group(num_bytes: int) -> Iterator[Path]:
    """Make a control group with a limit on memory; remove it at the end."""
    is_second = (CGROUPS / "cgroup.controllers").exists()
    group = (CGROUPS if is_second else CGROUPS / "memory") / f"featkit-bench-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / ("memory.max" if is_second else "memory.limit_in_bytes")
        limit.write_text(str(num_bytes))
        yield group
    finally:
        group.rmdir()


def answer(index: Path, queries: Path) -> None:
    """For each line of stdin, search all queries and print the seconds and the resident bytes; the
    first line of output has those before the index is opened."""
    batch = np.load(queries)
    print(0.0, own_memory()[1], flush=True)
    sys.stdin.readline()
    with Index.open(index) as opened:
        for _ in sys.stdin:
            started = time.perf_counter()
            opened.read(lambda state: state.nearest(batch, k=K))
            print(time.perf_counter() - started, own_memory()[1], flush=True)


class Answering:
    """A process that answers batches."""

    def __init__(self, index: Path, queries: Path) -> None:
        words = [sys.executable, __file__, "--answer", str(index), str(queries)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()
        self.base_bytes = self.resident_bytes

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended with {self._process.wait()}")
        seconds, resident = line.split()
        self.resident_bytes = int(resident)
        return float(seconds)

    def _write(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def open(self, group: Path | None = None) -> None:
        """Open the index, within a control group if one is given."""
        if group is not None:
            (group / "cgroup.procs").write_text(str(self._process.pid))
        self._write()

    def seconds(self) -> float:
        """Answer all queries."""
        self._write()
        return self._read()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(index: Path, queries: Path, *, count: int, share: float) -> dict[str, object]:
    """Compare a limited process with another."""
    free, limited = Answering(index, queries), Answering(index, queries)
    raw = 4 * count * WIDTH
    with limited_group(limited.base_bytes + int(share * raw)) as group:
        free.open()
        limited.open(group)
        for _ in range(WARM_UPS + count // (K * NUM_QUERIES)):  # until vectors are in memory
            free.seconds()
        for _ in range(WARM_UPS):
            limited.seconds()
        without, within = alternate(free.seconds, limited.seconds, rounds=ROUNDS)
        figures: dict[str, object] = {
            "count": count,
            "limit MB": round((limited.base_bytes + share * raw) / 1e6),
            "of which Python and packages MB": round(limited.base_bytes / 1e6),
            "share of the vectors' bytes": share,
            "resident MB, without a limit": round(free.resident_bytes / 1e6),
            "resident MB, within": round(limited.resident_bytes / 1e6),
            "queries/s, without a limit": round(NUM_QUERIES / statistics.median(without)),
            "queries/s, within": round(NUM_QUERIES / statistics.median(within)),
            "speed within / without": round(median_ratio(without, within), 2),
        }
        limited.close()
    free.close()
    return figures


def main(words: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--room", type=Path)
    parser.add_argument("--answer", nargs=2, type=Path, metavar=("INDEX", "QUERIES"))
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    if options.answer:
        answer(*options.answer)
        return
    # A small index is smaller than what opening it takes for a moment.
    count, share = (3000, 50.0) if options.quick else (options.count, options.share)
    with tempfile.TemporaryDirectory() as temporary:
        room = options.room or Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        path = make_graph_index(room, count)
        queries = Path(temporary) / "queries.npy"
        np.save(queries, vectors_of(NUM_QUERIES, split=1))
        figures = measure(path, queries, count=count, share=share)
    write_result(f"memory_limit_{count}", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
