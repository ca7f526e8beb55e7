"""Write docs/figures/self-distillation.md and its charts from the results of
bench_self_distillation.

Every sentence with a figure, and every word that judges one, is made from the results, so that text
and figures cannot disagree. A study without results is named with the command that runs it.

Run: python -m tests.benchmarks.draw_self_distillation [--results FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from featkit.atomic import write_text
from featkit_train.watching.judging import ONE_SIDED
from tests.benchmarks.record import RESULTS, markdown_table, read_figures
from tests.benchmarks.svg_charts import Line, Panel, columns_chart, rows_chart

OUT = Path(__file__).parents[2] / "docs" / "figures"
PAGE = "self-distillation.md"
BY_PAPER, ALL_PITFALLS = "as in the paper", "all three"
LATE = 0.9  # of the steps; the measurement before the last is earlier
PSEUDO_COLUMNS = (
    "used",
    "wrong",
    "confidence when wrong",
    "repeated",
    "corrected",
    "repeated on test images",
)
Figures = Mapping[str, Any]

HEAD = """# Does self-distillation gain?

<!-- Written by `python -m tests.benchmarks.draw_self_distillation`; edit that program instead. -->

Papers promise that a student of the same architecture can surpass its teacher, and warn of two
pitfalls: a student that learns its own mistakes, and a teacher that follows too fast or too slowly.
These trainings look for all three, on photographs of everyday things and with small networks.

Gains are in percentage points. They are paired, image by image, and averaged over seeds; after ± is
the standard error over images. *Beyond noise* means that a gain exceeds 1.645 standard errors and
has the same sign for every seed.
"""
TAIL = """
Script: `bench_self_distillation.py`; raw: `results/self_distillation_*.json`. Shorter trainings on
CIFAR-10 are among the figures of [training with labels](labels.md).
"""


class Section(NamedTuple):
    """A part of the page: its chart, and the text below it."""

    chart: str
    text: str


class Verdict(NamedTuple):
    """A gain in points, in words, and its sign beyond noise (1, 0 or -1)."""

    words: str
    sign: int


# -- generations -----------------------------------------------------------------------------------


def generations(figures: Figures) -> Section:
    """Born-Again generations and ensembles."""
    gains: Mapping[str, Figures] = figures["gains over generation 0"]
    students = [name for name in gains if name.startswith("generation ")]
    verdicts = {name: verdict(gains[name]) for name in gains}
    better = [name for name in students if verdicts[name].sign > 0]
    worse = [name for name in students if verdicts[name].sign < 0]
    if better:
        claim = "A student of the same architecture surpasses its teacher"
    elif worse:
        claim = "A student of the same architecture falls behind the first network here"
    else:
        claim = "No student surpasses the first network beyond noise here"
    sentences = [
        f"**{claim}.** "
        + " ".join(f"{sentence(name)} {verdicts[name].words}." for name in students)
    ]
    ensembles = [name for name in gains if name.startswith("generations ")]
    if ensembles:
        best = max(ensembles, key=lambda name: gains[name]["difference"])
        together = f"Of ensembles, {best} {plural(verdicts[best].words)}."
        untaught = [name for name in gains if name.endswith("plain networks together")]
        if untaught:
            words = plural(verdicts[untaught[0]].words)
            together += f" Without any teacher, {untaught[0]} {words}."
        sentences.append(together)
    columns, lines = gain_lines("generation 0", gains, joined=1 + len(students))
    chart = columns_chart(
        [
            name.replace("generations ", "")
            .replace("generation ", "generation\n")
            .replace(" networks", "")
            .replace(" together", "\ntogether")
            for name in columns
        ],
        lines,
        title="Accuracy in %",
        describe=f"Accuracy of generations and ensembles. {' '.join(sentences)}",
    )
    table = gains_table(gains, "compared with generation 0")
    return Section(chart, "\n\n".join([*sentences, schedule(figures), table, table_of(figures)]))


def gain_lines(
    first: str, gains: Mapping[str, Figures], *, joined: int
) -> tuple[list[str], list[Line]]:
    """Return columns, and lines of accuracies in %: each seed's, and the mean with its error."""
    seeds = max(len(gain["before"]) for gain in gains.values())
    before = max((gain["before"] for gain in gains.values()), key=len)
    means: list[float | None] = [100 * statistics.fmean(before)]
    errors = [0.0]
    by_seed: list[list[float | None]] = [[100 * each] for each in before]
    for gain in gains.values():
        means.append(100 * (statistics.fmean(gain["before"]) + gain["difference"]))
        errors.append(100 * gain["standard error"])
        for seed in range(seeds):
            known = seed < len(gain["before"])
            by_seed[seed].append(
                100 * (gain["before"][seed] + gain["by seed"][seed]) if known else None
            )
    lines = [Line(f"seed {seed}", values, is_faint=True) for seed, values in enumerate(by_seed)]
    mean = Line("mean of seeds", means, errors, joined=joined, with_values=True)
    return [first, *gains], [*lines, mean]


# -- self-training ---------------------------------------------------------------------------------


def students(figures: Figures) -> Section:
    """A teacher with few labels and its students."""
    gains: Mapping[str, Figures] = figures["gains over the teacher"]
    verdicts = {name: verdict(gains[name]) for name in gains}
    of_seeds = figures["pseudo-labels"].values()
    pseudo = {
        name: {
            column: average(of[name][column] for of in of_seeds if name in of)
            for column in PSEUDO_COLUMNS
        }
        for name in gains
    }
    paper = verdicts[BY_PAPER]
    claim = {
        1: "A student surpasses the teacher whose labels it learns from",
        0: "A student does not surpass its teacher beyond noise here",
        -1: "A student falls behind its teacher here",
    }[paper.sign]
    labels = figures["images with labels"] / figures["classes"]
    sentences = [
        f"**{claim}.** The teacher learns from {labels:.0f} labels a class, the student from those"
        f" and from {figures['images without labels']:,} pseudo-labels for three times as many"
        f" steps, as Noisy Student does. It {paper.words}.",
        _mistakes(verdicts, pseudo),
    ]
    rows = list(gains)
    accuracy = [
        [100 * (a + b) for a, b in zip(gains[name]["before"], gains[name]["by seed"], strict=True)]
        for name in rows
    ]
    teacher = statistics.fmean(gains[BY_PAPER]["before"])

    def values(column: str) -> list[list[float]]:
        return [
            [100 * of[name][column] for of in of_seeds if of.get(name, {}).get(column) is not None]
            for name in rows
        ]

    chart = rows_chart(
        rows,
        [
            Panel("student's accuracy, %", accuracy, ("teacher", round(100 * teacher, 1))),
            Panel("wrong pseudo-labels, %", values("wrong")),
            Panel("of them repeated, %", values("repeated")),
        ],
        describe=f"Students of self-training. {' '.join(sentences)}",
    )
    kept = figures["kept and wrong by threshold"]
    thresholds = [
        {
            "least confidence": f"{threshold:.1f}",
            "images kept, %": round(100 * average(of[row][1] for of in kept.values()), 1),
            "wrong among them, %": round(100 * average(of[row][2] for of in kept.values()), 1),
        }
        for row, (threshold, *_) in enumerate(next(iter(kept.values())))
    ]
    more = (
        "What the teacher's confidence is worth, on images whose labels no training sees:\n\n"
        + markdown_table(thresholds)
    )
    tables = [gains_table(gains, "compared with the teacher"), pseudo_table(pseudo)]
    return Section(
        chart,
        "\n\n".join([*sentences, *tables, schedule(figures), table_of(figures), more]),
    )


def _mistakes(verdicts: Mapping[str, Verdict], pseudo: Mapping[str, Mapping[str, float]]) -> str:
    """Return the sentences on overfitting on own mistakes."""
    paper = pseudo[BY_PAPER]
    text = (
        f"As in the paper, {percent(paper['wrong'])} of the pseudo-labels that it learns from are"
        f" wrong. The student repeats {percent(paper['repeated'])} of these, and"
        f" {percent(paper['repeated on test images'])} of its teacher's mistakes on images that it"
        " did not learn from."
    )
    if ALL_PITFALLS not in pseudo:
        return text
    worst = pseudo[ALL_PITFALLS]
    is_trap = worst["repeated"] > paper["repeated"] and (
        worst["repeated"] - worst["repeated on test images"]
        > paper["repeated"] - paper["repeated on test images"]
    )
    claim = (
        "Overfitting on own mistakes shows"
        if is_trap
        else "Overfitting on own mistakes does not show at this size"
    )
    return (
        f"**{claim}.** With hard labels of all images and no noise, {percent(worst['wrong'])} of"
        f" the pseudo-labels are wrong. The student repeats {percent(worst['repeated'])} of these,"
        f" and {percent(worst['repeated on test images'])} of its teacher's mistakes on other"
        f" images. It {verdicts[ALL_PITFALLS].words}. {text}"
    )


def pseudo_table(pseudo: Mapping[str, Mapping[str, float]]) -> str:
    """Return what each student learned from, and what it made of the wrong labels."""
    titles = {
        "used": "pseudo-labels used, %",
        "wrong": "of these wrong, %",
        "confidence when wrong": "teacher's confidence when wrong, %",
        "repeated": "wrong ones repeated, %",
        "corrected": "corrected, %",
        "repeated on test images": "mistakes on other images repeated, %",
    }
    return markdown_table(
        [
            {"student": name}
            | {title: round(100 * row[column], 1) for column, title in titles.items()}
            for name, row in pseudo.items()
        ]
    )


# -- exits -----------------------------------------------------------------------------------------


def exits(figures: Figures) -> Section:
    """Exits of one network against the plain network."""
    gains: Mapping[str, Figures] = figures["gains over the plain network"]
    verdicts = {name: verdict(gains[name]) for name in gains}
    numbered = [name for name in gains if name.startswith("exit ")]
    deepest, together = numbered[-1], "all exits together"
    claim = {
        1: "With exits, the same network is more accurate in as many steps",
        0: "Exits neither raise nor lower the network's accuracy beyond noise here",
        -1: "Exits cost the network accuracy here",
    }[verdicts[deepest].sign]
    trainings = figures["trainings"].values()

    def rate(name: str) -> float:
        return average(of[name]["images a second"] for of in trainings if name in of)

    times = [f"{rate(name) / rate(deepest):.1f}×" for name in numbered]
    sentences = [
        f"**{claim}.** Compared with the plain network, the deepest exit"
        f" {verdicts[deepest].words}. {sentence(together)} {plural(verdicts[together].words)}.",
        f"The first exit is {times[0]} as fast as the deepest, and {verdicts[numbered[0]].words}.",
    ]
    _, (*by_seed, mean) = gain_lines("", gains, joined=1 + len(numbered))
    lines = [
        Line(
            line.name,
            line.values[1:],
            line.errors[1:],
            is_faint=line.is_faint,
            joined=len(numbered),
            with_values=line.with_values,
        )
        for line in (*by_seed, mean)
    ]
    plain = mean.values[0]
    assert plain is not None
    chart = columns_chart(
        [
            *(f"{name}\n{speed} as fast" for name, speed in zip(numbered, times, strict=True)),
            together.replace(" together", "\ntogether"),
        ],
        lines,
        title="Accuracy in %",
        rules=[("plain network", round(plain, 1))],
        describe=f"Accuracy of exits and of the plain network. {' '.join(sentences)}",
    )
    table = gains_table(gains, "compared with the plain network")
    return Section(chart, "\n\n".join([*sentences, schedule(figures), table, table_of(figures)]))


# -- momentum --------------------------------------------------------------------------------------


def momentum(figures: Figures) -> Section:
    """DINO's accuracy against its teacher's momentum."""
    runs: Sequence[Figures] = figures["runs"]
    momenta = sorted({run["momentum"] for run in runs})
    centerings = list(dict.fromkeys(run["centering"] for run in runs))
    test_images = figures["test images"]
    sentences = [_of_centering(each, runs, momenta, test_images) for each in centerings]
    lines = []
    for color, centering in enumerate(centerings):
        for branch in ("teacher", "student"):
            values = [mean_of(runs, centering, each, branch) for each in momenta]
            lines.append(
                Line(
                    f"{branch}, {centering}",
                    [None if value is None else 100 * value for value in values],
                    color=color,
                    is_dashed=branch == "student",
                    crossed=[
                        column
                        for column, each in enumerate(momenta)
                        if collapsed(runs, centering, each)
                    ],
                )
            )
    pixels = average(run["centered pixels"] for run in runs)
    chart = columns_chart(
        [f"{each:g}" for each in momenta],
        lines,
        title="kNN accuracy in %, by the share of its weights that the teacher keeps in each step",
        rules=[("pixels", round(100 * pixels, 1))],
        describe=f"kNN accuracy of teacher and student by momentum. {' '.join(sentences)}",
    )
    note = (
        "DINO without labels, with the same convnet and a momentum that does not"
        f" change: {figures['steps']:,} steps of {figures['batch size']} images. Accuracy is that"
        f" of a majority of {figures['neighbors']} neighbors among {figures['gallery']:,} images;"
        f" centered pixels reach {percent(pixels)}. A teacher that keeps everything is the"
        " untrained network. A cross is a run whose outputs collapsed."
    )
    rows = [
        {
            "centering": run["centering"],
            "momentum": f"{run['momentum']:g}",
            "teacher, %": round(100 * run["teacher"], 1),
            "student, %": round(100 * run["student"], 1),
            "entropy of targets": decimal(run["teacher_entropy"]),
            "of the batch's mean": decimal(run["batch_entropy"]),
            "effective rank": decimal(run["rankme"]),
            "collapse": "yes" if run["collapses"] else "no",
        }
        for run in runs
    ]
    return Section(chart, "\n\n".join([*sentences, note, markdown_table(rows)]))


def _of_centering(
    centering: str, runs: Sequence[Figures], momenta: Sequence[float], test_images: int
) -> str:
    """Return what the momentum changes with one way of centering."""
    name = {"sinkhorn": "Sinkhorn-Knopp targets", "center": "the moving center"}[centering]
    teacher = {
        each: value
        for each in momenta
        if (value := mean_of(runs, centering, each, "teacher")) is not None
    }
    best = max(teacher, key=lambda each: teacher[each])
    lowest, highest = min(teacher), max(each for each in teacher if each < 1 or len(teacher) == 1)
    lost = [each for each in teacher if collapsed(runs, centering, each)]
    losses = [
        words
        for words in (
            _less("too low", lowest, teacher, best, test_images) if lowest < best else "",
            _less("too high", highest, teacher, best, test_images) if highest > best else "",
        )
        if words
    ]
    claim = (
        f"With {name}, the momentum decides"
        if len(losses) == 2
        else f"With {name}, only one side of the momentum costs accuracy at this length"
        if losses
        else f"With {name}, the momentum changes little at this length"
    )
    student = mean_of(runs, centering, highest, "student")
    behind = (
        f" At {highest:g} the teacher reaches {percent(teacher[highest])} and its student"
        f" {percent(student)}."
        if student is not None
        else ""
    )
    return (
        f"**{claim}:** the teacher is best at {best:g}, with {percent(teacher[best])}"
        f"{''.join(f'; {words}' for words in losses)}.{behind}"
        + (
            f" Outputs collapsed at {listed(f'{each:g}' for each in lost)}."
            if lost
            else " No run collapsed."
        )
    )


def _less(
    what: str, momentum: float, teacher: Mapping[float, float], best: float, test_images: int
) -> str:
    """Return that a momentum is too low or too high, if its teacher is below the best one beyond
    noise."""
    shares = (teacher[best], teacher[momentum])
    # Of two shares of different images, which is more than of the same ones.
    error = math.sqrt(sum(share * (1 - share) for share in shares) / test_images)
    if shares[0] - shares[1] <= ONE_SIDED * error:
        return ""
    return f"{momentum:g} is {what}, with {percent(shares[1])}"


def mean_of(runs: Sequence[Figures], centering: str, momentum: float, branch: str) -> float | None:
    """Return a figure's mean over seeds; None if it was not measured."""
    values = [
        run[branch] for run in runs if run["centering"] == centering and run["momentum"] == momentum
    ]
    return statistics.fmean(values) if values else None


def collapsed(runs: Sequence[Figures], centering: str, momentum: float) -> bool:
    """Return whether a run of that kind collapsed."""
    return any(
        run["collapses"]
        for run in runs
        if run["centering"] == centering and run["momentum"] == momentum
    )


# -- words -----------------------------------------------------------------------------------------


def verdict(gain: Figures) -> Verdict:
    """Judge a gain: "gains 1.2 ± 0.4 points"."""
    difference, error = 100 * gain["difference"], 100 * gain["standard error"]
    by_seed: Sequence[float] = gain["by seed"]
    sign = 0
    if abs(difference) > ONE_SIDED * error:
        same = all(each > 0 for each in by_seed) or all(each < 0 for each in by_seed)
        sign = (1 if difference > 0 else -1) if same else 0
    kind = "gains" if difference >= 0 else "loses"
    noise = "" if sign else ", which is within noise"
    return Verdict(f"{kind} {abs(difference):.1f} ± {error:.1f} points{noise}", sign)


def plural(words: str) -> str:
    """Return a verdict on several things."""
    return words.replace("gains", "gain", 1).replace("loses", "lose", 1)


def gains_table(gains: Mapping[str, Figures], title: str) -> str:
    """Return all gains with their seeds as a table."""
    return markdown_table(
        [
            {
                title: name,
                "accuracy, %": round(
                    100 * (statistics.fmean(gain["before"]) + gain["difference"]), 1
                ),
                "gain, points": f"{100 * gain['difference']:+.1f}"
                f" ± {100 * gain['standard error']:.1f}",
                "of each seed": ", ".join(f"{100 * each:+.1f}" for each in gain["by seed"]),
                "beyond noise": "yes" if verdict(gain).sign else "no",
            }
            for name, gain in gains.items()
        ]
    )


def schedule(figures: Figures) -> str:
    """Return how long the trainings were, of what and on what."""
    passes = figures["steps"] * figures["batch size"] / figures["images with labels"]
    weights = next(
        row["parameters"]
        for of_seed in figures["trainings"].values()
        for row in of_seed.values()
        if "parameters" in row
    )
    return (
        f"The network has {weights:,.0f} weights and learns from"
        f" {figures['images with labels']:,} labeled images of {figures['classes']} classes at"
        f" {figures['pixels']} pixels, for {figures['steps']:,} steps of"
        f" {figures['batch size']}. That is {passes:.0f} passes over these images. Accuracy is that"
        f" on {figures['test images']:,} other photographs.{last_rise(figures)}"
    )


def last_rise(figures: Figures) -> str:
    """Return how much accuracy still rose at the end, over all trainings with a curve."""
    rises = []
    for of_seed in figures["trainings"].values():
        for row in of_seed.values():
            curve = row.get("curve", []) if isinstance(row, dict) else row
            before = [value for step, value in curve if step <= LATE * curve[-1][0]]
            if before:
                rises.append(100 * (curve[-1][1] - before[-1]))
    if not rises:
        return ""
    return (
        f" At the last measurement, accuracy was {statistics.fmean(rises):+.1f} points from that"
        " of the measurement before, on average over trainings."
    )


def table_of(figures: Figures) -> str:
    """Return every training of every seed as a table."""
    columns = {
        "accuracy": "accuracy, %",
        "ece": "calibration error",
        "confidence when wrong": "confidence when wrong",
        "repeats its teacher's errors": "teacher's errors repeated",
    }
    rows = []
    for seed, trainings in figures["trainings"].items():
        for name, row in trainings.items():
            if "accuracy" not in row:
                continue
            cells: dict[str, object] = {"training": name, "seed": int(seed)}
            for key, title in columns.items():
                value = row.get(key)
                cells[title] = (
                    ""
                    if value is None
                    else f"{100 * value:.1f}"
                    if key == "accuracy"
                    else f"{value:.2f}"
                )
            rows.append(cells)
    return markdown_table(rows)


def listed(words: Sequence[str] | Iterator[str]) -> str:
    """Return "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)}, and {last}" if len(first) > 1 else " and ".join([*first, last])


def sentence(words: str) -> str:
    """Begin with a capital letter."""
    return words[:1].upper() + words[1:]


def decimal(value: float | None) -> str:
    """Return a figure with two decimals, or nothing for what was not measured."""
    return "" if value is None else f"{value:.2f}"


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.1f} %"


def average(values: Sequence[float] | Iterator[float]) -> float:
    """Return the mean of the known values; 0 without any."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else 0.0


# -- the page --------------------------------------------------------------------------------------

SECTIONS: Mapping[str, tuple[str, Callable[[Figures], Section]]] = {
    "generations": ("Generations and ensembles", generations),
    "self-training": ("Self-training, and own mistakes", students),
    "exits": ("Exits against the plain network", exits),
    "momentum": ("Momentum", momentum),
}


def write_page(results: Path, out: Path) -> list[Path]:
    """Write the page and the charts of the studies that have results; return the files."""
    parts, files = [HEAD], []
    for study, (title, section_of) in SECTIONS.items():
        figures = read_figures(f"self_distillation_{study.replace('-', '_')}", folder=results)
        parts.append(f"\n## {title}\n\n")
        if not is_complete(figures):
            parts.append(
                "Not measured yet. To measure:"
                f" `python tests/benchmarks/bench_self_distillation.py {study}`.\n"
            )
            continue
        section = section_of(figures)
        chart = out / f"self-distillation-{study}.svg"
        write_text(chart, section.chart)
        files.append(chart)
        parts.append(f"![{title}]({chart.name})\n\n{section.text}\n")
    write_text(out / PAGE, "".join([*parts, TAIL]))
    return [*files, out / PAGE]


def is_complete(figures: Figures) -> bool:
    """Return whether a study has something to compare."""
    if "pseudo-labels" in figures:
        return BY_PAPER in figures["pseudo-labels"].get("0", {})
    return any(
        value for name, value in figures.items() if name.startswith("gains") or name == "runs"
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for file in write_page(options.results, options.out):
        print(file)


if __name__ == "__main__":
    main()
