"""Promises of KoLeo."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featkit_train.losses import koleo_loss


def loop(features: Tensor) -> Tensor:
    """Return equation 3, one embedding at a time."""
    unit = features / features.norm(dim=1, keepdim=True)
    terms = []
    for i in range(len(unit)):
        distances = torch.stack([(unit[i] - unit[j]).norm() for j in range(len(unit)) if j != i])
        terms.append(-torch.log(distances.min()))
    return torch.stack(terms).mean()


def test_koleo_equals_the_loop_in_value_and_gradient() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected_gradient,) = torch.autograd.grad(loop(features), features)
    loss = koleo_loss(features)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss.item() == pytest.approx(loop(features).item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def test_koleo_of_opposite_embeddings_is_minus_log_two() -> None:
    assert koleo_loss(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(
        -math.log(2), rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_koleo_of_duplicates_has_a_finite_gradient(
    dtype: torch.dtype,
) -> None:
    features = torch.tensor(
        [[1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [-1.0, 0.0, 0.0]], dtype=dtype, requires_grad=True
    )
    loss = koleo_loss(features)
    loss.backward()
    # The two are sqrt(3) * eps apart as pairwise_distance has it, and eps more; the third looks at
    # either.
    pole = -math.log(1e-8 * (math.sqrt(3) + 1))
    third = -math.log(math.sqrt((1 / 3 + 1) ** 2 + 8 / 9))
    assert loss.item() == pytest.approx(
        (2 * pole + third) / 3, rel=1e-2 if dtype == torch.bfloat16 else 1e-5
    )
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.any()


def test_koleo_is_float32_also_for_bfloat16_features() -> None:
    assert (
        koleo_loss(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()).dtype
        == torch.float32
    )


def test_koleo_of_one_embedding_needs_other_candidates() -> None:
    with pytest.raises(ValueError, match="at least two"):
        koleo_loss(torch.ones(1, 3))
    everyone = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert koleo_loss(everyone[1:2], among=everyone, first=1).item() == pytest.approx(
        -math.log(2) / 2, rel=1e-5
    )


def test_koleo_among_all_is_the_rows_share_of_the_whole() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = koleo_loss(features)
    (expected,) = torch.autograd.grad(whole, features)
    parts = [(0, 3), (3, 2), (5, 2)]
    losses = [
        koleo_loss(features[first : first + size], among=features, first=first) * size
        for first, size in parts
    ]
    total = torch.stack(losses).sum() / 7
    assert total.item() == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(total, features)[0], expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0))
def test_koleo_ignores_length_order_and_rotation(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    expected = koleo_loss(features).item()
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    lengths = scale * torch.rand(6, 1, generator=generator, dtype=torch.float64) + 0.01
    changed = (features * lengths)[torch.randperm(6, generator=generator)] @ turn
    assert koleo_loss(changed).item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_koleo_agrees_with_lightly() -> None:
    from tests.torchvision_without_cuda import import_lightly_loss

    features = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    assert koleo_loss(features).item() == pytest.approx(
        import_lightly_loss("KoLeoLoss")()(features).item(), rel=1e-4
    )


def test_koleo_finds_the_nearest_under_autocast_too() -> None:
    # So near to each other that bfloat16 could not tell which of them is nearest.
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, generator=generator) + 0.05 * torch.randn(
        32, 64, generator=generator
    )
    expected = koleo_loss(features)
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(features)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
