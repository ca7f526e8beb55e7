"""Fixtures of the command tests: a small model file and a few images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images import draw_folder
from tests.model_files import make_model_file


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with 16-dimensional vectors."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose vectors must not meet those of `model`."""
    return make_model_file(tmp_path_factory.mktemp("model") / "other.onnx", seed=1)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, 000.jpg to 005.jpg; not to be changed."""
    return draw_folder(tmp_path_factory.mktemp("images") / "images", 6)
