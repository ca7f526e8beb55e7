"""All evaluations of several models on the same images, as the rows of one table.

Retrieval, kNN, a linear classifier and copies, each as its own module computes them. A model embeds
each source once, whichever evaluations use it. Baselines are measured once, on the images as they
were decoded for the first model. Models are compared over the same queries: the bootstrap
resamples the differences of their outcomes.

Letters: Q queries, E edits of each image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.all_report import AllReport, Difference, Figure, Row
from featkit.evaluate.copies import (
    CopiesReport,
    embed_views,
    find_originals,
    report_findings,
)
from featkit.evaluate.embedding import Embedded, ImageModel, OnProgress, embed_images, no_progress
from featkit.evaluate.groups import (
    RECALL_AT,
    Grouped,
    GroupReport,
    no_match,
    rank,
    report_rankings,
)
from featkit.evaluate.knn import NEIGHBORS, TEMPERATURE, KnnReport, report_votes, vote
from featkit.evaluate.labels import (
    LABEL,
    MOST_FREQUENT,
    LabeledPair,
    find_column,
    labels_of,
    pair_up,
    refuse_disjoint,
)
from featkit.evaluate.linear import (
    LinearReport,
    classify,
    refuse_single_label,
    report_classified,
)
from featkit.evaluate.retrieval import bootstrap_interval
from featkit.sources import Source
from featkit.sources.base import CONTAINER_SUFFIXES, suffix_of

Failure: TypeAlias = tuple[str, str]
# Returns a context manager whose value receives the progress of one source; called with what is
# embedded and the number of its images.
Progress: TypeAlias = Callable[[str, int], AbstractContextManager[OnProgress]]


@dataclass(frozen=True, kw_only=True)
class Material:
    """The images to evaluate on; what is None or empty is left out.

    train and test: labeled images for kNN and the linear classifier, both or neither.
    retrieval: each by groups, where every image is a query against all others of its source.
    copies: images of any kind, whose edited copies are queries.
    """

    train: Source | None = None
    test: Source | None = None
    retrieval: Sequence[Source] = ()
    copies: Source | None = None

    def __post_init__(self) -> None:
        if (self.train is None) != (self.test is None):
            given, missing = ("test", "train") if self.train is None else ("train", "test")
            raise InputError(
                f"--{given} without --{missing} measures nothing; pass both, as in --train"
                " train.parquet --test test.parquet."
            )
        if self.train is None and not self.retrieval and self.copies is None:
            raise InputError(
                "There is nothing to measure; pass --train with --test, --retrieval or --copies."
            )

    @property
    def by_use(self) -> dict[str, list[Source]]:
        """The sources of each use; an empty list for one that is left out."""
        return {
            "train": [] if self.train is None else [self.train],
            "test": [] if self.test is None else [self.test],
            "retrieval": list(self.retrieval),
            "copies": [] if self.copies is None else [self.copies],
        }

    @property
    def sources(self) -> list[Source]:
        """All sources, each once."""
        parts = (source for sources in self.by_use.values() for source in sources)
        return list({id(source): source for source in parts}.values())


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The settings of all evaluations.

    label: the column of labels of `train` and `test`. group: the column of groups of `retrieval`;
    images with the same value match. k: how many neighbors vote. linear: whether to fit linear
    classifiers. seed: of the edits of copies, and of the images that the linear classifier holds
    out.
    """

    label: str = LABEL
    group: str = LABEL
    k: int = NEIGHBORS
    linear: bool = True
    seed: int = 0


def no_steps(_what: str, _count: int) -> AbstractContextManager[OnProgress]:
    """Show no progress; the default `progress`."""
    return nullcontext(no_progress)


def evaluate_all(
    models: Mapping[str, ImageModel],
    material: Material,
    *,
    choices: Choices | None = None,
    progress: Progress = no_steps,
    on_step: Callable[[str], None] = lambda _step: None,
) -> AllReport:
    """Measure each of `models`, named as in the table, on all of `material`.

    Two parts of `material` that are the same object are embedded once. on_step: called with each
    step that does not embed.

    Raises InputError, before anything is embedded, if a source lacks its column or its labels or
    groups cannot be evaluated; and as the single evaluations do for images that cannot be read.
    """
    choices = choices or Choices()
    names = short_names([source.name for source in material.sources])
    setting = _Setting(choices, _check(material, choices), names, progress, on_step)
    measured: list[list[_Measured]] = []
    used = {use: [each.name for each in sources] for use, sources in material.by_use.items()}
    report = AllReport(models=list(models), sources=used, names=names)
    for name, model in models.items():
        measuring = _Measuring(name, model, setting, is_first=not measured)
        measured.append(measuring.run(material, report))
    report.rows.extend(_row(report.models, same) for same in zip(*measured, strict=True))
    return report


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last part of each name, without the suffix of an archive or a Parquet file.

    Names whose last parts are equal stay whole.
    """
    short = {name: _last_part(name) for name in names}
    parts = list(short.values())
    return {name: part if parts.count(part) == 1 else name for name, part in short.items()}


def _last_part(name: str) -> str:
    last = Path(name).name
    suffix = suffix_of(last)
    return (last[: -len(suffix)] if suffix in CONTAINER_SUFFIXES else last) or name


def _check(material: Material, choices: Choices) -> dict[tuple[int, str], str]:
    """Return the column that has the wanted values, by the id of the source and what is wanted.

    Raises InputError if a column is missing or its values cannot be evaluated.
    """
    columns: dict[tuple[int, str], str] = {}

    def values(source: Source, wanted: str) -> list[str]:
        column = columns[id(source), wanted] = find_column(source, wanted)
        return _values(source, column)

    for source in material.retrieval:
        groups = values(source, choices.group)
        if len(set(groups)) == len(groups):
            raise no_match(source.name, columns[id(source), choices.group], queries=source.name)
    if material.train is not None and material.test is not None:
        pair = (material.train, material.test)
        ours, theirs = (set(values(source, choices.label)) for source in pair)
        first, second = (columns[id(source), choices.label] for source in pair)
        if ours and theirs:  # otherwise each image is reported with its reason
            refuse_disjoint(ours, theirs, (first, second), (pair[0].name, pair[1].name))
        if choices.linear:
            refuse_single_label(ours, pair[0].name)
    return columns


def _values(source: Source, column: str) -> list[str]:
    """Return the values of all items that have one, without reading their images."""
    label = labels_of(source, column)
    values = []
    for number in range(len(source)):
        try:
            values.append(label(number))
        except InputError:  # reported when the item is read
            continue
    return values


@dataclass(frozen=True)
class _Setting:
    """Settings that all models share.

    columns: as `_check` returns them. names: the short names of sources.
    """

    choices: Choices
    columns: Mapping[tuple[int, str], str]
    names: Mapping[str, str]
    progress: Progress
    on_step: Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """One row of one model.

    values: outcomes (Q,) or (Q, E) float64, whose mean is the figure. left_out: the images without
    an outcome; two models with the same ones have the same queries.
    """

    data: str
    score: str
    values: np.ndarray
    baselines: list[Figure]
    left_out: list[Failure]


class _Measuring:
    """The evaluations of one model, and the sources that it has embedded."""

    def __init__(
        self,
        name: str,
        model: ImageModel,
        setting: _Setting,
        *,
        is_first: bool,
    ) -> None:
        self.name, self.model, self.is_first = name, model, is_first
        self.choices, self.columns, self.names = setting.choices, setting.columns, setting.names
        self.progress, self.on_step = setting.progress, setting.on_step
        self.embedded: dict[tuple[int, str], tuple[Embedded[str], list[Failure]]] = {}
        self.rows: list[_Measured] = []
        self.failures: list[tuple[str, str, str]] = []

    def run(self, material: Material, report: AllReport) -> list[_Measured]:
        """Add the model's reports and failures to `report`, and return its rows."""
        report.retrieval[self.name] = {
            source.name: self.retrieval(source) for source in material.retrieval
        }
        if material.train is not None and material.test is not None:
            pair, failures = self.pair(material.train, material.test)
            data = self.names[material.test.name]
            report.knn[self.name] = self.knn(data, pair, failures)
            if self.choices.linear:
                report.linear[self.name] = self.linear(data, pair, failures)
        if material.copies is not None:
            report.copies[self.name] = self.copies(material.copies)
        new = dict.fromkeys(each for each in self.failures if each not in report.failures)
        report.failures.extend(new)
        return self.rows

    def retrieval(self, source: Source) -> GroupReport:
        """Evaluate by groups; each image is a query against all others."""
        gallery, failures = self.embed(source, self.choices.group)
        column = self.columns[id(source), self.choices.group]
        grouped = Grouped(gallery, None, (column, column))
        if not len(grouped.counted):
            raise no_match(source.name, column, queries=source.name)
        found = rank(grouped, self.name, baselines=self.is_first)
        data = self.names[source.name]
        precision = [(each.name, each.precision) for each in found]
        recall = [(each.name, each.recall[:, RECALL_AT.index(1)]) for each in found]
        self.add(data, "retrieval mAP", precision, failures)
        self.add(data, "retrieval recall@1", recall, failures)
        return report_rankings(grouped, found, failures=failures)

    def pair(self, train: Source, test: Source) -> tuple[LabeledPair, list[Failure]]:
        """Embed the labeled images."""
        wanted = self.choices.label
        fitted, judged = (self.embed(source, wanted) for source in (train, test))
        failures = [*fitted[1], *judged[1]]
        columns = (self.columns[id(train), wanted], self.columns[id(test), wanted])
        sources = (train.name, test.name)
        return pair_up(fitted[0], judged[0], columns, sources, failures), failures

    def knn(self, data: str, pair: LabeledPair, failures: list[Failure]) -> KnnReport:
        """Evaluate by neighbors."""
        votes = vote(pair, self.name, ks=(self.choices.k,), baselines=self.is_first)
        guess = (MOST_FREQUENT, pair.right_by_guessing)
        majority = [*((each.name, each.majority) for each in votes), guess]
        weighted = [*((each.name, each.weighted) for each in votes), guess]
        self.add(data, f"kNN majority, k={votes[0].k}", majority, failures)
        self.add(data, f"kNN weighted, k={votes[0].k}", weighted, failures)
        return report_votes(pair, votes, temperature=TEMPERATURE, failures=failures)

    def linear(self, data: str, pair: LabeledPair, failures: list[Failure]) -> LinearReport:
        """Evaluate by a linear classifier."""
        found = classify(
            pair,
            self.name,
            seed=self.choices.seed,
            baselines=self.is_first,
            on_step=self.on_step,
        )
        guess = (MOST_FREQUENT, pair.right_by_guessing)
        right = [*((each.name, each.right) for each in found), guess]
        self.add(data, "linear accuracy", right, failures)
        return report_classified(pair, found, seed=self.choices.seed, failures=failures)

    def copies(self, source: Source) -> CopiesReport:
        """Evaluate by edited copies."""
        seed, failures = self.choices.seed, list[Failure]()
        data = self.names[source.name]
        with self.progress(f"{self.name}, copies of {data}", len(source)) as on_progress:
            views = embed_views(source, self.model, failures, seed=seed, on_progress=on_progress)
        self.failures += [(source.name, *failure) for failure in failures]
        found = find_originals(views, self.name, baselines=self.is_first)
        at_1 = [(each.name, each.recall_at_1) for each in found]
        self.add(data, "copies recall@1", at_1, failures)
        return report_findings(views, found, seed=seed, failures=failures)

    def embed(self, source: Source, wanted: str) -> tuple[Embedded[str], list[Failure]]:
        """Return the embedded images of a source with the values wanted, and those left out."""
        column = self.columns[id(source), wanted]
        key = (id(source), column)
        if key not in self.embedded:
            failures: list[Failure] = []
            with self.progress(f"{self.name}, {self.names[source.name]}", len(source)) as done:
                images = embed_images(
                    source, self.model, labels_of(source, column), failures, on_progress=done
                )
            self.failures += [(source.name, *failure) for failure in failures]
            self.embedded[key] = (images, failures)
        return self.embedded[key]

    def add(
        self,
        data: str,
        score: str,
        outcomes: Sequence[tuple[str, np.ndarray]],
        failures: list[Failure],
    ) -> None:
        """Add a row of the outcomes of the model, which come first, and of baselines."""
        (_, values), *others = outcomes
        baselines = [_figure(*each) for each in others] if self.is_first else []
        self.rows.append(
            _Measured(data=data, score=score, values=values, baselines=baselines, left_out=failures)
        )


def _row(names: Sequence[str], measured: Sequence[_Measured]) -> Row:
    """Return the row of one measurement, from the same row of each model."""
    first = measured[0]
    figures = [_figure(name, each.values) for name, each in zip(names, measured, strict=True)]
    highest = max(figure.value for figure in figures)
    return Row(
        data=first.data,
        score=first.score,
        num_queries=first.values.size,
        models=figures,
        baselines=first.baselines,
        best=[figure.name for figure in figures if figure.value == highest],
        differences=[
            _difference(name, names[0], each.values - first.values)
            for name, each in zip(names[1:], measured[1:], strict=True)
            if each.left_out == first.left_out
        ],
    )


def _figure(name: str, values: np.ndarray) -> Figure:
    return Figure(name=name, value=float(values.mean()), interval=bootstrap_interval(values))


def _difference(model: str, other: str, values: np.ndarray) -> Difference:
    low, high = bootstrap_interval(values)
    return Difference(
        model=model,
        other=other,
        value=float(values.mean()),
        interval=(low, high),
        beyond_noise=low > 0 or high < 0,
    )
