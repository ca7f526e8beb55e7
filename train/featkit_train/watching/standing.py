"""The comparison of a course's trainings, generations.json: a row for each, remarks, and the chosen
one.

It does not import torch, so the report does not either.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from featkit.atomic import explain_os_errors, write_text
from featkit.errors import InputError
from featkit_train.watching.judging import (
    Remark,
    accuracy,
    confidence_when_wrong,
    expected_calibration_error,
    shared_errors,
)

STANDING_FILE = "generations.json"
FORMAT = 1
MIN_IMAGES_A_LABEL = 4  # average held-out images per label that kNN accuracy needs
NETWORK = "network"  # the folder of the single training if the rows are its exits
Kind = Literal["generation", "ensemble", "exit", "round"]
POSITIVE = ("seconds", "images_per_s", "parameters")  # the others are shares, at most 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training, exit or ensemble, measured on the held-out images; None for what was not
    measured.

    ValueError for an impossible value: a figure that is not finite, a share outside 0 and 1, or an
    unknown kind.
    """

    name: str  # also the name of its subfolder, if it has one
    kind: Kind
    accuracy: float
    # The standard error of the accuracy alone; that of a difference (judging.paired_gain) is
    # smaller.
    standard_error: float
    ece: float
    wrong_confidence: float | None = None
    shared_errors: float | None = None  # share of its teacher's errors that it repeats
    knn: float | None = None
    copies: float | None = None  # recall@1
    seconds: float | None = None  # of training
    images_per_s: float | None = None  # of inference
    parameters: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or self.kind not in get_args(Kind):
            raise ValueError(
                f"a row has a name and one of the kinds {', '.join(get_args(Kind))}, not"
                f" {self.name!r} and {self.kind!r}"
            )
        for item in dataclasses.fields(self)[2:]:
            value: Any = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(
                    f"{item.name} of {self.name} is {value!r}, which is not a finite number"
                )
            if value < 0 or (value > 1 and item.name not in POSITIVE):
                raise ValueError(f"{item.name} of {self.name} is {value!r}, which is out of range")

    @classmethod
    def of(
        cls,
        name: str,
        kind: Kind,
        probs: np.ndarray,
        labels: np.ndarray,
        *,
        vectors: np.ndarray | None = None,
        teacher_probs: np.ndarray | None = None,
        copies: float | None = None,
        seconds: float | None = None,
        images_per_s: float | None = None,
        parameters: int | None = None,
    ) -> Row:
        """Measure a row on N held-out images: probs and teacher_probs (N, K), labels (N,), vectors
        (N, D), any float.

        The standard error is that of a share, sqrt(accuracy * (1 - accuracy) / N). kNN is measured
        as in probe.HeldOut. The other arguments are fields of the row.
        """
        share = accuracy(probs, labels)
        return cls(
            name=name,
            kind=kind,
            accuracy=share,
            standard_error=math.sqrt(share * (1 - share) / len(labels)),
            ece=expected_calibration_error(probs, labels),
            wrong_confidence=confidence_when_wrong(probs, labels),
            shared_errors=(
                None if teacher_probs is None else shared_errors(probs, teacher_probs, labels)
            ),
            knn=None if vectors is None else held_out_knn(vectors, labels),
            copies=copies,
            seconds=seconds,
            images_per_s=images_per_s,
            parameters=parameters,
        )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """All rows in the order of their trainings. chosen: the name of the row to use, "" without
    rows.

    ValueError if two rows share a name, or if the choice is not a row.
    """

    name: str
    method: str
    num_held_out: int
    classes: list[str]
    rows: list[Row]
    remarks: list[Remark]
    chosen: str
    format: int = FORMAT

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of rows are not unique: {', '.join(names)}")
        if self.chosen not in (names or [""]):
            raise ValueError(
                f"{self.chosen!r} is chosen, but the rows are {', '.join(names) or 'empty'}"
            )
        texts = [
            self.name,
            self.method,
            *self.classes,
            *(text for remark in self.remarks for text in (remark.name, remark.sentence)),
        ]
        if not isinstance(self.classes, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("name, method, classes and sentences are text")
        if (
            type(self.num_held_out) is not int
            or self.format != FORMAT
            or type(self.format) is not int
        ):
            raise ValueError(f"num_held_out is not an integer, or format is not {FORMAT}")

    @property
    def best(self) -> Row | None:
        """The most accurate row; the first one if tied."""
        return max(self.rows, key=lambda row: row.accuracy, default=None)

    def row(self, name: str) -> Row:
        """Return a row by name. KeyError for an unknown name."""
        return {row.name: row for row in self.rows}[name]


def held_out_knn(vectors: np.ndarray, labels: np.ndarray) -> float | None:
    """Return kNN accuracy: every second image is classified by its nearest neighbors among the
    others.

    vectors (N, D), labels (N,). None if `labels_tell` is false.
    """
    # Imported here, since it loads pyarrow, which a report does not need.
    from featkit.evaluate.knn import NEIGHBORS, knn_accuracy

    if not labels_tell(labels):
        return None
    neighbors = min(NEIGHBORS, len(labels[::2]))
    return knn_accuracy(vectors[::2], labels[::2], vectors[1::2], labels[1::2], k=neighbors)


def labels_tell(labels: np.ndarray) -> bool:
    """Return whether kNN accuracy is meaningful for labels (N,): more than one label, and enough
    images of each on average."""
    return 1 < len(np.unique(labels)) <= len(labels) / MIN_IMAGES_A_LABEL


def write_standing(folder: Path, standing: Standing) -> None:
    """Write `folder`/generations.json, complete or not at all."""
    # ASCII, since the folder name of a class may hold bytes that UTF-8 cannot.
    text = json.dumps(dataclasses.asdict(standing), indent=1, allow_nan=False)
    write_text(folder / STANDING_FILE, text + "\n")


def read_standing(folder: Path) -> Standing:
    """Read `folder`/generations.json. InputError if it is missing, damaged, or of a newer
    format."""
    path = folder / STANDING_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {STANDING_FILE}; name the folder of a born-again, self-training or"
            " internal run."
        )
    try:
        with explain_os_errors(path):
            values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({error}). Run the training with --resume, which writes it again."
        ) from error
    if isinstance(values, dict) and type(values.get("format")) is int and values["format"] > FORMAT:
        raise InputError(
            f"{path} has format {values['format']}, newer than the {FORMAT} that this version"
            " reads;"
            " update featkit."
        )
    try:
        return _standing(values)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged or not featkit's ({error}). Run the training with --resume, which"
            " writes it again."
        ) from error


def _standing(values: Mapping[str, Any]) -> Standing:
    rows, remarks = (
        [Row(**row) for row in values["rows"]],
        [Remark(**remark) for remark in values["remarks"]],
    )
    return Standing(**{**values, "rows": rows, "remarks": remarks})
