"""The report of a run of several trainings as one HTML file: which is best and by how much, what
was noticed, and all figures.

It is made of generations.json and config.yaml in the folder, and links to the pages of the
trainings in folders of their own. As the page of one training, it loads nothing and runs no script;
names and settings are text and stay text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from featkit.wording import counted
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
    duration,
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
MOST_CLASSES = 12  # named at the top


@dataclass(frozen=True)
class Column:
    """A figure of every row: its title, how it is read and written, and which of all is best where
    more or less is better."""

    title: str
    of: Callable[[Row], float | None]
    written: Callable[[float], str] = figure
    best: Callable[[Sequence[float]], float] | None = None


COLUMNS = (
    Column("kNN", lambda row: row.knn, best=max),
    Column("copies found", lambda row: row.copies, best=max),
    Column("ECE", lambda row: row.ece, best=min),
    Column("sure when wrong", lambda row: row.wrong_confidence),
    Column("shared errors", lambda row: row.shared_errors, lambda share: f"{share:.0%}"),
    Column(
        "parameters",
        lambda row: row.parameters,
        lambda count: f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,.0f}",
    ),
    Column("images a second", lambda row: row.images_per_s, number),
    Column("training took", lambda row: row.seconds, duration),
)


def write_generations_report(folder: Path) -> Path:
    """Write `folder`/report.html anew, whole or not at all, and return its path. Same files, same
    bytes.

    InputError as for standing.read_standing, and where there is a config.yaml that is none of a
    run.
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
    """Kinds of the rows that follow from each other; that of the ensembles where there are no
    others."""
    kinds: list[Kind] = list(dict.fromkeys(row.kind for row in standing.rows))
    return [kind for kind in kinds if kind != "ensemble"] or kinds or ["generation"]


def _about(standing: Standing) -> str:
    classes = ", ".join(standing.classes[:MOST_CLASSES])
    more = (
        f" and {len(standing.classes) - MOST_CLASSES:,} more"
        if len(standing.classes) > MOST_CLASSES
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
        else "none made later beats it"
    )
    other = f" · chosen: {chosen.name}, {chosen.accuracy:.3f}" if chosen is not best else ""
    cards = [
        card("Best accuracy", figure(best.accuracy), f"{best.name} · {gain}{other}", chief=True),
        card("Calibration error", figure(chosen.ece), f"ECE of {chosen.name}, chosen"),
    ]
    if chosen.wrong_confidence is not None:
        cards.append(
            card(
                "Sure when wrong",
                figure(chosen.wrong_confidence),
                f"mean confidence of {chosen.name}",
            )
        )
    kind = _kinds(standing)[0]
    counts = [(one, sum(row.kind == one for row in standing.rows)) for one in PLURALS]
    others = [
        f"{count} {PLURALS[one] if count > 1 else one}"
        for one, count in counts
        if count and one != kind
    ]
    count = next(count for one, count in counts if one == kind)
    cards.append(
        card(
            PLURALS[kind].capitalize(),
            str(count),
            f"and {', '.join(others)}" if others else "all in the table below",
        )
    )
    seconds = sum(row.seconds or 0.0 for row in standing.rows)
    if seconds:
        cards.append(card("Time in training", duration(seconds), "all of them together"))
    return scores(cards)


# -- charts ----------------------------------------------------------------------------------------


def _charts(standing: Standing) -> str:
    kinds = _kinds(standing)
    groups = []
    for kind in kinds:
        beside: tuple[Kind, ...] = (kind, "ensemble") if kind == kinds[0] else (kind,)
        rows = sorted(
            (row for row in standing.rows if row.kind in beside),
            key=lambda row: row.kind == "ensemble",
        )
        if len(rows) > 1:
            head = f"<h3>{HEADS[kind]}</h3>" if len(kinds) > 1 else ""
            groups.append(f'{head}<div class="charts">{_figures(kind, rows, standing)}</div>')
    if not groups:
        return ""
    lead = (
        "Bars are one standard error up and down; a ring is the one chosen. Point at a place for"
        " its figures."
    )
    return (
        f'<section><h2>Beside each other</h2><p class="lead">{lead}</p>{"".join(groups)}</section>'
    )


def _figures(kind: Kind, rows: Sequence[Row], standing: Standing) -> str:
    places = [
        Place(row.name, joined=row.kind != "ensemble", chosen=row.name == standing.chosen)
        for row in rows
    ]
    accuracy = Series(
        "accuracy", [row.accuracy for row in rows], [row.standard_error for row in rows]
    )
    images = f"Of {counted(standing.num_held_out, 'held-out image')}."
    apart = (
        " Diamonds are ensembles."
        if kind != "ensemble" and not all(place.joined for place in places)
        else ""
    )
    parts = [_figure(f"Accuracy by {kind}", places_chart(places, [accuracy]), f"{images}{apart}")]
    timed = [place for place, row in enumerate(rows) if row.images_per_s is not None]
    if kind == "exit" and len(timed) > 1:
        at = Series(
            "accuracy",
            [rows[place].accuracy for place in timed],
            [rows[place].standard_error for place in timed],
        )
        drawing = speed_chart(
            [places[place] for place in timed],
            at,
            [rows[place].images_per_s or 0.0 for place in timed],
        )
        parts.insert(
            0,
            _figure(
                "Accuracy over images a second", drawing, f"Up is better, right is faster.{apart}"
            ),
        )
    features = [
        Series("kNN", [row.knn for row in rows]),
        Series("copies", [row.copies for row in rows]),
    ]
    features = [one for one in features if _is_drawn(one)]
    if features:
        words = {
            "kNN": "kNN: neighbors carry the label.",
            "copies": "Copies: an edited image finds its original.",
        }
        about = " ".join(words[one.name] for one in features)
        parts.append(
            _figure("What the features are worth", places_chart(places, features), about, features)
        )
    for title, values, about in (
        (
            "Calibration error (ECE)",
            [row.ece for row in rows],
            "Mean distance of confidence from accuracy. Lower is better.",
        ),
        (
            "Sure when wrong",
            [row.wrong_confidence for row in rows],
            "Mean confidence in wrong answers. A rise is a warning.",
        ),
    ):
        one = Series(title, values)
        if _is_drawn(one):
            parts.append(_figure(title, places_chart(places, [one]), about))
    return "".join(parts)


def _is_drawn(series: Series) -> bool:
    """A figure that a single place has needs no chart."""
    return sum(value is not None for value in series.values) > 1


def _figure(title: str, drawing: str, about: str, legend: Sequence[Series] = ()) -> str:
    names = "".join(
        f'<span><i class="c{color}"></i>{text(one.name)}</span>' for color, one in enumerate(legend)
    )
    key = f'<span class="legend">{names}</span>' if len(legend) > 1 else ""
    return (
        "<figure"
        f' class="card"><figcaption><b>{text(title)}</b>{key}</figcaption>{drawing}<p>{text(about)}</p></figure>'
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
        for title in ("", "accuracy", "over the first", *titles)
    )
    lines = "".join(_line(folder, standing, row, columns) for row in rows)
    return (
        '<section><h2>All figures</h2><p class="lead">The best of a column is bold where more or'
        " less is better. Shared errors "
        "are those of the teacher that the student repeats.</p>"
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
    """A row's name, which leads to the page of its training where there is one: in the folder of
    that name, or of the exits."""
    place = NETWORK if row.kind == "exit" else row.name
    inside = place not in (".", "..") and Path(place).name == place
    if inside and (folder / place / REPORT_FILE).is_file():
        return f'<a href="{text(quote(place, errors="surrogateescape"))}/{REPORT_FILE}">{breakable(row.name)}</a>'
    return breakable(row.name)
