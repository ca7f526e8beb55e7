"""Promises of positions: tables stretched as each family's released code does, rotary angles as
DINOv3's paper says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from featkit_train.networks.positions import (
    ResampleRule,
    resample_table,
    rotary_periods,
    rotary_table,
    rotate,
)

# (h, w) asked of a table of 6 × 6
GRIDS = [(9, 11), (3, 4), (12, 2), (1, 1), (6, 8), (5, 6), (12, 12), (7, 5)]
RULES = {
    "dino, ibot, dinov2": ResampleRule(offset=0.1),
    "dinov2 with registers": ResampleRule(antialias=True),
    "transformers": ResampleRule(),
}


def random_table(height: int = 6, width: int = 6, channels: int = 5) -> Tensor:
    """(G, G', D)."""
    return torch.randn(
        height, width, channels, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()


def interpolated(table: Tensor, height: int, width: int, *, rule: ResampleRule) -> Tensor:
    """By torch, with the scale factors that the released code passes."""
    grid = table.permute(2, 0, 1)[None]
    scales = ((height + rule.offset) / table.shape[0], (width + rule.offset) / table.shape[1])
    if rule.offset:
        stretched = F.interpolate(
            grid, scale_factor=scales, mode="bicubic", antialias=rule.antialias
        )
    else:
        stretched = F.interpolate(
            grid, size=(height, width), mode="bicubic", antialias=rule.antialias
        )
    assert stretched.shape[2:] == (height, width)
    return stretched[0].permute(1, 2, 0)


@pytest.mark.parametrize("family", RULES)
@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_resampling_equals_torchs_with_the_familys_scale(
    height: int, width: int, family: str
) -> None:
    rule = RULES[family]
    ours, theirs = random_table(), random_table()
    result, expected = (
        resample_table(ours, height, width, rule=rule),
        interpolated(theirs, height, width, rule=rule),
    )
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((result * weights).sum(), ours)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), theirs)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_table_need_not_be_square(antialias: bool) -> None:
    rule, table = ResampleRule(antialias=antialias), random_table(4, 7)
    torch.testing.assert_close(
        resample_table(table, 9, 5, rule=rule),
        interpolated(table, 9, 5, rule=rule),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_table_at_its_own_size_is_itself(rule: ResampleRule) -> None:
    # The released code returns it as it is, before any offset; and adds the offset to both sides
    # when one is foreign.
    table = random_table()
    torch.testing.assert_close(resample_table(table, 6, 6, rule=rule), table, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_constant_table_stays_constant(rule: ResampleRule) -> None:
    for height, width in GRIDS:
        stretched = resample_table(torch.full((6, 6, 2), 3.0), height, width, rule=rule)
        torch.testing.assert_close(stretched, torch.full((height, width, 2), 3.0))


def loop_of_angles(height: int, width: int, *, head_width: int, base: float) -> Tensor:
    """The paper's angles, (h * w, head_width): row and column from -1 to 1 at patch centers, one
    number at a time."""
    angles = []
    for row in range(height):
        for column in range(width):
            turns = [
                2 * math.pi * (2 * (place + 0.5) / count - 1) / base ** (4 * j / head_width)
                for place, count in ((row, height), (column, width))
                for j in range(head_width // 4)
            ]
            angles.append(turns + turns)
    return torch.tensor(angles, dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 4), (7, 2)])
def test_rotary_angles_equal_the_loop(height: int, width: int) -> None:
    sine, cosine = rotary_table(height, width, periods=rotary_periods(16, base=100.0))
    angles = loop_of_angles(height, width, head_width=16, base=100.0)
    torch.testing.assert_close(sine.double(), angles.sin(), rtol=0, atol=1e-5)
    torch.testing.assert_close(cosine.double(), angles.cos(), rtol=0, atol=1e-5)


def test_rotary_angles_of_a_2_by_2_grid_can_be_checked_by_hand() -> None:
    # Patch centers lie at ±1/2, so the fastest channel turns by ±pi and the next by ±pi /
    # sqrt(base).
    sine, cosine = rotary_table(2, 2, periods=rotary_periods(8, base=4.0))
    torch.testing.assert_close(
        cosine[0, :4], torch.tensor([-1.0, 0.0, -1.0, 0.0]), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(sine[:, 1], torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    torch.testing.assert_close(sine[:, 3], torch.tensor([-1.0, 1.0, -1.0, 1.0]))


def test_a_rotation_turns_pairs_of_channels_and_keeps_lengths() -> None:
    tokens = torch.randn(2, 3, 15, 8, generator=torch.Generator().manual_seed(0))
    sine, cosine = rotary_table(3, 5, periods=rotary_periods(8, base=100.0))
    turned = rotate(tokens, sine, cosine)
    angles = loop_of_angles(3, 5, head_width=8, base=100.0)
    for patch in range(15):
        for channel in range(4):
            x, y = tokens[:, :, patch, channel], tokens[:, :, patch, channel + 4]
            cos, sin = math.cos(angles[patch, channel]), math.sin(angles[patch, channel])
            torch.testing.assert_close(
                turned[:, :, patch, channel], cos * x - sin * y, rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                turned[:, :, patch, channel + 4], sin * x + cos * y, rtol=1e-4, atol=1e-5
            )
    torch.testing.assert_close(turned.norm(dim=-1), tokens.norm(dim=-1))


def test_rotated_products_depend_only_on_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(16, generator=generator), torch.randn(16, generator=generator)
    sine, cosine = rotary_table(4, 6, periods=rotary_periods(16, base=100.0))
    queries, keys = (
        rotate(vector.expand(1, 1, 24, 16), sine, cosine)[0, 0] for vector in (query, key)
    )
    products = (queries @ keys.T).reshape(4, 6, 4, 6)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 3, 3, 5])
    torch.testing.assert_close(products[3, 1, 1, 0], products[2, 5, 0, 4])
    assert (products[0, 0, 1, 2] - products[0, 0, 2, 1]).abs() > 1e-3
