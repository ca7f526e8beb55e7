"""Fixtures of the index's tests: a small model file and unit vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.index import Index
from tests.model_files import make_model_file

WIDTH = 16


def unit_vectors(count: int, *, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Return (count, width) float32: rows of length 1 in random directions."""
    vectors = np.random.default_rng(seed).standard_normal((count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose vectors have WIDTH dimensions."""
    return make_model_file(tmp_path_factory.mktemp("model") / "test.onnx", width=WIDTH)


@pytest.fixture
def photos(tmp_path: Path, model: Path) -> Path:
    """A closed index of the keys 0.jpg to 99.jpg with the vectors `unit_vectors(100)`."""
    path = tmp_path / "photos.index"
    with Index.create(path, model=model) as index:
        index.add([f"{number}.jpg" for number in range(100)], unit_vectors(100))
    return path
