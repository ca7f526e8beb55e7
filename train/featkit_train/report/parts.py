"""Building blocks of the reports: the page, cards, notes, settings, and escaped text."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from featkit.atomic import write_text
from featkit.images import printable
from featkit_train.report.charts import number

REPORT_FILE = "report.html"


def write_page(
    folder: Path,
    *,
    title: str,
    kind: str,
    name: str,
    about: str,
    body: Sequence[str],
    below: str = "",
    more_style: str = "",
) -> Path:
    """Write `folder`/report.html, complete or not at all, and return its path. The same arguments
    give the same bytes.

    kind: the line above the name. below: HTML at the end of the head. body: HTML sections.
    more_style: CSS in addition to report.css.
    """
    here = Path(__file__).parent
    page = Template((here / "report.html").read_text(encoding="utf-8")).substitute(
        title=text(title),
        style="\n".join(
            filter(
                None,
                [(here / "report.css").read_text(encoding="utf-8").strip(), more_style.strip()],
            )
        ),
        kind=text(kind),
        name=text(name),
        about=text(about),
        below=f"\n{below}" if below else "",
        body="\n".join(part for part in body if part),
        footer=text(
            f"Written by featkit from the run folder {folder.resolve().name}; `featkit report`"
            " writes it again."
        ),
    )
    write_text(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def scores(cards: Sequence[str]) -> str:
    """Return a row of cards, or a sentence if nothing has been measured."""
    if not cards:
        return '<p class="none">Nothing has been measured yet.</p>'
    return f'<dl class="scores">{"".join(cards)}</dl>'


def card(title: str, value: str, words: str, *, chief: bool = False) -> str:
    """Return a card: a value under its title, and a caption below. chief: the value to judge the
    run by."""
    kind = "card chief" if chief else "card"
    return (
        "<div"
        f' class="{kind}"><dt>{text(title)}</dt><dd>{text(value)}</dd><p>{text(words)}</p></div>'
    )


def noticed(notes: Sequence[tuple[str, str]], *, more: str = "") -> str:
    """Return the notes as a section, each with its step or subject; "" without notes. more: a
    line below them."""
    if not notes:
        return ""
    items = "".join(
        f'<li class="card"><b>{text(where)}</b><span>{text(note)}</span></li>'
        for where, note in notes
    )
    line = f'<p class="none">{text(more)}</p>' if more else ""
    return f'<section><h2>Notes</h2><ul class="notes">{items}</ul>{line}</section>'


def settings_list(rows: Sequence[tuple[str, Any]]) -> str:
    """Return dotted names and values in as many columns as fit."""
    lines = "".join(
        f"<div><dt><code>{breakable(name)}</code></dt><dd>{text(_setting(value))}</dd></div>"
        for name, value in rows
    )
    return f'<dl class="card settings">{lines}</dl>'


def _setting(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "–"
    return number(value) if isinstance(value, float) else str(value)


def text(words: str) -> str:
    """Escape `words`; bytes of a name that are not UTF-8 become escapes."""
    return html.escape(printable(words))


def breakable(name: str) -> str:
    """Escape a name and let it break after separators, never within an entity."""
    return text(name).replace("/", "/<wbr>").replace("_", "_<wbr>").replace(".", ".<wbr>")
