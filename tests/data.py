"""The photographs for tests and benchmarks, which are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ENVIRONMENT = "FEATKIT_TEST_DATA"


def shared_data() -> Path | None:
    """Return the folder with photos/ and cifar10/: $FEATKIT_TEST_DATA, or shared/data next to the
    checkout; None if neither exists."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get(ENVIRONMENT, beside))
    return folder if (folder / "photos").is_dir() else None


needs_shared_data = pytest.mark.skipif(
    shared_data() is None,
    reason=f"no photographs: set {ENVIRONMENT} to a folder with photos/ and cifar10/ in it",
)
