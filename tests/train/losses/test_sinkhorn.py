"""Promises of Sinkhorn-Knopp."""

from __future__ import annotations

import pytest
import torch

from featkit_train.losses import sinkhorn_knopp


def test_sinkhorn_equals_the_loop_of_its_docstring() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    q = [[float(torch.exp(logits[r, k] / 0.5)) for k in range(4)] for r in range(6)]
    for _ in range(3):
        columns = [sum(q[r][k] for r in range(6)) for k in range(4)]
        q = [[q[r][k] / (4 * columns[k]) for k in range(4)] for r in range(6)]
        rows = [sum(q[r]) for r in range(6)]
        q = [[q[r][k] / (6 * rows[r]) for k in range(4)] for r in range(6)]
    expected = torch.tensor([[6 * value for value in row] for row in q])
    torch.testing.assert_close(sinkhorn_knopp(logits, teacher_temp=0.5), expected.float(), rtol=1e-5, atol=1e-6)


def test_sinkhorn_rows_sum_to_one_and_columns_are_used_alike_after_many_iterations() -> None:
    logits = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    probs = sinkhorn_knopp(logits, teacher_temp=0.3, num_iterations=100)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(32))
    torch.testing.assert_close(probs.sum(dim=0), torch.full((8,), 32 / 8), rtol=1e-3, atol=1e-3)


def test_sinkhorn_of_equal_logits_is_uniform() -> None:
    torch.testing.assert_close(sinkhorn_knopp(torch.full((5, 4), 3.0), teacher_temp=0.04), torch.full((5, 4), 0.25))


def test_sinkhorn_stays_finite_where_exp_overflows() -> None:
    logits = 100 * torch.randn(16, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    probs = sinkhorn_knopp(logits, teacher_temp=0.04)
    assert probs.dtype == torch.float32
    assert torch.isfinite(probs).all()


def test_sinkhorn_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        sinkhorn_knopp(torch.zeros(0, 4), teacher_temp=0.1)
