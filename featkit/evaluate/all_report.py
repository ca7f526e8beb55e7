"""The result of all evaluations of several models: the rows of one table, and every report."""

from __future__ import annotations

from dataclasses import dataclass, field

from featkit.evaluate.copies import CopiesReport
from featkit.evaluate.groups import GroupReport
from featkit.evaluate.knn import KnnReport
from featkit.evaluate.linear import LinearReport


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The mean outcome of a model or a baseline, with its 95 % bootstrap interval over images."""

    name: str
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The figure of `model` minus that of `other`, with its 95 % interval by a paired bootstrap.

    beyond_noise: whether the interval excludes 0.
    """

    model: str
    other: str
    value: float
    interval: tuple[float, float]
    beyond_noise: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of all models on the same images.

    data: a short name of the images. score: what was measured, such as "retrieval mAP".
    baselines: measured once. best: the models with the highest figure.
    differences: of every other model from the first, where both have the same queries.
    """

    data: str
    score: str
    num_queries: int
    models: list[Figure]
    baselines: list[Figure]
    best: list[str]
    differences: list[Difference]


@dataclass(frozen=True, kw_only=True)
class AllReport:
    """The result. Rows stand in the order retrieval, kNN, linear classifier, copies.

    models: the names of the models. sources: the names of the sources that were given as train,
    test, retrieval and copies. names: the short name of each source, by its name.
    knn, linear, copies: the report of each model; retrieval: by model and source. They are those of
    `evaluate_knn` and so on, except that only the first model's have baselines.
    failures: (source, key, reason) of images that were left out, each once.
    """

    models: list[str]
    sources: dict[str, list[str]]
    names: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    retrieval: dict[str, dict[str, GroupReport]] = field(default_factory=dict)
    knn: dict[str, KnnReport] = field(default_factory=dict)
    linear: dict[str, LinearReport] = field(default_factory=dict)
    copies: dict[str, CopiesReport] = field(default_factory=dict)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
