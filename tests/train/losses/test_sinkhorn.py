"""Promises of Sinkhorn-Knopp."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featkit_train.losses import sinkhorn_knopp
from tests.train.losses.processes import in_processes


def test_sinkhorn_equals_the_loop_of_its_docstring() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    q = [[float(torch.exp(logits[r, k] / 0.5)) for k in range(4)] for r in range(6)]
    for _ in range(3):
        columns = [sum(q[r][k] for r in range(6)) for k in range(4)]
        q = [[q[r][k] / (4 * columns[k]) for k in range(4)] for r in range(6)]
        rows = [sum(q[r]) for r in range(6)]
        q = [[q[r][k] / (6 * rows[r]) for k in range(4)] for r in range(6)]
    expected = torch.tensor([[6 * value for value in row] for row in q])
    torch.testing.assert_close(
        sinkhorn_knopp(logits, teacher_temp=0.5), expected.float(), rtol=1e-5, atol=1e-6
    )


def test_sinkhorn_converges_to_equal_columns() -> None:
    logits = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    probs = sinkhorn_knopp(logits, teacher_temp=0.3, num_iterations=100)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(32))
    torch.testing.assert_close(probs.sum(dim=0), torch.full((8,), 32 / 8), rtol=1e-3, atol=1e-3)


def test_sinkhorn_of_equal_logits_is_uniform() -> None:
    torch.testing.assert_close(
        sinkhorn_knopp(torch.full((5, 4), 3.0), teacher_temp=0.04), torch.full((5, 4), 0.25)
    )


def test_sinkhorn_stays_finite_where_exp_overflows() -> None:
    logits = 100 * torch.randn(16, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    probs = sinkhorn_knopp(logits, teacher_temp=0.04)
    assert probs.dtype == torch.float32
    assert torch.isfinite(probs).all()


def test_sinkhorn_without_rows_is_empty() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 4), teacher_temp=0.1).shape == (0, 4)


def test_sinkhorn_agrees_with_lightly() -> None:
    from tests.torchvision_without_cuda import import_quietly

    logits = torch.randn(24, 10, generator=torch.Generator().manual_seed(3)) / 4
    expected = import_quietly("lightly.loss.swav_loss").sinkhorn(logits, iterations=3, epsilon=0.05)
    torch.testing.assert_close(
        sinkhorn_knopp(logits, teacher_temp=0.05), expected, rtol=1e-4, atol=1e-6
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    constant=st.floats(-20, 20),
    rows=st.integers(1, 9),
    prototypes=st.integers(1, 9),
)
def test_sinkhorn_ignores_a_constant_and_the_order_of_rows(
    seed: int, constant: float, rows: int, prototypes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, prototypes, generator=generator)
    order = torch.randperm(rows, generator=generator)
    probs = sinkhorn_knopp(logits, teacher_temp=0.1)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(rows))
    torch.testing.assert_close(
        sinkhorn_knopp(logits + constant, teacher_temp=0.1), probs, rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(
        sinkhorn_knopp(logits[order], teacher_temp=0.1), probs[order], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("sizes", [[4, 4], [6, 0, 2], [0, 3]])
def test_sinkhorn_over_processes_equals_that_of_all_rows(sizes: list[int]) -> None:
    logits = torch.randn(sum(sizes), 5, generator=torch.Generator().manual_seed(4))

    def part(rank: int, gather: Callable[[Tensor], Tensor]) -> Tensor:
        first = sum(sizes[:rank])
        return sinkhorn_knopp(logits[first : first + sizes[rank]], teacher_temp=0.1, gather=gather)

    probs = torch.cat(in_processes(part, sizes))
    torch.testing.assert_close(probs, sinkhorn_knopp(logits, teacher_temp=0.1))


def test_sinkhorn_targets_have_no_gradient() -> None:
    assert not sinkhorn_knopp(torch.zeros(3, 4, requires_grad=True), teacher_temp=0.1).requires_grad
