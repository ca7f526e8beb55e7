"""The table of all evaluations, as text: its columns, rows, marks and notes, and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from featkit.evaluate.all_report import AllReport, Difference, Figure, Row
from featkit.evaluate.baselines import CENTERED_PIXELS, CHANCE, PERCEPTUAL_HASH, PLAIN_PIXELS
from featkit.evaluate.copies import NUM_EDITS
from featkit.evaluate.knn import TEMPERATURE
from featkit.evaluate.labels import MOST_FREQUENT
from featkit.evaluate.linear import MAX_ITERATIONS, SMALL_PIXELS
from featkit.wording import counted, on_one_line

# Baselines that never stand in the same row share a column.
BASELINE_COLUMNS = (
    (CENTERED_PIXELS, SMALL_PIXELS),
    (CHANCE, MOST_FREQUENT),
    (PLAIN_PIXELS,),
    (PERCEPTUAL_HASH,),
)
DIFFERENCE = "difference"
BEST, NOT_BEATEN, NOISE = "*", "!", "~"


@dataclass(frozen=True)
class Cell:
    """A figure and its interval as text, and what is remarkable about it: a mark, or nothing."""

    value: str = ""
    interval: str = ""
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows as text.

    columns: the models, the difference of the first two if there are two, and the baselines.
    num_compared: how many columns come before the baselines. rows: data, score and a cell per
    column.
    """

    columns: list[str]
    num_compared: int
    rows: list[tuple[str, str, list[Cell]]]


def table_of(report: AllReport) -> Table:
    """Return a report as text."""
    measured = {each.name for row in report.rows for each in row.baselines}
    shared = [tuple(name for name in names if name in measured) for names in BASELINE_COLUMNS]
    shared = [names for names in shared if names]
    compared = [*report.models, *([DIFFERENCE] if len(report.models) > 1 else [])]
    return Table(
        columns=[*compared, *(" / ".join(names) for names in shared)],
        num_compared=len(compared),
        rows=[
            (row.data, row.score, [*_compared(row), *(_baseline(row, names) for names in shared)])
            for row in report.rows
        ],
    )


def markdown(report: AllReport) -> str:
    """Return a report as a table and a list of notes in Markdown.

    The best model is bold, and so is every baseline that no model beats.
    """
    table = table_of(report)
    lines = [
        _line(["", *map(_escaped, table.columns)]),
        _line(["---", *("---:" for _ in table.columns)]),
        *(
            _line([f"{_escaped(data)}, {score}", *map(_in_markdown, cells)])
            for data, score, cells in table.rows
        ),
        "",
        *(f"- {_escaped(note)}" for note in notes(report)),
        "- Bold: the best model, and baselines that no model beats.",
    ]
    if report.failures:
        lines.append(f"- Left out: {counted(len(report.failures), 'image')} that cannot be used.")
    return "\n".join(lines)


def notes(report: AllReport) -> list[str]:
    """Return what the figures of a report are, one sentence or two per source."""
    first = report.models[0]
    lines = []
    for source, groups in report.retrieval[first].items():
        alone = (
            f" Not counted: {counted(groups.num_alone, 'query', 'queries')} whose group has no"
            " other image."
            if groups.num_alone
            else ""
        )
        lines.append(
            f"{report.names[source]}: {counted(groups.num_queries, 'query', 'queries')} among"
            f" {counted(groups.num_images, 'image')} of {counted(groups.num_groups, 'group')}, by"
            f" the column {groups.columns[0]}; each image is a query against all others.{alone}"
        )
    lines += _on_labels(report)
    for source in report.sources["copies"]:
        copies = report.copies[first]
        lines.append(
            f"{report.names[source]}: {counted(copies.num_images, 'image')}, each queried by"
            f" {NUM_EDITS} edited copies (edits v{copies.edits_version}, seed {copies.seed})."
        )
    lines.append("Intervals are 95 % bootstrap intervals over the queries' images.")
    if len(report.models) > 1:
        lines.append(
            f"The difference is that of {report.models[1]} minus {first}, by a paired bootstrap"
            " over the same queries."
        )
    return lines


def _on_labels(report: AllReport) -> list[str]:
    if not report.knn:
        return []
    first = report.models[0]
    (train,), (test,) = report.sources["train"], report.sources["test"]
    knn = report.knn[first]
    unseen = (
        f" Test images whose label is not in {report.names[train]}: {knn.num_unseen:,}."
        if knn.num_unseen
        else ""
    )
    if knn.num_near_copies:
        unseen += (
            f" Test images that can be found in {report.names[train]} as well:"
            f" {knn.num_near_copies:,}."
        )
    distinct = list(dict.fromkeys(knn.columns))
    columns = f"{'column' if len(distinct) == 1 else 'columns'} {' and '.join(distinct)}"
    lines = [
        f"{report.names[test]}: {counted(knn.num_test, 'image')} of"
        f" {counted(knn.num_labels, 'label')} by {knn.num_train:,} of {report.names[train]}, by"
        f" the {columns}. A weighted vote is exp(cosine / {TEMPERATURE:g}).{unseen}"
    ]
    if report.linear:
        lines.append(
            f"linear accuracy: the pixels are those of the image at 8×8; l2 is chosen on"
            f" {counted(report.linear[first].num_held_out, 'held-out training image')} (seed"
            f" {report.linear[first].seed})."
        )
    unfinished = [
        score.name
        for linear in report.linear.values()
        for score in linear.scores
        if not score.converged
    ]
    if unfinished:
        lines.append(
            f"Classifiers not converged after {MAX_ITERATIONS:,} steps: {', '.join(unfinished)}."
        )
    return lines


def _compared(row: Row) -> list[Cell]:
    """Return the cells of the models, and of the difference of the first two."""
    marked = row.best if len(row.models) > 1 else []
    cells = [_cell(each, BEST if each.name in marked else "") for each in row.models]
    if len(row.models) > 1:
        second = row.models[1].name
        cells.append(
            next((_difference(each) for each in row.differences if each.model == second), Cell())
        )
    return cells


def _baseline(row: Row, names: tuple[str, ...]) -> Cell:
    """Return the cell of the baseline that has one of these names."""
    highest = max(each.value for each in row.models)
    return next(
        (
            _cell(each, NOT_BEATEN if each.value >= highest else "")
            for each in row.baselines
            if each.name in names
        ),
        Cell(),
    )


def _cell(figure: Figure, mark: str) -> Cell:
    low, high = figure.interval
    return Cell(f"{figure.value:.3f}", f"{low:.3f}–{high:.3f}", mark)


def _difference(difference: Difference) -> Cell:
    low, high = difference.interval
    mark = "" if difference.beyond_noise else NOISE
    return Cell(f"{difference.value:+.3f}", f"{low:+.3f} to {high:+.3f}", mark)


def _in_markdown(cell: Cell) -> str:
    if not cell.value:
        return ""
    if cell.mark == NOISE:
        return f"{cell.value} ({cell.interval}), within noise"
    value = f"**{cell.value}**" if cell.mark else cell.value
    return f"{value} ({cell.interval})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Return a name on one line, with its characters that would end a cell or begin a style."""
    text = on_one_line(text).replace("\\", "\\\\")
    for character in "|*`<[":
        text = text.replace(character, f"\\{character}")
    return text
