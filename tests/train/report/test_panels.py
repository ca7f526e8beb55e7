"""Promises of the panels that curves are arranged in."""

from __future__ import annotations

from featkit_train.report.metrics import Curve
from featkit_train.report.panels import MAX_CURVES, arrange


def test_each_curve_is_in_one_panel_with_a_color_of_its_own() -> None:
    names = [
        "loss",
        "ibot_loss",
        "lr",
        "rankme",
        "x",
        *(f"knn_{k}" for k in range(15)),
        "batch_entropy",
        "patch_entropy",
    ]
    panels = arrange({name: Curve(name) for name in names})
    assert sorted(curve.name for panel in panels for curve in panel.curves) == sorted(names)
    assert max(len(panel.curves) for panel in panels) == MAX_CURVES
