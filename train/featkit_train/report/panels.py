"""The panels of the report: which curves share a chart, its title, and how to read it. A curve that
no row names has its own panel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from featkit_train.report.metrics import Curve


@dataclass(frozen=True)
class Row:
    """Names, as regular expressions of the whole name, that share a panel. Without a title, each
    has its own."""

    section: str
    title: str
    names: tuple[str, ...]
    about: str = ""
    always: bool = False  # draw it even if it never changes
    only_with: str = ""  # show the panel only if the run also has this curve


@dataclass(frozen=True)
class Panel:
    """Curves to draw in one chart."""

    section: str
    title: str
    about: str
    curves: tuple[Curve, ...]
    always: bool


MAX_CURVES = 6  # in one chart, each with its own color
LEARNING, OPTIMIZER, SPEED, OTHER = "Learning", "Optimizer and schedules", "Speed", "Other"
SECTIONS = (LEARNING, OPTIMIZER, SPEED, OTHER)
WITH_LABELS = "label_loss"  # a curve that only runs with labels have
ROWS = (
    Row(
        LEARNING,
        "Accuracy",
        ("accuracy",),
        "Share of held-out images that the deepest exit classifies correctly. Judge the run by it.",
        always=True,
    ),
    Row(
        LEARNING,
        "Accuracy of the exits",
        ("accuracy_exit_.*",),
        "Accuracy of the exits before the deepest, from the shallowest.",
        always=True,
    ),
    Row(
        LEARNING,
        "Accuracy in training",
        ("batch_accuracy",),
        "Share of a step's crops that are classified correctly. Far above the held-out accuracy,"
        " the network is overfitting.",
    ),
    Row(
        LEARNING,
        "Calibration error",
        ("ece",),
        "ECE: mean distance of confidence from accuracy on held-out images. Lower is better.",
        always=True,
    ),
    Row(
        LEARNING,
        "Copy recall",
        ("copy_recall.*",),
        "Share of edited held-out images whose nearest neighbor is their original.",
        always=True,
        only_with=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Copy recall",
        ("copy_recall.*",),
        "Share of edited held-out images whose nearest neighbor is their original. Judge the run by"
        " it.",
        always=True,
    ),
    Row(
        LEARNING,
        "kNN accuracy",
        ("knn.*",),
        "Share of held-out images whose nearest neighbors vote for their label.",
        always=True,
    ),
    Row(LEARNING, "", (".*(recall|accuracy|precision).*",), always=True),
    Row(
        LEARNING,
        "Loss",
        ("loss",),
        "The minimized loss, in nats: the sum of the terms below.",
        only_with=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Label loss",
        (WITH_LABELS,),
        "Cross-entropy with human labels or a teacher's labels, over all exits.",
    ),
    Row(
        LEARNING,
        "Teacher loss",
        ("teacher_loss",),
        "Divergence of the outputs from the teacher's, or of the exits from the deepest one.",
        only_with=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Feature loss",
        ("feature_loss",),
        "Distance of the exits' vectors from the deepest one's.",
        only_with=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Teacher's confidence",
        ("teacher_confidence",),
        "The teacher's largest probability, averaged over the crops.",
    ),
    Row(
        LEARNING,
        "Loss",
        ("loss",),
        "The minimized loss, in nats. It shows little by itself: a collapsed student and teacher"
        " agree, too.",
    ),
    Row(
        LEARNING,
        "Entropy",
        ("teacher_entropy", "batch_entropy"),
        "As shares of ln K. The teacher's near 1 is a uniform collapse, the batch's near 0 a"
        " one-hot collapse.",
    ),
    Row(
        LEARNING,
        "RankMe",
        ("rank_?me.*",),
        "Effective number of directions that the embeddings use. A fall to a few is a collapse.",
    ),
    Row(LEARNING, "", (".*entropy.*", ".*rank.*")),
    Row(LEARNING, "", (".*loss.*",), "One term of the loss, before its weight."),
    Row(OPTIMIZER, "Gradient norm", ("grad_norm.*",), "Over all parameters, before clipping."),
    Row(OPTIMIZER, "Learning rate", ("lr", "learning_rate"), ""),
    Row(OPTIMIZER, "Weight decay", ("weight_decay",), ""),
    Row(
        OPTIMIZER,
        "Teacher momentum",
        ("momentum",),
        "Share of the teacher's weights that each step keeps.",
    ),
    Row(OPTIMIZER, "Teacher temperature", ("teacher_temp",), "Lower is sharper."),
    Row(OPTIMIZER, "", (".*(_temp|momentum|_lr|lr_.*|decay|grad).*",)),
    Row(SPEED, "Images per second", ("images_per_s",), "Over the steps since the last reading."),
    Row(
        SPEED,
        "Waiting for data",
        ("waiting_share",),
        "Share of the time without a batch. If above 0.1, raise run.workers.",
    ),
    Row(SPEED, "Steps per second", ("steps_per_s",), ""),
    Row(
        SPEED,
        "Unreadable images",
        ("unreadable",),
        "Failed reads since the run's first step, over all processes.",
    ),
    Row(SPEED, "", (".*(_per_s|_share|memory|bytes|seconds).*",)),
)


def arrange(curves: Mapping[str, Curve]) -> list[Panel]:
    """Assign every curve to one panel by ROWS; curves that no row names go to OTHER."""
    left = dict(curves)
    panels = []
    for row in ROWS:
        if row.only_with and row.only_with not in curves:
            continue
        named = [
            left.pop(name)
            for name in list(left)
            if any(re.fullmatch(pattern, name) for pattern in row.names)
        ]
        if row.title:
            groups = [
                tuple(named[start : start + MAX_CURVES])
                for start in range(0, len(named), MAX_CURVES)
            ]
            panels += [
                Panel(row.section, row.title, row.about, group, row.always) for group in groups
            ]
        else:
            panels += [
                Panel(row.section, curve.name, row.about, (curve,), row.always) for curve in named
            ]
    return panels + [Panel(OTHER, curve.name, "", (curve,), False) for curve in left.values()]
