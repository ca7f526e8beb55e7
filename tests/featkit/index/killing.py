"""Kill a writer, a builder, a compactor and a reader of one index at random moments.

    python -m tests.featkit.index.killing INDEX SEED ROUNDS

In each round, all four work on the index in processes of their own. One of them is killed at a
random moment, and the others a little later. Then the index must hold every acknowledged change
and no other, and be sound. The writer's log, in a file, has a line before each change and one
after it; the change in between may have been made or not, but not in part.

The processes are forked from one that has imported everything, so that they begin at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.approximate.generation import SETTING
from featkit.index.checking import check
from featkit.index.exact import exact_search
from featkit.index.reclaiming import reclaim
from featkit.lock import AlreadyLocked
from tests.model_files import make_model_file

WIDTH, NUM_FIRST, FEWEST = 16, 150, 60
LONGEST_S, LONGEST_AFTER_S = 0.25, 0.05
K, FEWEST_FOUND = 10, 6

_killer = os.getpid()
Items: TypeAlias = dict[str, tuple[int, int]]  # by key: the id, and the seed of the vector


def vector_of(seed: int) -> np.ndarray:
    """Return a unit vector, (WIDTH,) float32."""
    vector = np.random.default_rng(seed).standard_normal(WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def is_watched() -> bool:
    """Return whether the process that kills this one still lives."""
    return os.getppid() == _killer


def write(path: Path, log: Path, seed: int, items: Items) -> None:
    """Add, replace and remove items until killed, and log each change before and after."""
    rng = random.Random(seed)
    keys = {*items}
    with log.open("ab", buffering=0) as file, Index.open(path, writable=True) as index:
        while is_watched():
            count = rng.randint(1, 12)
            if len(keys) > 3 * NUM_FIRST or (len(keys) > FEWEST and rng.random() < 0.5):
                gone = rng.sample(sorted(keys), min(count, len(keys) - FEWEST // 2))
                note(file, {"remove": gone})
                index.remove(gone)
                keys -= {*gone}
                note(file, {"done": []})
            else:
                seeds = {f"{rng.randrange(600)}.jpg": rng.randrange(10**9) for _ in range(count)}
                note(file, {"add": seeds})
                ids = index.add(seeds, np.stack([vector_of(each) for each in seeds.values()]))
                keys |= {*seeds}
                note(file, {"done": ids})


def note(file: Any, line: dict[str, Any]) -> None:
    file.write(json.dumps(line).encode() + b"\n")


def build(path: Path) -> None:
    """Build codes until killed."""
    while is_watched():
        try:
            with Index.open(path) as index:
                compact(index, allow_low_recall=True)
        except AlreadyLocked:
            time.sleep(0.002)


def reclaim_rows(path: Path) -> None:
    """Reclaim dead rows until killed."""
    with Index.open(path) as index:
        while is_watched():
            try:
                reclaim(index)
            except AlreadyLocked:
                time.sleep(0.002)


def search(path: Path) -> None:
    """Search until killed; each item that is found has the score of its vector."""
    queries = np.stack([vector_of(seed) for seed in range(3)])
    with Index.open(path) as index:
        while is_watched():

            def read(state: Any) -> None:
                for query, hits in zip(queries, state.search(vectors=queries, k=K), strict=True):
                    assert len(hits) == min(K, len(state))
                    for hit in hits:
                        assert abs(float(state.vector(hit.id) @ query) - hit.score) < 1e-5

            index.read(read)


class Round:
    """Processes that work on an index, forked from this one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pids: dict[str, int] = {}

    def start(self, role: str, work: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException:
                self._errors(role).write_text(traceback.format_exc())
            finally:
                os._exit(1)
        self._pids[role] = pid

    def kill(self, role: str) -> None:
        """Kill a process; AssertionError with its traceback if it had failed before."""
        pid = self._pids.pop(role)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        errors = self._errors(role)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, errors.read_text()

    def _errors(self, role: str) -> Path:
        return self.path.with_name(f"{role}.errors")


def states_after(log: Path, items: Items, next_id: int) -> list[Items]:
    """Return the states that a killed writer may leave: one, or two if a change was under way."""
    lines = [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]
    states = [items]
    for change, done in zip(lines[::2], [*lines[1::2], None], strict=False):
        after = dict(states[-1])
        for key in change.get("remove", []):
            after.pop(key, None)
        for i, (key, seed) in enumerate(change.get("add", {}).items()):
            after[key] = next_id + i, seed
        next_id += len(change.get("add", {}))
        if done is None:
            return [states[-1], after]
        assert done["done"] == [after[key][0] for key in change.get("add", {})], (change, done)
        states = [after]
    return states


def verify(path: Path, states: list[Items], queries: np.ndarray) -> tuple[Items, set[str]]:
    """Return the one of the states that the index is in, and the names of its files of vectors and
    codes. AssertionError if it is in none."""
    with Index.open(path, writable=True) as index:
        report = check(index)
        assert report.problems == [], report.problems
        stored = {item.key: item.id for item in index.items(0, 10**6)}
        ids = [{key: item_id for key, (item_id, _) in state.items()} for state in states]
        assert stored in ids, (stored, ids)
        items = states[ids.index(stored)]
        ordered = sorted(items.values())
        vectors = np.stack([vector_of(seed) for _, seed in ordered])
        kept = index.read(lambda state: state.vectors_of(np.array([i for i, _ in ordered])))
        np.testing.assert_array_equal(kept, vectors)
        scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
        best = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :K]
        all_ids = np.array([item_id for item_id, _ in ordered])
        committed = index.read(lambda state: state.vectors)
        rows = committed.rows
        exact = exact_search(queries, rows, k=K, allowed=committed.live)
        np.testing.assert_array_equal([each.ids for each in exact], all_ids[best])
        # By codes, which nominate candidates, a few of the nearest may be missing.
        for hits, row in zip(index.search(vectors=queries, k=K), scores, strict=True):
            positions = np.searchsorted(all_ids, [hit.id for hit in hits])
            np.testing.assert_allclose([hit.score for hit in hits], row[positions], atol=1e-6)
            assert len(np.intersect1d(positions, np.argsort(-row)[:K])) >= FEWEST_FOUND
        generation = index.read(lambda state: state.catalogue.settings().get(SETTING))
    files = [*path.glob("*.f32")]
    assert [file.name for file in files] == [rows.row_map.record.file_name]
    assert files[0].stat().st_size == rows.num_stored * 4 * WIDTH
    return items, {files[0].name, "" if generation is None else str(generation)}


def run(path: Path, *, seed: int, num_rounds: int) -> dict[str, int]:
    """Kill in `num_rounds` rounds. Return how often each role was the first to be killed, and the
    numbers of changes, of files of vectors and codes, and of changes cut off half-way."""
    rng = random.Random(seed)
    items: Items = {f"{i}.jpg": (i, i) for i in range(NUM_FIRST)}
    make_model_file(path.with_name("m.onnx"), width=WIDTH)
    with Index.create(path, model=path.with_name("m.onnx")) as index:
        index.add(items, np.stack([vector_of(i) for i in range(NUM_FIRST)]))
    next_id = NUM_FIRST
    counts: Counter[str] = Counter()
    files: set[str] = set()
    for number in range(num_rounds):
        log = path.with_name("writer.log")
        log.unlink(missing_ok=True)
        log.touch()
        working = Round(path)
        works: dict[str, Callable[[], None]] = {
            "writer": lambda log=log, number=number, items=items: write(  # type: ignore[misc]
                path, log, seed * 10**6 + number, items
            ),
            "builder": lambda: build(path),
            "compactor": lambda: reclaim_rows(path),
            "reader": lambda: search(path),
        }
        for role, work in works.items():
            working.start(role, work)
        victim = rng.choice([*works])
        time.sleep(rng.uniform(0, LONGEST_S))
        working.kill(victim)
        time.sleep(rng.uniform(0, LONGEST_AFTER_S))
        for role in works.keys() - {victim}:
            working.kill(role)
        counts[victim] += 1
        queries = np.stack([vector_of(seed * 10**6 + 3 * number + i) for i in range(3)])
        states = states_after(log, items, next_id)
        items, names = verify(path, states, queries)
        files |= names
        counts["changes"] += log.read_bytes().count(b"done")
        counts["cut off"] += len(states) > 1
        counts["cut off and made"] += len(states) > 1 and items is states[1]
        with Index.open(path) as index:
            next_id = index.read(lambda state: state.vectors.rows.num_rows)
    return {**counts, "files": len(files)}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), seed=int(sys.argv[2]), num_rounds=int(sys.argv[3]))))
