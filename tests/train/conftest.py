"""Run the tests of training on one thread: models this small are slower on several, and much slower
when the machine is busy.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from featkit_train import run_parts


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_parts, "usable_cpus", lambda: 1)
        yield
    torch.set_num_threads(before)
