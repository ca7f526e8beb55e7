"""The report of a run folder as one HTML file: scores, settings, what was said, curves, and what
the network saw over time.

It is made of the files of the folder alone, so it can be made again at any time, also while the run
goes on. It loads nothing from anywhere, runs no script, and says so to the browser; names and
settings are text and stay text.
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
from featkit.wording import counted
from featkit_train.method_list import list_methods
from featkit_train.renamed import current_keys
from featkit_train.report.charts import beyond_the_frame, chart, in_words, number
from featkit_train.report.metrics import Curve, Metrics, read_metrics
from featkit_train.report.panels import SECTIONS, Panel, arrange
from featkit_train.report.parts import (
    breakable,
    card,
    duration,
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
MOST_NOTES, MOST_MARKS = 50, 8
COPIES = "copy_recall"
SCORES = re.compile("accuracy|copy_recall.*|knn.*")  # curves whose last value stands at the top
TITLES = {
    "accuracy": "Accuracy, held out",
    COPIES: "Copies found, recall@1",
    "knn": "Nearest neighbors, kNN",
}
# Settings worth seeing at once, where a run has them; all others are in the full table.
CHIEF_SETTINGS = (
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
    """Write `run`/report.html anew, whole or not at all, and return its path. Same files, same
    bytes.

    Read are config.yaml, and metrics.jsonl, notes.jsonl and snapshots/ where they are there.
    InputError where `run` is no run folder.
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
    is_of_several = (run.resolve().parent / CONFIG_FILE).is_file()  # which have one name
    progress, percent = _progress(metrics, settings)
    done = (
        f'<div class="progress" role="img" aria-label="{text(progress)}"><i'
        f' style="width:{percent:.1f}%"></i></div>\n<p class="progress-words">{text(progress)}</p>'
    )
    return write_page(
        run,
        title=f"{name}: training report",
        kind=run.resolve().name.replace("-", " ") if is_of_several else "Training run",
        name=name,
        about=_about(settings, record),
        below=done,
        body=body,
    )


def read_config(run: Path) -> dict[str, Any]:
    """The mapping in a run's config.yaml. InputError when there is none."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{run} is no run folder: it has no {CONFIG_FILE}; name the --out of a `featkit train`."
        )
    try:
        with explain_os_errors(path):
            record = yaml.safe_load(path.read_text(encoding="utf-8"))
    # ValueError: bytes that are no text, a date that is none
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is not YAML ({reason}); restore it from a copy, or begin another run."
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(
            f"{path} holds no config of a run; restore it from a copy, or name the --out of a"
            " `featkit train`."
        )
    # Without warnings about old names, since nobody is meant to edit this file.
    return {**record, "config": current_keys(record["config"], warn=False)}


def read_notes(path: Path) -> list[tuple[int, str]]:
    """Step and sentence of each note; none where there is no file. Torn lines are passed over,
    repeated ones kept once."""
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
    """Leaves of nested mappings by their dotted names."""
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
    found = [curve for name, curve in metrics.curves.items() if SCORES.fullmatch(name)]
    judge = "accuracy" if "accuracy" in metrics.curves else COPIES
    cards = [
        _score_card(curve, chief=curve.name == judge)
        for curve in sorted(found, key=lambda curve: curve.name != judge)
    ]
    loss = metrics.curves.get("loss")
    if loss is not None and loss.first is not None and loss.last is not None:
        cards.append(
            card(
                "Loss",
                number(loss.last[1]),
                f"from {number(loss.first[1])} at step {loss.first[0]:,}",
            )
        )
    batch_size = settings.get("run.batch_size")
    if metrics.seconds > 0 and isinstance(batch_size, int):
        rate = metrics.last_step * batch_size / metrics.seconds
        cards.append(card("Images a second", number(rate), "over all steps"))
    waiting = metrics.curves.get("waiting_share")
    if waiting is not None and waiting.last is not None:
        share = sum(point.total for point in waiting.points) / sum(
            point.count for point in waiting.points
        )
        cards.append(card("Waiting for data", f"{share:.1%}", "of the time of steps"))
    if metrics.seconds > 0:
        cards.append(
            card("Time in steps", duration(metrics.seconds), counted(metrics.last_step, "step"))
        )
    if isinstance(batch_size, int) and metrics.last_step:
        seen = metrics.last_step * batch_size
        cards.append(
            card(
                "Images seen",
                f"{seen:,}" if seen < 1e7 else f"{seen / 1e6:,.1f} M",
                f"{batch_size:,} a step",
            )
        )
    return scores(cards)


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
    more = (
        f"and {len(notes) - MOST_NOTES:,} more in {NOTES_FILE}" if len(notes) > MOST_NOTES else ""
    )
    return noticed([(f"step {step:,}", note) for step, note in notes[:MOST_NOTES]], more=more)


# -- curves ----------------------------------------------------------------------------------------


def _curves(metrics: Metrics, noted: Sequence[int]) -> str:
    panels = arrange(metrics.curves)
    if not panels:
        return ""
    ends = [curve.points[0].first_step for curve in metrics.curves.values()]
    first_step, last_step = min(ends), metrics.last_step
    marks = sorted({step for step in noted if first_step <= step <= last_step})[:MOST_MARKS]
    parts = []
    for section in SECTIONS:
        here = [panel for panel in panels if panel.section == section]
        drawn = [panel for panel in here if _is_drawn(panel)]
        figures = "".join(_figure(panel, first_step, last_step, marks) for panel in drawn)
        still = "".join(
            _still(curve) for panel in here if panel not in drawn for curve in panel.curves
        )
        if here:
            parts.append(f"<h3>{section}</h3>")
            parts.append(f'<div class="charts">{figures}</div>' if figures else "")
            parts.append(f'<ul class="still">{still}</ul>' if still else "")
    lead = (
        "A pale line or band is every reading, the strong one its running mean. Point at a curve"
        " for its figures."
    )
    return f'<section><h2>Curves</h2><p class="lead">{lead}</p>{"".join(parts)}</section>'


def _is_drawn(panel: Panel) -> bool:
    """A curve that never moves needs no chart."""
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
            words.append(
                f"Readings of {curve.name} that were no finite number: {curve.not_finite:,}."
            )
        words += [
            f"{curve.name} went to {number(end)} once, beyond the frame."
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


# -- images --------------------------------------------------------------------------------------


def _images(folder: Path) -> str:
    snapshots, photographs = list_snapshots(folder), read_photographs(folder)
    if not snapshots or not photographs:
        return ""
    newest = snapshots[-1]
    cards = "".join(
        _seen(place, name, jpeg, newest) for place, (name, jpeg) in enumerate(photographs)
    )
    head = "".join(
        f'<th scope="col">{"step " if not place else ""}{s.step:,}</th>'
        for place, s in enumerate(snapshots)
    )
    rows = "".join(
        _row(place, name, jpeg, snapshots) for place, (name, jpeg) in enumerate(photographs)
    )
    return (
        f"<section><h2>What the network sees at step {newest.step:,}</h2>"
        '<p class="lead">Held-out photographs; the first three principal components of their'
        " patches as red, green and blue, "
        "where like colors are like features; and how much the class token looks at each patch,"
        " dark to bright.</p>"
        f'<div class="seen">{cards}</div>'
        "<h2>Over time</h2>"
        '<p class="lead">The same images as the network learned. Colors are turned to stay alike'
        " from step to step.</p>"
        f'<div class="card scroll" tabindex="0" role="region" aria-label="Images over'
        f' time"><table class="time">'
        "<thead><tr><th"
        f' scope="col">photograph</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _seen(place: int, name: str, jpeg: bytes, newest: Snapshot) -> str:
    tiles = "".join(_tile(newest, place, kind, name) for kind in ("pca", "attention"))
    heads = read_heads(newest, place)
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


def _row(place: int, name: str, jpeg: bytes, snapshots: Sequence[Snapshot]) -> str:
    columns = [(snapshot, f"{name} at step {snapshot.step:,}") for snapshot in snapshots]
    cells = "".join(
        f"<td>{_tile(one, place, 'pca', of)}{_tile(one, place, 'attention', of)}</td>"
        for one, of in columns
    )
    photograph = f'<img class="tile" src="{_inline(jpeg, "jpeg")}" alt="">'
    return f'<tr><th scope="row">{photograph}<span>{breakable(name)}</span></th>{cells}</tr>'


def _tile(snapshot: Snapshot, place: int, kind: str, of: str) -> str:
    path = snapshot.file(place, kind)
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
    """Those that matter, by their dotted names as --set takes them, and all behind a fold. began:
    the momentum's curve."""
    chief = {name: settings[name] for name in CHIEF_SETTINGS if name in settings}
    if chief.get("teacher.momentum", "") is None and began is not None and began.first is not None:
        chief["teacher.momentum"] = f"{number(began.first[1])}, by the number of steps"
    # methods with labels see one crop of an image
    unread = LOCAL_CROPS if "classifier.arch" in settings else ()
    chief = {
        name: value
        for name, value in chief.items()
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
        '<section><h2>Settings</h2><p class="lead">Those that decide the most; names are those of'
        f" <code>--set</code>.</p>{settings_list(list(chief.items()))}<details><summary>All"
        f" {len(everything)} settings, data and"
        f" versions</summary>{settings_list(everything)}</details></section>"
    )


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
