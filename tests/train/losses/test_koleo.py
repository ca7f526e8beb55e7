"""Promises of KoLeo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from featkit_train.losses import koleo_loss


def loop(features: Tensor) -> Tensor:
    """Equation 3, one embedding at a time."""
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
    assert koleo_loss(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(-math.log(2), rel=1e-5)


def test_koleo_of_duplicates_is_finite_with_finite_gradient() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_koleo_is_float32_also_for_bfloat16_features() -> None:
    assert koleo_loss(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()).dtype == torch.float32


def test_koleo_of_one_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        koleo_loss(torch.ones(1, 3))


def test_koleo_agrees_with_lightly() -> None:
    from tests.torchvision_without_cuda import import_lightly_loss

    features = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    assert koleo_loss(features).item() == pytest.approx(import_lightly_loss("KoLeoLoss")()(features).item(), rel=1e-4)


def test_koleo_finds_the_nearest_under_autocast_too() -> None:
    # So near to each other that bfloat16 could not tell which of them is nearest.
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, generator=generator) + 0.05 * torch.randn(32, 64, generator=generator)
    expected = koleo_loss(features)
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(features)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
