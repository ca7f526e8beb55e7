"""Which curves stand together, under which title, and how each is to be read. A name that no row
knows has its own panel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from featkit_train.report.metrics import Curve


@dataclass(frozen=True)
class Row:
    """Names (regular expressions for all of a name) that share a panel, or with no title get one
    each."""

    section: str
    title: str
    names: tuple[str, ...]
    about: str = ""
    always: bool = False  # drawn even where it never changes
    beside: str = ""  # only in a run that has this curve too


@dataclass(frozen=True)
class Panel:
    """Curves to draw in one chart."""

    section: str
    title: str
    about: str
    curves: tuple[Curve, ...]
    always: bool


MOST_CURVES = 6  # in one chart, each in a color of its own
LEARNING, OPTIMIZER, SPEED, OTHER = "Learning", "Optimizer and schedules", "Speed", "Other"
SECTIONS = (LEARNING, OPTIMIZER, SPEED, OTHER)
WITH_LABELS = "label_loss"  # the curve that tells a run with labels
ROWS = (
    Row(
        LEARNING,
        "Accuracy",
        ("accuracy",),
        "Share of held-out images that are classified rightly, by the deepest exit. This is what"
        " to look at.",
        always=True,
    ),
    Row(
        LEARNING,
        "Accuracy of the exits",
        ("accuracy_exit_.*",),
        "The same at the exits before the deepest, from the shallowest.",
        always=True,
    ),
    Row(
        LEARNING,
        "Accuracy in training",
        ("batch_accuracy",),
        "Share of a step's crops that are classified rightly. Far above the accuracy, it learns by"
        " heart.",
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
        "Copies found",
        ("copy_recall.*",),
        "Share of edited held-out images whose nearest neighbor is their original.",
        always=True,
        beside=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Copies found",
        ("copy_recall.*",),
        "Share of edited held-out images whose nearest neighbor is their original. This is what"
        " to look at.",
        always=True,
    ),
    Row(
        LEARNING,
        "Nearest neighbors",
        ("knn.*",),
        "Share of held-out images whose neighbors carry their label.",
        always=True,
    ),
    Row(LEARNING, "", (".*(recall|accuracy|precision).*",), always=True),
    Row(
        LEARNING,
        "Loss",
        ("loss",),
        "What is minimized, in nats: the sum of the terms below.",
        beside=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Loss of the labels",
        (WITH_LABELS,),
        "Cross-entropy with the labels, by people or by a teacher; of a network with exits, of all"
        " of them.",
    ),
    Row(
        LEARNING,
        "Loss of what is taught",
        ("teacher_loss",),
        "How far the outputs are from the teacher's, or those of the exits from the deepest one's.",
        beside=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Loss of the features",
        ("feature_loss",),
        "How far the vectors of the exits are from the deepest one's.",
        beside=WITH_LABELS,
    ),
    Row(
        LEARNING,
        "Teacher's confidence",
        ("teacher_confidence",),
        "Its greatest probability, on average over the crops.",
    ),
    Row(
        LEARNING,
        "Loss",
        ("loss",),
        "What is minimized, in nats. It says little by itself: both networks can agree on nothing.",
    ),
    Row(
        LEARNING,
        "Entropy",
        ("teacher_entropy", "batch_entropy"),
        "Shares of ln K. The teacher's near 1 is uniform collapse, the batch's near 0 one-hot"
        " collapse.",
    ),
    Row(
        LEARNING,
        "RankMe",
        ("rank_?me.*",),
        "How many directions the embeddings really use. A fall to a few is collapse.",
    ),
    Row(LEARNING, "", (".*entropy.*", ".*rank.*")),
    Row(LEARNING, "", (".*loss.*",), "One term of the loss, before its weight."),
    Row(
        OPTIMIZER, "Gradient norm", ("grad_norm.*",), "Of all parameters together, before clipping."
    ),
    Row(OPTIMIZER, "Learning rate", ("lr", "learning_rate"), ""),
    Row(OPTIMIZER, "Weight decay", ("weight_decay",), ""),
    Row(OPTIMIZER, "Teacher momentum", ("momentum",), "Share of the teacher that a step keeps."),
    Row(OPTIMIZER, "Teacher temperature", ("teacher_temp",), "Lower is sharper."),
    Row(OPTIMIZER, "", (".*(_temp|momentum|_lr|lr_.*|decay|grad).*",)),
    Row(SPEED, "Images a second", ("images_per_s",), "Over the steps since the reading before."),
    Row(
        SPEED,
        "Waiting for data",
        ("waiting_share",),
        "Share of the time without a batch. Above 0.1, raise run.workers.",
    ),
    Row(SPEED, "Steps a second", ("steps_per_s",), ""),
    Row(
        SPEED,
        "Unreadable images",
        ("unreadable",),
        "Counted from the first step of the run, each time they come up; of all processes.",
    ),
    Row(SPEED, "", (".*(_per_s|_share|memory|bytes|seconds).*",)),
)


def arrange(curves: Mapping[str, Curve]) -> list[Panel]:
    """Every curve in one panel, by ROWS; what none of them names is in OTHER."""
    left = dict(curves)
    panels = []
    for row in ROWS:
        if row.beside and row.beside not in curves:
            continue
        named = [
            left.pop(name)
            for name in list(left)
            if any(re.fullmatch(pattern, name) for pattern in row.names)
        ]
        if row.title:
            groups = [
                tuple(named[start : start + MOST_CURVES])
                for start in range(0, len(named), MOST_CURVES)
            ]
            panels += [
                Panel(row.section, row.title, row.about, group, row.always) for group in groups
            ]
        else:
            panels += [
                Panel(row.section, curve.name, row.about, (curve,), row.always) for curve in named
            ]
    return panels + [Panel(OTHER, curve.name, "", (curve,), False) for curve in left.values()]
