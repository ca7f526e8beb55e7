"""What holds for all tests: ONNX Runtime runs the models, so that nothing is measured and vectors
are the same everywhere.

Tests of `auto` itself remove the two variables and name a cache folder of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

BY_DEFAULT = {"FEATKIT_BACKEND": "onnxruntime", "FEATKIT_PRECISION": "fp32"}


@pytest.fixture(autouse=True, scope="session")
def _onnxruntime_by_default() -> Iterator[None]:
    """In the environment, which commands in processes of their own inherit; before any fixture
    opens a model."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in BY_DEFAULT.items():
            patch.setenv(name, value)
        yield
