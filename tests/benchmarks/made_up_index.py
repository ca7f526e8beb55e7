"""An index of made-up vectors of any size, with columns to filter by.

    N vectors, D width

The vectors are those of shared/data/vectors.py. Each item has two numbers from 0 to 1:

- anyhow: at random
- along: its rank along a fixed direction, so that a filter on it allows one side of the world
"""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np

from featkit.folders import VECTORS_FILE
from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.approximate.generation import SETTING
from tests.benchmarks.photos import data_folder
from tests.model_files import make_model_file

WIDTH = 384
ADDED_AT_ONCE = 20_000


def vectors_of(count: int, *, split: int) -> np.ndarray:
    """Return made-up embeddings (count, WIDTH) float32."""
    spec = spec_from_file_location("vectors", data_folder() / "vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made: np.ndarray = module.embeddings(count, WIDTH, split=split)
    return made


def direction() -> np.ndarray:
    """Return the direction of `along`, (D,) float32."""
    return np.random.default_rng(3).standard_normal(WIDTH).astype(np.float32)


def columns(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `anyhow` and `along` of vectors (N, D), each (N,) float64."""
    count = len(vectors)
    rank = np.argsort(np.argsort(vectors @ direction(), kind="stable"))
    return np.random.default_rng(4).random(count), (rank + 0.5) / count


def make_index(room: Path, count: int) -> Path:
    """Make the index with all vectors, unless it is there."""
    path = room / f"{count}.index"
    if path.exists():
        return path
    model = make_model_file(room / "m.onnx", width=WIDTH)
    vectors = vectors_of(count, split=0)
    anyhow, along = columns(vectors)
    begun = room / f"{count}.begun"
    with Index.create(begun, model=model) as index:
        for start in range(0, count, ADDED_AT_ONCE):
            part = slice(start, start + ADDED_AT_ONCE)
            index.add(
                [f"{start + i}.jpg" for i in range(len(vectors[part]))],
                vectors[part],
                metadata=[
                    {"anyhow": each, "along": other}
                    for each, other in zip(anyhow[part].tolist(), along[part].tolist(), strict=True)
                ],
            )
    begun.rename(path)
    return path


def make_graph_index(room: Path, count: int) -> Path:
    """Make the index searched by a graph over 4-bit codes, unless it is there."""
    path = make_index(room, count)
    with Index.open(path) as index:
        if index.read(lambda state: state.catalogue.settings().get(SETTING)) is None:
            compact(index, allow_low_recall=True)
    return path


def all_vectors(index: Path) -> np.ndarray:
    """Return the vectors of an index from which nothing was removed, (N, D) float32."""
    with Index.open(index) as opened:
        width = opened.width
    return np.fromfile(index / VECTORS_FILE, np.float32).reshape(-1, width)
