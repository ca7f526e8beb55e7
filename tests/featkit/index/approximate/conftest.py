"""An index of a few thousand vectors in clumps, with codes of them, and a GPU's stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.index import Index
from featkit.index.approximate import building
from featkit.index.approximate.on_gpu import Gpu
from featkit.index.bounded_faiss import faiss
from tests.model_files import make_model_file

NUM_ITEMS, WIDTH = 3000, 32


def clumped(count: int, *, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Return (count, width) float32 of unit length, in 40 clumps that do not depend on the seed."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((40, width))
    vectors = centers[rng.integers(0, 40, count)] + 0.4 * rng.standard_normal((count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx", width=WIDTH)


@pytest.fixture
def index(tmp_path: Path, model: Path) -> Path:
    """An index whose items 0.jpg to 2999.jpg have a label and their number, with codes of them."""
    path = tmp_path / "photos.index"
    with Index.create(path, model=model) as made:
        made.add(
            [f"{i}.jpg" for i in range(NUM_ITEMS)],
            clumped(NUM_ITEMS),
            metadata=[{"number": i, "label": f"l{i % 3}"} for i in range(NUM_ITEMS)],
        )
        building.compact(made)
    return path


class StandIn(Gpu):
    """Exact neighbors, and copies of FAISS's indexes on the CPU."""

    def __init__(self) -> None:
        self.num_copies = 0

    def links(self, vectors: np.ndarray, num_links: int) -> np.ndarray:
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        return np.argsort(-scores, axis=1, kind="stable")[:, :num_links]

    def copy_of(self, flat: Any) -> Any:
        self.num_copies += 1
        return faiss.clone_index(flat)


def use(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this one build unless the CPU is asked for."""

    def choose(build_on: str, **_: object) -> Gpu | None:
        return None if build_on == "cpu" else gpu

    monkeypatch.setattr(building, "choose_gpu", choose)
