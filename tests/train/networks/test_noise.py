"""Promises of what a student's blocks leave out: how much, which, and that a seed decides it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featkit_train.networks.noise import (
    ALL_ROWS,
    NO_NOISE,
    KeptRows,
    Noise,
    NoiseConfig,
    draw_noise,
    drop_rates,
)


def draw(config: NoiseConfig, *, depth: int = 4, num_crops: int = 10, seed: int = 0) -> Noise:
    """Draw noise from a seed."""
    rngs = [np.random.default_rng([seed, number]) for number in range(2)]
    return draw_noise(config, rngs[0], depth=depth, num_crops=num_crops, rotary_rng=rngs[1])


def branches(noise: Noise) -> list[Tensor]:
    """Return the rows of each branch, block by block, that does not keep all rows."""
    return [rows for block in noise.kept for rows in block if rows is not None]


def test_drop_rates_rise_with_depth_or_are_equal() -> None:
    linear = drop_rates(NoiseConfig(drop_path=0.3), 4)
    assert linear == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_rates(NoiseConfig(drop_path=0.3, drop_path_rule="uniform"), 4) == [0.3] * 4
    assert drop_rates(NoiseConfig(drop_path=0.3), 1) == [0.0]


@settings(max_examples=50, deadline=None)
@given(
    drop_path=st.floats(0.01, 0.99),
    rule=st.sampled_from(["linear", "uniform"]),
    depth=st.integers(1, 5),
    num_crops=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_each_branch_keeps_its_share_of_the_crops(
    drop_path: float, rule: str, depth: int, num_crops: int, seed: int
) -> None:
    config = NoiseConfig(drop_path=drop_path, drop_path_rule=rule)  # type: ignore[arg-type]
    noise = draw(config, depth=depth, num_crops=num_crops, seed=seed)
    assert len(noise.kept) == depth
    for number, rate in enumerate(drop_rates(config, depth)):
        for rows in noise.of_block(number):
            expected = max(1, round(num_crops * (1 - rate)))
            if rows is None:
                assert expected == num_crops
                continue
            assert rows.dtype == torch.int64
            assert len(rows) == len(set(rows.tolist())) == expected < num_crops
            assert set(rows.tolist()) <= set(range(num_crops))
            assert rows.tolist() == sorted(rows.tolist())


def test_draws_depend_on_the_seed() -> None:
    config = NoiseConfig(drop_path=0.5, drop_path_rule="uniform", rotary_rescale=2.0)
    first, again, other = (draw(config, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(branches(first), branches(again), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(branches(first), branches(other), strict=True))
    assert first.rotary_scale == again.rotary_scale != other.rotary_scale


def test_blocks_and_branches_skip_different_crops() -> None:
    kept = branches(draw(NoiseConfig(drop_path=0.5, drop_path_rule="uniform"), num_crops=40))
    assert len({tuple(rows.tolist()) for rows in kept}) == 8


def test_all_crops_are_skipped_equally_often() -> None:
    config = NoiseConfig(drop_path=0.3, drop_path_rule="uniform")
    counts = np.zeros(10)
    for seed in range(300):
        for rows in branches(draw(config, seed=seed)):
            counts[rows.numpy()] += 1 / 2400
    assert counts == pytest.approx(np.full(10, 0.7), abs=0.05)


def test_rotary_scale_is_log_uniform_within_its_bounds() -> None:
    logs = [
        math.log(draw(NoiseConfig(rotary_rescale=2.0), seed=seed).rotary_scale) / math.log(2)
        for seed in range(400)
    ]
    assert -1 <= min(logs) < -0.95
    assert 0.95 < max(logs) <= 1
    assert np.histogram(logs, bins=4, range=(-1, 1))[0] == pytest.approx([100] * 4, abs=35)


def test_rotary_scale_comes_from_the_shared_stream() -> None:
    config = NoiseConfig(drop_path=0.5, drop_path_rule="uniform", rotary_rescale=2.0)
    scales, kept = set(), set()
    for own in range(3):
        noise = draw_noise(
            config,
            np.random.default_rng(own),
            depth=2,
            num_crops=20,
            rotary_rng=np.random.default_rng(7),
        )
        scales.add(noise.rotary_scale)
        kept.add(tuple(tuple(rows.tolist()) for rows in branches(noise)))
    assert len(scales) == 1
    assert len(kept) == 3


def test_no_noise_keeps_all_rows_and_coordinates() -> None:
    assert draw(NoiseConfig()) == NO_NOISE
    assert NO_NOISE.of_block(3) == ALL_ROWS == KeptRows(None, None)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"drop_path": 1.0}, "a drop_path of 1.0 is not from 0 to below 1"),
        ({"drop_path": -0.1}, "a drop_path of -0.1 is not"),
        ({"rotary_rescale": 0.5}, "a rotary_rescale of 0.5 is below 1"),
    ],
)
def test_impossible_rates_and_factors_are_refused(
    settings: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        NoiseConfig(**settings)  # type: ignore[arg-type]
