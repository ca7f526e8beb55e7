"""The report of a run as one HTML file: scores, notes, curves, images over time and settings.

It is built only from the files in the run's folder, so it can be written again at any time, even
while the run continues. It loads nothing, runs no script, and forbids both by its content security
policy. Names and settings are escaped.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from featkit.atomic import explain_os_errors
from featkit.errors import InputError
from featkit.wording import counted, duration
from featkit_train.method_list import list_methods
from featkit_train.renamed import current_keys
from featkit_train.report.charts import beyond_the_frame, chart, in_words, number
from featkit_train.report.metrics import Curve, Metrics, read_metrics
from featkit_train.report.panels import SECTIONS, Panel, arrange
from featkit_train.report.parts import (
    breakable,
    card,
    noticed,
    scores,
    settings_list,
    text,
    write_page,
)
from featkit_train.watching.snapshot_files import (
    SNAPSHOTS,
    Snapshot,
    list_snapshots,
    read_heads,
    read_photographs,
)

CONFIG_FILE, METRICS_FILE, NOTES_FILE = "config.yaml", "metrics.jsonl", "notes.jsonl"
MAX_NOTES, MAX_MARKS = 50, 8
COPIES = "copy_recall"
SCORES = re.compile("accuracy|copy_recall.*|knn.*")  # curves shown as cards at the top
TITLES = {
    "accuracy": "Accuracy, held out",
    COPIES: "Copy recall@1",
    "knn": "kNN accuracy",
}
# Settings that are shown at once if a run has them; all others are in the full table.
MAIN_SETTINGS = (
    "method init model.patch model.width model.depth model.num_heads crops.global_size"
    " crops.local_size crops.num_local optim.lr optim.warmup_steps optim.weight_decay"
    " teacher.momentum teacher.momentum_end dino.momentum dino.momentum_end dino.centering"
    " dino.teacher_temp dino.teacher_temp_end dino.student_temp dino.koleo_weight"
    " dino.head.num_prototypes ibot.weight ibot.mask_probability gram.weight gram.teacher"
    " pretrained.name classifier.arch classifier.exits knowledge.mode knowledge.temperature"
    " born_again.generations self_training.rounds self_training.confidence internal.alpha"
    " internal.temperature optim.optimizer run.steps run.batch_size run.seed run.precision"
    " run.device"
).split()

LOCAL_CROPS = ("crops.local_size", "crops.num_local")


def write_run_report(run: Path) -> Path:
    """Write `run`/report.html, complete or not at all, and return its path. The same files give the
    same bytes.

    Reads config.yaml and, if they exist, metrics.jsonl, notes.jsonl and snapshots/. InputError if
    `run` is not a run folder.
    """
    record = read_config(run)
    config, metrics, notes = (
        record["config"],
        read_metrics(run / METRICS_FILE),
        read_notes(run / NOTES_FILE),
    )
    settings = dict(flattened(config))
    body = [
        _scores(metrics, settings),
        _notes(notes),
        _curves(metrics, [step for step, _ in notes]),
        _images(run / SNAPSHOTS),
        settings_section(settings, record, began=metrics.curves.get("momentum")),
    ]
    name = str(settings.get("name") or run.resolve().name)
    # The trainings of a course share its name, so their folder names distinguish them.
    is_of_course = (run.resolve().parent / CONFIG_FILE).is_file()
    progress, percent = _progress(metrics, settings)
    done = (
        f'<div class="progress" role="img" aria-label="{text(progress)}"><i'
        f' style="width:{percent:.1f}%"></i></div>\n<p class="progress-words">{text(progress)}</p>'
    )
    return write_page(
        run,
        title=f"{name}: training report",
        kind=run.resolve().name.replace("-", " ") if is_of_course else "Training run",
        name=name,
        about=_about(settings, record),
        below=done,
        body=body,
    )


def read_config(run: Path) -> dict[str, Any]:
    """Read a run's config.yaml, with old setting names replaced. InputError if it is missing or
    damaged."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{run} is not a run folder: it has no {CONFIG_FILE}. Name the --out of a `featkit"
            " train`."
        )
    try:
        with explain_os_errors(path):
            record = yaml.safe_load(path.read_text(encoding="utf-8"))
    # ValueError: invalid UTF-8, or an impossible date
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not YAML ({reason}). Restore it from a copy, or start another run."
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(
            f"{path} holds no config of a run. Restore it from a copy, or name the --out of a"
            " `featkit train`."
        )
    # Suppress warnings about old names, since nobody is meant to edit this file.
    return {**record, "config": current_keys(record["config"], warn=False)}


def read_notes(path: Path) -> list[tuple[int, str]]:
    """Read step and sentence of each note; [] without a file. Torn lines are skipped, repeated ones
    kept once."""
    notes: dict[tuple[int, str], None] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                notes[int(record["step"]), str(record["note"])] = None
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
    return sorted(notes)


def flattened(mapping: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted names."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


# -- the top ---------------------------------------------------------------------------------------


def _about(settings: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    shape = [
        f"{word} {settings[f'model.{word}']}"
        for word in ("width", "depth", "patch")
        if f"model.{word}" in settings
    ]
    data = record.get("data")
    names = settings.get("data_name") or (data.get("names") if isinstance(data, Mapping) else None)
    parts = [
        f"by {method_name(str(settings['method']))}" if "method" in settings else "",
        f"backbone of {', '.join(shape)}" if shape else "",
        str(settings.get("classifier.arch", "")),
        f"images of {names}" if names else "",
    ]
    return " · ".join(part for part in parts if part)


def method_name(method: str) -> str:
    """Return a method's title, or the name itself if this version does not have it."""
    methods = list_methods()
    return methods[method].title if method in methods else method


def _progress(metrics: Metrics, settings: Mapping[str, Any]) -> tuple[str, float]:
    steps = settings.get("run.steps")
    if not isinstance(steps, int) or steps < 1:
        return f"step {metrics.last_step:,}", 100.0
    words = f"step {metrics.last_step:,} of {steps:,}"
    share = 100 * min(metrics.last_step / steps, 1.0)
    return (f"finished: {words}" if share == 100 else words), share


def _scores(metrics: Metrics, settings: Mapping[str, Any]) -> str:
    curves = [curve for name, curve in metrics.curves.items() if SCORES.fullmatch(name)]
    main = "accuracy" if "accuracy" in metrics.curves else COPIES
    curves.sort(key=lambda curve: curve.name != main)
    cards = [_score_card(curve, chief=curve.name == main) for curve in curves]
    return scores([*cards, *_loss_card(metrics), *_speed_cards(metrics, settings)])


def _loss_card(metrics: Metrics) -> list[str]:
    loss = metrics.curves.get("loss")
    if loss is None or loss.first is None or loss.last is None:
        return []
    start = f"from {number(loss.first[1])} at step {loss.first[0]:,}"
    return [card("Loss", number(loss.last[1]), start)]


def _speed_cards(metrics: Metrics, settings: Mapping[str, Any]) -> list[str]:
    cards = []
    batch_size = settings.get("run.batch_size")
    num_images = metrics.last_step * batch_size if isinstance(batch_size, int) else 0
    if metrics.seconds > 0 and isinstance(batch_size, int):
        rate = number(num_images / metrics.seconds)
        cards.append(card("Images per second", rate, "over all steps"))
    waiting = metrics.curves.get("waiting_share")
    if waiting is not None and waiting.last is not None:
        total = sum(point.total for point in waiting.points)
        share = total / sum(point.count for point in waiting.points)
        cards.append(card("Waiting for data", f"{share:.1%}", "of the steps' time"))
    if metrics.seconds > 0:
        steps = counted(metrics.last_step, "step")
        cards.append(card("Time in steps", duration(metrics.seconds), steps))
    if num_images:
        seen = f"{num_images:,}" if num_images < 1e7 else f"{num_images / 1e6:,.1f} M"
        cards.append(card("Images seen", seen, f"{batch_size:,} in a step"))
    return cards


def _score_card(curve: Curve, *, chief: bool) -> str:
    title = TITLES.get(curve.name, curve.name)
    if curve.first is None or curve.last is None or curve.best is None:
        return card(title, "–", "not a number")
    words = (
        f"{curve.first[1]:.3f} at step {curve.first[0]:,} · best {curve.best[1]:.3f} at step"
        f" {curve.best[0]:,}"
    )
    return card(title, f"{curve.last[1]:.3f}", words, chief=chief)


def _notes(notes: Sequence[tuple[int, str]]) -> str:
    more = f"and {len(notes) - MAX_NOTES:,} more in {NOTES_FILE}" if len(notes) > MAX_NOTES else ""
    return noticed([(f"step {step:,}", note) for step, note in notes[:MAX_NOTES]], more=more)


# -- curves ----------------------------------------------------------------------------------------


def _curves(metrics: Metrics, noted: Sequence[int]) -> str:
    panels = arrange(metrics.curves)
    if not panels:
        return ""
    first_step = min(curve.points[0].first_step for curve in metrics.curves.values())
    last_step = metrics.last_step
    marks = sorted({step for step in noted if first_step <= step <= last_step})[:MAX_MARKS]
    parts = []
    for section in SECTIONS:
        in_section = [panel for panel in panels if panel.section == section]
        if in_section:
            parts.append(f"<h3>{section}</h3>")
            parts.append(_charts(in_section, first_step, last_step, marks))
            parts.append(_constants(in_section))
    lead = (
        "A pale line or band shows every reading, the strong line their running mean. Point at a"
        " curve for its values."
    )
    return f'<section><h2>Curves</h2><p class="lead">{lead}</p>{"".join(parts)}</section>'


def _charts(panels: Sequence[Panel], first_step: int, last_step: int, marks: Sequence[int]) -> str:
    figures = [_figure(panel, first_step, last_step, marks) for panel in panels if _is_drawn(panel)]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _constants(panels: Sequence[Panel]) -> str:
    lines = [_still(curve) for panel in panels if not _is_drawn(panel) for curve in panel.curves]
    return f'<ul class="still">{"".join(lines)}</ul>' if lines else ""


def _is_drawn(panel: Panel) -> bool:
    """Return whether a panel has anything to draw; a constant curve needs no chart."""
    readings = [point for curve in panel.curves for point in curve.points if point.count]
    moves = len({point.step for point in readings}) > 1
    return moves and (
        panel.always
        or len(panel.curves) > 1
        or len({end for p in readings for end in (p.low, p.high)}) > 1
    )


def _figure(panel: Panel, first_step: int, last_step: int, marks: Sequence[int]) -> str:
    only = panel.curves[0] if len(panel.curves) == 1 else None
    now = (
        f'<span class="now">{number(only.last[1])}</span>'
        if only is not None and only.last is not None
        else ""
    )
    name = (
        f" <code>{text(only.name)}</code>" if only is not None and only.name != panel.title else ""
    )
    drawing = chart(panel.curves, first_step=first_step, last_step=last_step, marks=marks)
    words = [panel.about] if panel.about else []
    for curve in panel.curves:
        if curve.not_finite:
            words.append(f"Readings of {curve.name} that were not finite: {curve.not_finite:,}.")
        words += [
            f"{curve.name} once reached {number(end)}, outside the chart."
            for end in beyond_the_frame(curve)
        ]
    about = f"<p>{text(' '.join(words))}</p>" if words else ""
    caption = f"<figcaption><span><b>{text(panel.title)}</b>{name}</span>{now}</figcaption>"
    return f'<figure class="card">{caption}{drawing}{about}</figure>'


def _still(curve: Curve) -> str:
    if curve.last is None:
        return f"<li>{text(in_words(curve))}</li>"
    words = "at all steps" if len(curve.points) > 1 else f"at step {curve.last[0]:,}"
    return f"<li>{text(curve.name)} <b>{number(curve.last[1])}</b> {words}</li>"


# -- images ----------------------------------------------------------------------------------------


def _images(folder: Path) -> str:
    snapshots, photographs = list_snapshots(folder), read_photographs(folder)
    if not snapshots or not photographs:
        return ""
    newest = snapshots[-1]
    cards = "".join(
        _image_card(index, name, jpeg, newest) for index, (name, jpeg) in enumerate(photographs)
    )
    head = "".join(
        f'<th scope="col">{"" if index else "step "}{snapshot.step:,}</th>'
        for index, snapshot in enumerate(snapshots)
    )
    rows = "".join(
        _row(index, name, jpeg, snapshots) for index, (name, jpeg) in enumerate(photographs)
    )
    return (
        f"<section><h2>What the network sees at step {newest.step:,}</h2>"
        '<p class="lead">Held-out images; the first three principal components of their patch'
        " tokens as red, green and blue, so that similar colors are similar features; and the class"
        " token's attention to each patch, from dark to bright.</p>"
        f'<div class="seen">{cards}</div>'
        "<h2>Over time</h2>"
        '<p class="lead">The same images at earlier steps. The components are rotated so that'
        " colors keep their meaning.</p>"
        f'<div class="card scroll" tabindex="0" role="region" aria-label="Images over'
        f' time"><table class="time">'
        "<thead><tr><th"
        f' scope="col">image</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _image_card(index: int, name: str, jpeg: bytes, newest: Snapshot) -> str:
    tiles = "".join(_tile(newest, index, kind, name) for kind in ("pca", "attention"))
    heads = read_heads(newest, index)
    shown = "".join(
        f'<img class="patches" src="{_inline(head, "png")}" alt="head {n}">'
        for n, head in enumerate(heads, 1)
    )
    by_head = (
        f'<div class="heads"><span>{len(heads)} heads</span>{shown}</div>' if len(heads) > 1 else ""
    )
    photograph = f'<img src="{_inline(jpeg, "jpeg")}" alt="{text(name)}">'
    return (
        f'<div class="card"><div class="trio">{photograph}{tiles}</div><div'
        f' class="key">{breakable(name)}</div>{by_head}</div>'
    )


def _row(index: int, name: str, jpeg: bytes, snapshots: Sequence[Snapshot]) -> str:
    columns = [(snapshot, f"{name} at step {snapshot.step:,}") for snapshot in snapshots]
    cells = "".join(
        f"<td>{_tile(snapshot, index, 'pca', of)}{_tile(snapshot, index, 'attention', of)}</td>"
        for snapshot, of in columns
    )
    photograph = f'<img class="tile" src="{_inline(jpeg, "jpeg")}" alt="">'
    return f'<tr><th scope="row">{photograph}<span>{breakable(name)}</span></th>{cells}</tr>'


def _tile(snapshot: Snapshot, index: int, kind: str, of: str) -> str:
    path = snapshot.file(index, kind)
    if path is None:
        return ""
    words = {"pca": "Components", "attention": "Attention"}[kind]
    return (
        f'<img class="tile patches" src="{_inline(path.read_bytes(), "png")}"'
        f' alt="{text(f"{words} of {of}")}">'
    )


# -- settings --------------------------------------------------------------------------------------


def settings_section(
    settings: Mapping[str, Any], record: Mapping[str, Any], *, began: Curve | None = None
) -> str:
    """Return the main settings, by their names for --set, and a fold-out list of all.

    began: the curve of the momentum; its first value is shown if the setting was derived.
    """
    main = {name: settings[name] for name in MAIN_SETTINGS if name in settings}
    if main.get("teacher.momentum", "") is None and began is not None and began.first is not None:
        main["teacher.momentum"] = f"{number(began.first[1])}, by the number of steps"
    # Methods with labels take one crop of an image.
    unread = LOCAL_CROPS if "classifier.arch" in settings else ()
    main = {
        name: value
        for name, value in main.items()
        if value not in (None, [], "") and name not in unread
    }
    rest = [
        (part, record[part])
        for part in ("data", "versions")
        if isinstance(record.get(part), Mapping)
    ]
    everything = [
        *settings.items(),
        *itertools.chain.from_iterable(flattened(value, f"{part}.") for part, value in rest),
    ]
    return (
        '<section><h2>Settings</h2><p class="lead">The main settings, by their names for'
        f" <code>--set</code>.</p>{settings_list(list(main.items()))}<details><summary>All"
        f" {len(everything)} settings, data and"
        f" versions</summary>{settings_list(everything)}</details></section>"
    )


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
