"""Settings of all tests: ONNX Runtime runs the models, so that no engine is measured and vectors are
the same everywhere.

Tests of `auto` itself remove the two variables and use their own cache folder.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

BY_DEFAULT = {"FEATKIT_BACKEND": "onnxruntime", "FEATKIT_PRECISION": "fp32"}


@pytest.fixture(autouse=True, scope="session")
def _onnxruntime_by_default() -> Iterator[None]:
    """Set the environment, which new processes inherit, before any fixture opens a model."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in BY_DEFAULT.items():
            patch.setenv(name, value)
        yield
