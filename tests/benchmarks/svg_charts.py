"""Draw figures of benchmarks as SVG files for the documentation, in the colors of the run report.

A file stands alone: it holds its styles, and a light ground on which it is read on a dark page,
too. Lengths are in pixels at the width of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from featkit_train.report.charts import nice_ticks, number

WIDTH, HEIGHT = 760.0, 300.0
TOP, BOTTOM, LEFT, RIGHT = 38.0, 52.0, 52.0, 178.0
ROW_HEIGHT, NAMES, PANEL_GAP, HEAD = 30.0, 190.0, 26.0, 44.0
LABEL_HEIGHT = 15.0
COLORS = ("#c23f21", "#1f6f8b", "#7a4fb5", "#3f7d3a")  # --c0 to --c3 of report.css
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#6d6678}.name{font-weight:600}"
    ".value{fill:#201c2b;font-weight:600}.grid{stroke:#e4ddd3}.axis{stroke:#6d6678}"
    ".rule{stroke:#6d6678;stroke-dasharray:5 4}.line{fill:none;stroke-width:2}"
)


@dataclass(frozen=True)
class Line:
    """Values of one thing by column, None for gaps, and standard errors, 0 for no bar.

    color: its index in COLORS. is_faint: a single seed, drawn as small dots without a label.
    joined: the number of first columns that a line joins. crossed: columns marked as failed.
    """

    name: str
    values: Sequence[float | None]
    errors: Sequence[float] = ()
    color: int = 0
    is_faint: bool = False
    is_dashed: bool = False
    joined: int | None = None
    crossed: Sequence[int] = ()
    with_values: bool = False


@dataclass(frozen=True)
class Panel:
    """One figure of all rows: the values of each row's seeds. rule: a name and a value to compare
    them with."""

    title: str
    values: Sequence[Sequence[float]]
    rule: tuple[str, float] | None = None


def columns_chart(
    columns: Sequence[str],
    lines: Sequence[Line],
    *,
    title: str,
    rules: Sequence[tuple[str, float]] = (),
    describe: str,
) -> str:
    """Return a chart of lines over named columns, and horizontal rules; names are at the right end.

    A column's name may have a second line after a newline. describe: the chart in words.
    """
    known = [value for line in lines for value in line.values if value is not None]
    bars = [
        value + sign * error
        for line in lines
        for value, error in zip(line.values, line.errors, strict=False)
        if value is not None
        for sign in (-1, 1)
    ]
    everything = [*known, *bars, *(value for _, value in rules)] or [0.0, 1.0]
    low, high, ticks = nice_ticks(min(everything), max(everything), 5)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(columns))

    def x(column: int) -> float:
        return LEFT + (column + 0.5) * step

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_text(title, LEFT - 40, 18, kind="name")]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(number(round(tick, 6)), LEFT - 8, y(tick) + 4, anchor="end"))
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    for column, name in enumerate(columns):
        for row, words in enumerate(name.split("\n")):
            parts.append(_text(words, x(column), HEIGHT - BOTTOM + 18 + 15 * row, anchor="middle"))
    ends: list[tuple[float, str, str]] = []
    for name, value in rules:
        parts.append(f'<path class="rule" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        ends.append((y(value), f"{name} {number(value)}", "#6d6678"))
    for line in lines:
        parts += _line(line, [x(column) for column in range(len(columns))], y)
        drawn = [value for value in line.values if value is not None]
        if drawn and not line.is_faint:
            ends.append((y(drawn[-1]), line.name, COLORS[line.color]))
    parts += _ends(ends)
    return _svg(parts, height=HEIGHT, describe=describe)


def rows_chart(rows: Sequence[str], panels: Sequence[Panel], *, describe: str) -> str:
    """Return a chart with a row for each thing and a panel for each figure: a dot for each seed,
    and their mean in numbers."""
    height = HEAD + ROW_HEIGHT * len(rows) + 36
    width = (WIDTH - NAMES - PANEL_GAP * len(panels)) / max(1, len(panels))
    middles = [HEAD + ROW_HEIGHT * (row + 0.5) for row in range(len(rows))]
    parts = [
        _text(name, 12, middle + 4, kind="value")
        for name, middle in zip(rows, middles, strict=True)
    ]
    for index, panel in enumerate(panels):
        left = NAMES + index * (width + PANEL_GAP)
        parts += _panel(panel, left, width, middles, COLORS[index % len(COLORS)])
    return _svg(parts, height=height, describe=describe)


def _panel(
    panel: Panel, left: float, width: float, middles: Sequence[float], color: str
) -> list[str]:
    """Return a panel's title, axis, rule and dots."""
    everything = [value for values in panel.values for value in values]
    if panel.rule is not None:
        everything.append(panel.rule[1])
    low, high, ticks = nice_ticks(
        min(everything, default=0.0), max(everything, default=1.0), max(2, int(width / 60))
    )
    top, bottom = HEAD, middles[-1] + ROW_HEIGHT / 2

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - 40)  # room for the mean

    parts = [_text(panel.title, left, 18, kind="name")]
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{bottom}"/>')
        words = number(round(tick, 6))
        parts.append(_text(words, x(tick), bottom + 16, anchor="middle"))
    if panel.rule is not None:
        name, value = panel.rule
        parts.append(f'<path class="rule" d="M{x(value):.1f} {top - 6}V{bottom}"/>')
        parts.append(_text(f"{name} {number(value)}", x(value), top - 10, anchor="middle"))
    for values, middle in zip(panel.values, middles, strict=True):
        parts += [_dot(x(value), middle, 4.5, color) for value in values]
        if values:
            mean = sum(values) / len(values)
            at = max(map(x, values)) + 8
            parts.append(_text(f"{mean:.1f}", at, middle + 4, kind="value"))
    return parts


def _line(line: Line, xs: Sequence[float], y: object) -> list[str]:
    """Return a line with its bars, dots, crosses and values."""
    assert callable(y)
    color = COLORS[line.color]
    known = [
        (column, xs[column], y(value), value)
        for column, value in enumerate(line.values)
        if value is not None
    ]
    joined = [
        f"{x:.1f} {at:.1f}"
        for column, x, at, _ in known
        if line.joined is None or column < line.joined
    ]
    parts = []
    if len(joined) > 1 and not line.is_faint:
        dash = ' stroke-dasharray="6 4"' if line.is_dashed else ""
        parts.append(f'<path class="line" stroke="{color}"{dash} d="M{"L".join(joined)}"/>')
    for column, x, at, value in known:
        error = line.errors[column] if line.errors else 0.0
        if error:
            top, bottom = y(value + error), y(value - error)
            path = f"M{x - 4:.1f} {top:.1f}h8m-4 0V{bottom:.1f}m-4 0h8"
            parts.append(f'<path d="{path}" fill="none" stroke="{color}"/>')
        if column in line.crossed:
            path = f"M{x - 5:.1f} {at - 5:.1f}l10 10m0-10l-10 10"
            parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        elif line.is_faint:
            parts.append(_dot(x, at, 2.5, color, opacity=0.45))
        else:
            parts.append(_dot(x, at, 4.5, color))
        if line.with_values:
            parts.append(_text(f"{value:.1f}", x + 9, at - 6, kind="value"))
    return parts


def _ends(ends: Sequence[tuple[float, str, str]]) -> list[str]:
    """Return the names (y, words, color) at the right end, moved so that they do not overlap."""
    parts, free = [], TOP - LABEL_HEIGHT
    for rank, (at, words, color) in enumerate(sorted(ends)):
        room = HEIGHT - BOTTOM - (len(ends) - 1 - rank) * LABEL_HEIGHT
        free = max(min(at, room), free + LABEL_HEIGHT)
        style = f' style="fill:{color}"'
        parts.append(_text(words, WIDTH - RIGHT + 10, free + 4, kind="name", more=style))
    return parts


def _dot(x: float, y: float, radius: float, color: str, *, opacity: float = 1.0) -> str:
    faint = f' opacity="{opacity}"' if opacity < 1 else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}"{faint}/>'


def _text(
    words: str, x: float, y: float, *, anchor: str = "start", kind: str = "", more: str = ""
) -> str:
    style = f' class="{kind}"' if kind else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}{more}>{escape(words)}</text>'
    )


def _svg(parts: Sequence[str], *, height: float, describe: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" role="img"'
        f" aria-label={quoteattr(describe)}><style>{STYLE}</style>"
        f'<rect width="{WIDTH:g}" height="{height:g}" rx="8" fill="#fff"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )
