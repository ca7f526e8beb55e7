"""Promises of the watch on collapse."""

from __future__ import annotations

import math

import pytest

from featkit_train.diagnostics import PATIENCE_STEPS, Collapse, CollapseWatch


def outcomes(watch: CollapseWatch, steps: int, **outputs: float) -> list[str]:
    """All that the watch says over `steps` steps of the same outputs."""
    said = [watch(step, **outputs) for step in range(steps)]
    return [sentence for sentence in said if sentence is not None]


def test_uniform_collapse_is_named_once_after_it_has_lasted() -> None:
    watch = CollapseWatch(num_prototypes=64, settle_steps=10)
    said = outcomes(watch, 10 + PATIENCE_STEPS - 1, loss=math.log(64), teacher_entropy=0.999, batch_entropy=1.0)
    assert said == []
    (sentence,) = outcomes(
        CollapseWatch(num_prototypes=64, settle_steps=10), 500, loss=math.log(64), teacher_entropy=0.999, batch_entropy=1.0
    )
    assert sentence.startswith(f"Uniform collapse at step {10 + PATIENCE_STEPS - 1}")
    assert "sinkhorn" in sentence


def test_one_hot_collapse_is_named() -> None:
    watch = CollapseWatch(num_prototypes=64, settle_steps=0)
    (sentence,) = outcomes(watch, 200, loss=0.01, teacher_entropy=0.001, batch_entropy=0.001)
    assert sentence.startswith("One-hot collapse")


def test_sharp_outputs_spread_over_prototypes_are_no_collapse() -> None:
    watch = CollapseWatch(num_prototypes=64, settle_steps=0)
    assert outcomes(watch, 200, loss=0.5, teacher_entropy=0.01, batch_entropy=0.95) == []


def test_a_recovery_starts_the_count_again() -> None:
    watch = CollapseWatch(num_prototypes=64, settle_steps=0)
    for step in range(300):
        collapsed = step % PATIENCE_STEPS != 0
        loss = math.log(64) if collapsed else 1.0
        assert watch(step, loss=loss, teacher_entropy=1.0, batch_entropy=1.0) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_at_once(loss: float) -> None:
    with pytest.raises(Collapse, match="step 3"):
        CollapseWatch(num_prototypes=8, settle_steps=100)(3, loss=loss, teacher_entropy=0.5, batch_entropy=0.5)
