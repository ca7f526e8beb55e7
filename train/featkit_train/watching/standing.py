"""How the trainings of one run stand beside each other: generations.json, one row each, what was
noticed, and which is chosen.

Needs no torch, so that the report does not.
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
LEAST_A_LABEL = 4  # held-out images, on average; with fewer, neighbors of one label say nothing
NETWORK = "network"  # the folder of the one training whose exits are rows
Kind = Literal["generation", "ensemble", "exit", "round"]
POSITIVE = ("seconds", "images_per_s", "parameters")  # the rest are shares, which 1 bounds


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training, exit or ensemble, measured on the held-out images. None is what was not
    measured or does not exist.

    ValueError for a figure that cannot be: no finite number, a share beyond 0 and 1, a kind that is
    none.
    """

    name: str  # that of its folder beside generations.json, where it has one
    kind: Kind
    accuracy: float
    # of the accuracy by itself; two rows differ with the smaller error of judging.paired_gain
    standard_error: float
    ece: float
    wrong_confidence: float | None = None
    shared_errors: float | None = None  # with its teacher
    knn: float | None = None
    copies: float | None = None  # found at the first place
    seconds: float | None = None  # that its training took
    images_per_s: float | None = None  # when it is used
    parameters: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or self.kind not in get_args(Kind):
            raise ValueError(
                f"a row has a name and is one of {', '.join(get_args(Kind))}, not {self.name!r} and"
                f" {self.kind!r}"
            )
        for item in dataclasses.fields(self)[2:]:
            value: Any = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(
                    f"{item.name} of {self.name} is {value!r}, which is no finite number"
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
        """Measured on N held-out images: probs and teacher_probs (N, K), labels (N,), vectors (N,
        D), any float.

        The standard error is that of a share, sqrt(accuracy * (1 - accuracy) / N). kNN is measured
        as probe.HeldOut does. What else is given stands in the row as it is.
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
    """All rows in the order in which they were made. chosen: the name of the row to use; "" where
    there are none yet.

    ValueError for two rows of one name, and for a choice that is none of them.
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
            raise ValueError(f"rows need names of their own, not {', '.join(names)}")
        if self.chosen not in (names or [""]):
            raise ValueError(
                f"{self.chosen!r} is chosen, which is none of {', '.join(names) or 'no rows'}"
            )
        texts = [
            self.name,
            self.method,
            *self.classes,
            *(text for one in self.remarks for text in (one.name, one.sentence)),
        ]
        if not isinstance(self.classes, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("name, method, classes and sentences are text")
        if (
            type(self.num_held_out) is not int
            or self.format != FORMAT
            or type(self.format) is not int
        ):
            raise ValueError(f"num_held_out is a whole number and format is {FORMAT}")

    @property
    def best(self) -> Row | None:
        """The most accurate row, of equals the first."""
        return max(self.rows, key=lambda row: row.accuracy, default=None)

    def row(self, name: str) -> Row:
        """One row. KeyError for another."""
        return {row.name: row for row in self.rows}[name]


def held_out_knn(vectors: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of every second image whose nearest neighbors of the others vote for its label.

    vectors (N, D), labels (N,). None where the labels do not tell.
    """
    # loads pyarrow, for which a report would wait
    from featkit.evaluate.knn import NEIGHBORS, knn_accuracy

    if not labels_tell(labels):
        return None
    neighbors = min(NEIGHBORS, len(labels[::2]))
    return knn_accuracy(vectors[::2], labels[::2], vectors[1::2], labels[1::2], k=neighbors)


def labels_tell(labels: np.ndarray) -> bool:
    """Whether neighbors by their labels (N,) say anything: not where all are one, or have too few
    images on average."""
    return 1 < len(np.unique(labels)) <= len(labels) / LEAST_A_LABEL


def write_standing(folder: Path, standing: Standing) -> None:
    """Write `folder`/generations.json anew, whole or not at all."""
    # In ASCII: a class may be named by a folder whose name is no text, which UTF-8 cannot hold.
    text = json.dumps(dataclasses.asdict(standing), indent=1, allow_nan=False)
    write_text(folder / STANDING_FILE, text + "\n")


def read_standing(folder: Path) -> Standing:
    """Read `write_standing` back. InputError where there is none, for a newer format, and for
    anything that is no standing."""
    path = folder / STANDING_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {STANDING_FILE}; name the folder of a run of several trainings, or of"
            " one with exits."
        )
    try:
        with explain_os_errors(path):
            values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({error}); run the training again, which writes it anew."
        ) from error
    if isinstance(values, dict) and type(values.get("format")) is int and values["format"] > FORMAT:
        raise InputError(
            f"{path} has format {values['format']}, newer than the {FORMAT} read here; update"
            " featkit."
        )
    try:
        return _standing(values)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged or not featkit's ({error}); run the training again, which writes it"
            " anew."
        ) from error


def _standing(values: Mapping[str, Any]) -> Standing:
    rows, remarks = (
        [Row(**row) for row in values["rows"]],
        [Remark(**remark) for remark in values["remarks"]],
    )
    return Standing(**{**values, "rows": rows, "remarks": remarks})
