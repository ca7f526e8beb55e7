"""Fixtures of the evaluation tests: a small model file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_files import make_model_file


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose vectors have 16 numbers; not to be changed."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")
