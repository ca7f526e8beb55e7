"""autofaiss in an environment of its own: build an index, or answer queries of another process.

    N vectors, D width, Q queries, K hits

Nothing of featkit is imported, since autofaiss needs other versions of numpy and pyarrow.

    build FOLDER INDEX MEMORY     build an index of FOLDER/*.npy (N, D) float32 within MEMORY, such
                                  as 384MB, as autofaiss's README does; print JSON about it
    serve INDEX K                 answer: for Q as int64 and (Q, D) float32 on stdin, write the
                                  seconds as float64 and the ids (Q, K) int64
"""

import json
import os
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def build(folder: str, file: str, memory: str) -> None:
    """Build by autofaiss's own choice of the index and of its search."""
    infos = Path(f"{file}.json")
    import_module("autofaiss").build_index(
        embeddings=folder,
        index_path=file,
        index_infos_path=str(infos),
        max_index_memory_usage=memory,
        current_memory_available=available_memory(),
        nb_cores=int(os.environ["OMP_NUM_THREADS"]),
        verbose=40,
    )
    chosen = json.loads(infos.read_text())
    print(
        json.dumps(
            {
                "build peak MB": peak_mb(),
                "index": chosen["index_key"],
                "search": chosen["index_param"],
                "versions": {name: version(name) for name in ("autofaiss", "faiss-cpu", "numpy")},
            }
        )
    )


def available_memory() -> str:
    """Return the memory that the machine has left."""
    text = Path("/proc/meminfo").read_text()
    return f"{int(text.split('MemAvailable:')[1].split()[0]) // 1024}MB"


def peak_mb() -> int:
    """Return the most memory that this process has held, in MB."""
    # Not by getrusage, whose peak includes that of the process which started this one.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


def serve(file: str, num_hits: int) -> None:
    """Answer queries until stdin ends."""
    index: Any = import_module("faiss").read_index(file)
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while header := source.read(8):
        count = int.from_bytes(header, "little")
        queries = np.frombuffer(source.read(4 * count * index.d), np.float32).reshape(count, -1)
        started = time.perf_counter()
        _, ids = index.search(queries, num_hits)
        seconds = time.perf_counter() - started
        out.write(np.float64(seconds).tobytes() + ids.astype(np.int64).tobytes())
        out.flush()


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(*sys.argv[2:5])
    else:
        serve(sys.argv[2], int(sys.argv[3]))
