"""Run a method with labels from the command line: its trainings' progress, and the final table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.selecting import note_passed_over
from featkit.cli.train.flags import ClusterFlags, LabelFlags, TrainFlags
from featkit.cli.train.running import (
    configured,
    in_words,
    is_main,
    open_images,
    print_slurm,
    show,
)
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.sources import Source
    from featkit_train.config import TrainConfig
    from featkit_train.labeled.course import CourseListener
    from featkit_train.watching.standing import Row, Standing


def run_course(
    method: str,
    data: Sequence[Sequence[str]],
    flags: TrainFlags,
    own: LabelFlags | None,
    cluster: ClusterFlags | None,
    settings: Mapping[str, object],
) -> None:
    """Train by a method with labels. data: the groups of images that it takes, such as labeled and
    unlabeled ones."""
    config = configured(method, flags, own, settings)
    if cluster is not None and cluster.slurm:
        print_slurm(config, cluster)
        return
    from featkit_train import labeled

    sources, held_out = open_images([spec for group in data for spec in group], flags)
    groups = _regrouped(sources, data)
    quiet = flags.quiet or not is_main()
    if not quiet:
        print(_introduction(config, groups, flags), file=sys.stderr)
        note_passed_over(*sources)
    course: Callable[..., Standing] = getattr(labeled, method.replace("-", "_"))
    with CoursePrinter(quiet=quiet) as printer:
        standing = course(
            config,
            *groups,
            flags.out,
            held_out=held_out,
            resume=flags.resume,
            listener=printer.listener(),
        )
    if is_main():
        _print_standing(standing, config.name, flags)


def _regrouped(
    sources: "Sequence[Source]", data: Sequence[Sequence[str]]
) -> "list[Sequence[Source]]":
    groups, start = [], 0
    for group in data:
        groups.append(sources[start : start + len(group)])
        start += len(group)
    return groups


def _introduction(
    config: "TrainConfig", groups: "Sequence[Sequence[Source]]", flags: TrainFlags
) -> str:
    counts = [sum(map(len, group)) for group in groups]
    images = (
        counted(counts[0], "image")
        if len(counts) == 1
        else "{:,} images with labels and {:,} without".format(*counts)
    )
    size = config.crops.global_size
    return (
        f"{config.name}: {config.method}, {config.classifier.arch} on {images} at {size}×{size},"
        f" {_length(config)}, to {flags.out}."
    )


def _length(config: "TrainConfig") -> str:
    one = f"{counted(config.run.steps, 'step')} of {config.run.batch_size}"
    if config.method == "born-again" and config.born_again.generations:
        return f"at most {config.born_again.generations + 1} generations of {one}"
    if config.method == "self-training":
        longer = config.self_training.student_length
        students = "" if longer == 1 else f", students {longer:g} times as long"
        return f"at most {config.self_training.rounds + 1} rounds of {one}{students}"
    return one


class CoursePrinter:
    """Print what a course reports; each of its trainings has its own progress bar."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._progress: ProgressReporter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)

    def listener(self) -> "CourseListener":
        """Return the listener that prints."""
        from featkit_train.labeled.course import CourseListener

        return CourseListener(
            on_training=self.begin_training,
            on_log=self.show,
            on_note=self.note,
            on_plan=lambda plan: self.line(in_words(plan)),
            on_asking=lambda name, count: self.begin(
                f"{name}, asking its teacher", count, "images"
            ),
            on_asked=self.count,
        )

    def begin_training(self, name: str, steps: int) -> None:
        """Start a training's progress bar and print its name and length."""
        self.begin(name, steps, "steps")
        self.line(f"{name}: {counted(steps, 'step')}")

    def begin(self, name: str, total: int, unit: str) -> None:
        """Close the current progress bar and open one called `name`."""
        self.__exit__(None, None, None)
        self._progress = ProgressReporter(
            name, total=total, unit=unit, quiet=self.quiet
        ).__enter__()

    def show(self, log: "Mapping[str, Any]") -> None:
        """Print a line of metrics."""
        if self._progress is not None and not self.quiet:
            show(log, self._progress)

    def count(self, done: int) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress(done)

    def line(self, text: str) -> None:
        """Print a line above the bar, unless quiet."""
        if self._progress is not None:
            self._progress.line(text)
        elif not self.quiet:
            print(text, file=sys.stderr)

    def note(self, note: str) -> None:
        """Print a note, even if quiet."""
        if self.quiet:
            print(f"featkit: {note}", file=sys.stderr)
        else:
            self.line(f"featkit: {note}")


def _print_standing(standing: "Standing", name: str, flags: TrainFlags) -> None:
    backbone = flags.out / "backbone.safetensors"
    if flags.quiet:
        stdout().print(str(backbone))
        return
    columns = [column for column in COLUMNS if any(COLUMNS[column](row) for row in standing.rows)]
    rows = [(row.name, *(COLUMNS[column](row) for column in columns)) for row in standing.rows]
    print_table(f"On {counted(standing.num_held_out, 'held-out image')}", ("", *columns), rows)
    seconds = sum(row.seconds or 0.0 for row in standing.rows)
    facts = [
        ("time", f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"),
        ("backbone", backbone),
        ("classifier", flags.out / "classifier.safetensors"),
        ("report", flags.out / "report.html"),
    ]
    print_table(f"Chosen: {standing.chosen}", ("", ""), facts)
    stdout().print(
        f"Next: featkit export {typed(flags.out)}{_exit_flag(standing)} --out {name}.onnx"
    )


def _exit_flag(standing: "Standing") -> str:
    """Return the flag that exports the chosen exit; "" for the deepest, which is the default."""
    exits = [row.name for row in standing.rows if row.kind == "exit"]
    return f" --exit {exits.index(standing.chosen) + 1}" if standing.chosen in exits[:-1] else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# Columns of the table; with names of 16 letters they fit into 80 characters.
COLUMNS: "dict[str, Callable[[Row], str]]" = {
    "accuracy": lambda row: f"{row.accuracy:.3f} ± {row.standard_error:.3f}",
    "kNN": lambda row: _share(row.knn),
    "copies": lambda row: _share(row.copies),
    "ECE": lambda row: _share(row.ece),
    "sure when\nwrong": lambda row: _share(row.wrong_confidence),
    "errors\nshared": lambda row: _share(row.shared_errors),
    "images/s": lambda row: "" if row.images_per_s is None else f"{row.images_per_s:,.0f}",
}
