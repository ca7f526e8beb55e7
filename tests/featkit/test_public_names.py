"""What `import featkit` offers."""

from __future__ import annotations

import featkit
from featkit.serve.client import Client
from tests.processes import run_python


def test_the_public_names_are_there_and_loaded_at_first_use() -> None:
    assert featkit.Client is Client
    assert all(hasattr(featkit, name) for name in featkit.__all__)
    heavy = "import sys, featkit; print(sorted({'faiss', 'httpx', 'onnxruntime', 'numpy'} & sys.modules.keys()))"
    assert run_python(heavy) == (0, "[]\n", "")
