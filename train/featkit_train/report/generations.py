"""The report of a course as one HTML file: the best training and its gain, remarks, charts and a
table.

It is built from generations.json and config.yaml, and links to the reports of the trainings in the
subfolders. Like the report of one run, it loads nothing and runs no script, and it escapes every
name and setting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from featkit.wording import counted, duration
from featkit_train.report.charts import number
from featkit_train.report.page import (
    CONFIG_FILE,
    flattened,
    method_name,
    read_config,
    settings_section,
)
from featkit_train.report.parts import (
    REPORT_FILE,
    breakable,
    card,
    noticed,
    scores,
    text,
    write_page,
)
from featkit_train.report.standing_charts import Place, Series, figure, places_chart, speed_chart
from featkit_train.watching.standing import NETWORK, Kind, Row, Standing, read_standing

HEADS: dict[Kind, str] = {
    "generation": "Generations",
    "round": "Rounds of self-training",
    "exit": "Exits of one network",
    "ensemble": "Ensembles",
}
PLURALS: dict[Kind, str] = {
    "generation": "generations",
    "round": "rounds",
    "exit": "exits",
    "ensemble": "ensembles",
}
CHOSEN = ' class="chosen"'
MAX_CLASSES = 12  # named at the top


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, value and text, and whether the highest or the lowest value
    is best."""

    title: str
    of: Callable[[Row], float | None]
    written: Callable[[float], str] = figure
    best: Callable[[Sequence[float]], float] | None = None


COLUMNS = (
    Column("kNN", lambda row: row.knn, best=max),
    Column("copy recall", lambda row: row.copies, best=max),
    Column("ECE", lambda row: row.ece, best=min),
    Column("confidence when wrong", lambda row: row.wrong_confidence),
    Column("shared errors", lambda row: row.shared_errors, lambda share: f"{share:.0%}"),
    Column(
        "parameters",
        lambda row: row.parameters,
        lambda count: f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,.0f}",
    ),
    Column("images per second", lambda row: row.images_per_s, number),
    Column("training time", lambda row: row.seconds, duration),
)


def write_generations_report(folder: Path) -> Path:
    """Write `folder`/report.html, complete or not at all, and return its path. The same files give
    the same bytes.

    InputError as in standing.read_standing, or if config.yaml does not describe a run.
    """
    standing = read_standing(folder)
    has_config = (folder / CONFIG_FILE).is_file()
    record = read_config(folder) if has_config else {}
    name = standing.name or folder.resolve().name
    body = [
        _scores(standing),
        noticed([(remark.name.replace("_", " "), remark.sentence) for remark in standing.remarks]),
        _charts(standing),
        _table(folder, standing),
        settings_section(dict(flattened(record["config"])), record) if has_config else "",
    ]
    return write_page(
        folder,
        title=f"{name}: report of {PLURALS[_kinds(standing)[0]]}",
        kind=HEADS[_kinds(standing)[0]],
        name=name,
        about=_about(standing),
        body=body,
        more_style=(Path(__file__).parent / "generations.css").read_text(encoding="utf-8"),
    )


# -- the top ---------------------------------------------------------------------------------------


def _kinds(standing: Standing) -> list[Kind]:
    """Return the kinds of the rows in their order, without ensembles if there are others."""
    kinds: list[Kind] = list(dict.fromkeys(row.kind for row in standing.rows))
    return [kind for kind in kinds if kind != "ensemble"] or kinds or ["generation"]


def _about(standing: Standing) -> str:
    classes = ", ".join(standing.classes[:MAX_CLASSES])
    more = (
        f" and {len(standing.classes) - MAX_CLASSES:,} more"
        if len(standing.classes) > MAX_CLASSES
        else ""
    )
    parts = [
        f"by {method_name(standing.method).replace('_', ' ')}" if standing.method else "",
        counted(standing.num_held_out, "held-out image"),
        (
            f"{counted(len(standing.classes), 'class', 'classes')}: {classes}{more}"
            if standing.classes
            else ""
        ),
    ]
    return " · ".join(part for part in parts if part)


def _scores(standing: Standing) -> str:
    best = standing.best
    if best is None:
        return scores([])
    first, chosen = standing.rows[0], standing.row(standing.chosen)
    gain = (
        f"{best.accuracy - first.accuracy:+.3f} over {first.name}"
        if best is not first
        else "no later one beats it"
    )
    other = f" · chosen: {chosen.name}, {chosen.accuracy:.3f}" if chosen is not best else ""
    cards = [
        card("Best accuracy", figure(best.accuracy), f"{best.name} · {gain}{other}", chief=True),
        card("Calibration error", figure(chosen.ece), f"ECE of {chosen.name}, chosen"),
    ]
    if chosen.wrong_confidence is not None:
        cards.append(
            card(
                "Confidence when wrong",
                figure(chosen.wrong_confidence),
                f"mean of {chosen.name}",
            )
        )
    kind = _kinds(standing)[0]
    counts = Counter(row.kind for row in standing.rows)
    others = [
        counted(counts[other], other, PLURALS[other])
        for other in PLURALS
        if counts[other] and other != kind
    ]
    cards.append(
        card(
            PLURALS[kind].capitalize(),
            str(counts[kind]),
            f"and {', '.join(others)}" if others else "all in the table below",
        )
    )
    seconds = sum(row.seconds or 0.0 for row in standing.rows)
    if seconds:
        cards.append(card("Time in training", duration(seconds), "all trainings together"))
    return scores(cards)


# -- charts ----------------------------------------------------------------------------------------


def _charts(standing: Standing) -> str:
    kinds = _kinds(standing)
    groups = []
    for kind in kinds:
        # Ensembles are compared with the first kind, whose members they have.
        compared: tuple[Kind, ...] = (kind, "ensemble") if kind == kinds[0] else (kind,)
        rows = sorted(
            (row for row in standing.rows if row.kind in compared),
            key=lambda row: row.kind == "ensemble",
        )
        if len(rows) > 1:
            head = f"<h3>{HEADS[kind]}</h3>" if len(kinds) > 1 else ""
            groups.append(f'{head}<div class="charts">{_figures(kind, rows, standing)}</div>')
    if not groups:
        return ""
    lead = (
        "Bars show one standard error up and down; a ring marks the chosen one. Point at a column"
        " for its figures."
    )
    return f'<section><h2>Comparison</h2><p class="lead">{lead}</p>{"".join(groups)}</section>'


def _figures(kind: Kind, rows: Sequence[Row], standing: Standing) -> str:
    places = [
        Place(row.name, joined=row.kind != "ensemble", chosen=row.name == standing.chosen)
        for row in rows
    ]
    has_ensembles = kind != "ensemble" and not all(place.joined for place in places)
    diamonds = " Diamonds are ensembles." if has_ensembles else ""
    images = f"Of {counted(standing.num_held_out, 'held-out image')}."
    accuracy = places_chart(places, [_accuracy(rows)])
    figures = [
        _speed_figure(places, rows, diamonds) if kind == "exit" else "",
        _figure(f"Accuracy by {kind}", accuracy, f"{images}{diamonds}"),
        _features_figure(places, rows),
    ]
    for title, values, about in (
        (
            "Calibration error (ECE)",
            [row.ece for row in rows],
            "Mean distance of confidence from accuracy. Lower is better.",
        ),
        (
            "Confidence when wrong",
            [row.wrong_confidence for row in rows],
            "Mean confidence in wrong answers. A rise is a warning.",
        ),
    ):
        series = Series(title, values)
        if _is_drawn(series):
            figures.append(_figure(title, places_chart(places, [series]), about))
    return "".join(figures)


def _accuracy(rows: Sequence[Row]) -> Series:
    return Series("accuracy", [row.accuracy for row in rows], [row.standard_error for row in rows])


def _speed_figure(places: Sequence[Place], rows: Sequence[Row], diamonds: str) -> str:
    timed = [
        (place, row, row.images_per_s)
        for place, row in zip(places, rows, strict=True)
        if row.images_per_s is not None
    ]
    if len(timed) < 2:
        return ""
    drawing = speed_chart(
        [place for place, _, _ in timed],
        _accuracy([row for _, row, _ in timed]),
        [rate for _, _, rate in timed],
    )
    about = f"Up is better, right is faster.{diamonds}"
    return _figure("Accuracy over images per second", drawing, about)


def _features_figure(places: Sequence[Place], rows: Sequence[Row]) -> str:
    words = {
        "kNN": "kNN: neighbors have the same label.",
        "copies": "Copies: an edited image finds its original.",
    }
    series = [
        Series("kNN", [row.knn for row in rows]),
        Series("copies", [row.copies for row in rows]),
    ]
    drawn = [each for each in series if _is_drawn(each)]
    if not drawn:
        return ""
    about = " ".join(words[each.name] for each in drawn)
    return _figure("Quality of the features", places_chart(places, drawn), about, drawn)


def _is_drawn(series: Series) -> bool:
    """Return whether at least two places have a value; a single one needs no chart."""
    return sum(value is not None for value in series.values) > 1


def _figure(title: str, drawing: str, about: str, legend: Sequence[Series] = ()) -> str:
    names = "".join(
        f'<span><i class="c{color}"></i>{text(series.name)}</span>'
        for color, series in enumerate(legend)
    )
    key = f'<span class="legend">{names}</span>' if len(legend) > 1 else ""
    return (
        f'<figure class="card"><figcaption><b>{text(title)}</b>{key}</figcaption>{drawing}'
        f"<p>{text(about)}</p></figure>"
    )


# -- the table -------------------------------------------------------------------------------------


def _table(folder: Path, standing: Standing) -> str:
    rows = standing.rows
    if not rows:
        return ""
    columns = [column for column in COLUMNS if any(column.of(row) is not None for row in rows)]
    titles = [column.title for column in columns]
    head = "".join(
        f'<th scope="col">{text(title)}</th>'
        for title in ("", "accuracy", "gain over the first", *titles)
    )
    lines = "".join(_line(folder, standing, row, columns) for row in rows)
    return (
        '<section><h2>All figures</h2><p class="lead">The best value of a column is bold.'
        " Shared errors are the teacher's mistakes that the student repeats.</p>"
        '<div class="card scroll" tabindex="0" role="region" aria-label="All figures"><table'
        ' class="standing">'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def _line(folder: Path, standing: Standing, row: Row, columns: Sequence[Column]) -> str:
    first, chosen = standing.rows[0], row.name == standing.chosen
    about = [text(row.kind)] if not row.name.startswith(row.kind) else []
    below = (
        f"<small>{' · '.join([*about, '<b>chosen</b>'] if chosen else about)}</small>"
        if about or chosen
        else ""
    )
    share = _strong(figure(row.accuracy), row is standing.best and len(standing.rows) > 1)
    gain = (
        '<td class="absent">–</td>'
        if row is first
        else f"<td>{row.accuracy - first.accuracy:+.3f}</td>"
    )
    cells = "".join(_cell(column, row, standing.rows) for column in columns)
    return (
        f'<tr{CHOSEN if chosen else ""}><th scope="row">{_link(folder, row)}{below}</th>'
        f"<td>{share} <small>± {row.standard_error:.3f}</small></td>{gain}{cells}</tr>"
    )


def _cell(column: Column, row: Row, rows: Sequence[Row]) -> str:
    value = column.of(row)
    if value is None:
        return '<td class="absent">–</td>'
    known = [other for other in map(column.of, rows) if other is not None]
    best = (
        column.best is not None
        and len(known) > 1
        and value == column.best(known)
        and min(known) < max(known)
    )
    return f"<td>{_strong(text(column.written(value)), best)}</td>"


def _strong(words: str, best: bool) -> str:
    return f"<b>{words}</b>" if best else words


def _link(folder: Path, row: Row) -> str:
    """Return a row's name, as a link if its training has a report in the subfolder of that name.

    Exits share the report of their network.
    """
    subfolder = NETWORK if row.kind == "exit" else row.name
    # generations.json may come from elsewhere: never link out of the folder.
    is_inside = subfolder not in (".", "..") and Path(subfolder).name == subfolder
    if not is_inside or not (folder / subfolder / REPORT_FILE).is_file():
        return breakable(row.name)
    href = f"{text(quote(subfolder, errors='surrogateescape'))}/{REPORT_FILE}"
    return f'<a href="{href}">{breakable(row.name)}</a>'
