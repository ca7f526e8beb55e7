"""Promises of random streams."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit_train.random_streams import rng_for


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    purpose=st.integers(0, 6),
    keys=st.lists(st.integers(0, 2**31), max_size=3),
)
def test_stream_is_keyed_by_seed_purpose_and_keys(seed: int, purpose: int, keys: list[int]) -> None:
    first, again = (rng_for(seed, purpose, *keys).integers(2**63, size=4) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, rng_for(seed, purpose + 1, *keys).integers(2**63, size=4))
    assert not np.array_equal(first, rng_for(seed + 1, purpose, *keys).integers(2**63, size=4))
    assert not np.array_equal(first, rng_for(seed, purpose, *keys, 5).integers(2**63, size=4))
