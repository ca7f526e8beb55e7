"""The methods with labels as commands: what each is for, the settings that only it has, and its
table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.selecting import note_passed_over
from featkit.cli.train.flags import ClusterFlags, LabelFlags, TrainFlags
from featkit.cli.train.methods import Data
from featkit.cli.train.running import (
    configured,
    in_words,
    is_main,
    open_images,
    print_slurm,
    show,
)
from featkit.errors import InputError
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.sources import Source
    from featkit_train.config import TrainConfig
    from featkit_train.labeled.course import CourseListener
    from featkit_train.watching.standing import Row, Standing

Given = Annotated[list[str], Parameter(consume_multiple=True, negative=())]
Begin = Callable[["TrainConfig", "Sequence[Source]", "Source | None", "CourseListener"], "Standing"]


def born_again(
    data: Data,
    /,
    *,
    generations: int | None = None,
    patience: int | None = None,
    mode: Literal["kd", "cwtm", "dkpp"] | None = None,
    temperature: float | None = None,
    student: str | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a network, then students of its own architecture, each taught by the one before (arXiv
    1805.04770).

    For images with labels, when a better network of the same size is wanted, or an ensemble. One
    command runs all of them.

    Example: featkit train born-again images/ --out run/ --generations 3

    Parameters
    ----------
    data
        Where the images are; see `featkit train dino`. Labels are a column of theirs, or the folders that they lie in.
    generations
        Students after the first network; by default 3.
    patience
        Generations in a row that may fail to beat their teachers beyond noise; the run then ends. By default 1.
    mode
        What is learned beside the labels: the teacher's distribution (kd), the labels alone but by the teacher's confidence
        (cwtm), or the distribution with all but its maximum permuted (dkpp). By default kd.
    temperature
        Of teacher's and student's distributions; by default 1.
    student
        Another architecture for the students, such as timm:resnet34; by default the first network's.
    """

    def begin(
        config: "TrainConfig",
        sources: "Sequence[Source]",
        held_out: "Source | None",
        listener: "CourseListener",
    ) -> "Standing":
        from featkit_train.labeled import born_again as course

        return course(
            config, sources, flags.out, held_out=held_out, resume=flags.resume, listener=listener
        )

    settings = {
        "born_again.generations": generations,
        "born_again.patience": patience,
        "knowledge.mode": mode,
        "knowledge.temperature": temperature,
        "born_again.student": None if student is None else {"arch": student},
    }
    _run("born-again", data, begin, flags, own, cluster, settings)


def self_training(
    *,
    labeled: Annotated[Given, Parameter(name=("--labeled", "--labelled"))],
    unlabeled: Annotated[Given, Parameter(name=("--unlabeled", "--unlabelled"))],
    rounds: int | None = None,
    patience: int | None = None,
    confidence: float | None = None,
    pseudo: Literal["soft", "hard"] | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a teacher on labels, let it label other images, and train students on both (arXiv
    1911.04252).

    For few images with labels and many without, of the same kinds. Labels that the others may
    have are not looked at.

    Example: featkit train self-training --labeled sorted/ --unlabeled unsorted/ --out run/

    Parameters
    ----------
    labeled
        Images with labels: whatever `featkit train dino` takes; one or several.
    unlabeled
        Images without; one or several.
    rounds
        Students after the teacher; by default 2.
    patience
        Rounds in a row that may fail to beat their teachers beyond noise; the run then ends. By default 1.
    confidence
        The least that a teacher must be sure of a label; by default 0.3.
    pseudo
        Whether a student learns the teacher's distribution (soft, the default) or its best class (hard).
    """

    def begin(
        config: "TrainConfig",
        sources: "Sequence[Source]",
        held_out: "Source | None",
        listener: "CourseListener",
    ) -> "Standing":
        from featkit_train.labeled import self_training as course

        with_labels, without = sources[: len(labeled)], sources[len(labeled) :]
        return course(
            config,
            with_labels,
            without,
            flags.out,
            held_out=held_out,
            resume=flags.resume,
            listener=listener,
        )

    settings = {
        "self_training.rounds": rounds,
        "self_training.patience": patience,
        "self_training.confidence": confidence,
        "self_training.pseudo": pseudo,
    }
    _run(
        "self-training",
        [*labeled, *unlabeled],
        begin,
        flags,
        own,
        cluster,
        settings,
        num_labeled=len(labeled),
    )


def internal(
    data: Data,
    /,
    *,
    exits: str | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a network with exits, the shallow ones taught by the deepest (Be Your Own Teacher,
    arXiv 1905.08094).

    For images with labels, when speed is wanted: the model may stop at any exit (`featkit export
    run/ --exit 2`), and the table says what each costs and finds.

    Example: featkit train internal images/ --out run/ --exits 1,2,3

    Parameters
    ----------
    data
        Where the images are; see `featkit train born-again`.
    exits
        Stages of a CNN, or blocks of a ViT, after which there is an exit beside the deepest, such as 1,2,3; by default those of
        the recipe, where it names any.
    """

    def begin(
        config: "TrainConfig",
        sources: "Sequence[Source]",
        held_out: "Source | None",
        listener: "CourseListener",
    ) -> "Standing":
        from featkit_train.labeled import internal as course

        return course(
            config, sources, flags.out, held_out=held_out, resume=flags.resume, listener=listener
        )

    _run("internal", data, begin, flags, own, cluster, {"classifier.exits": _numbers(exits)})


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise InputError(f"--exits {text} is no list of stages; write it as 1,2,3.") from error


def _run(
    method: str,
    data: Sequence[str],
    begin: Begin,
    flags: TrainFlags,
    own: LabelFlags | None,
    cluster: ClusterFlags | None,
    settings: Mapping[str, object],
    *,
    num_labeled: int | None = None,
) -> None:
    """num_labeled: of `data`, those of images with labels, which come first; None where all are."""
    config = configured(method, flags, own, settings)
    if cluster is not None and cluster.slurm:
        print_slurm(config, cluster)
        return
    from featkit_train.labeled.course import CourseListener

    sources, held_out = open_images(data, flags)
    quiet = flags.quiet or not is_main()
    if not quiet:
        counts = [sum(map(len, part)) for part in (sources[:num_labeled], sources[num_labeled:])]
        images = (
            counted(counts[0], "image")
            if num_labeled is None
            else "{:,} images with labels and {:,} without".format(*counts)
        )
        size = config.crops.global_size
        network = f"{config.classifier.arch} on {images} at {size}×{size}"
        print(
            f"{config.name}: {method}, {network}, {_length(config)}, to {flags.out}.",
            file=sys.stderr,
        )
        note_passed_over(*sources)
    with _Telling(quiet=quiet) as telling:
        listener = CourseListener(
            on_training=lambda name, steps: telling.begin(name, steps, "steps", say=True),
            on_log=telling.show,
            on_note=telling.note,
            on_plan=lambda plan: telling.line(in_words(plan)),
            on_asking=lambda name, images: telling.begin(
                f"{name}, asking its teacher", images, "images"
            ),
            on_asked=telling.count,
        )
        standing = begin(config, sources, held_out, listener)
    if is_main():
        _print_standing(standing, config.name, flags)


def _length(config: "TrainConfig") -> str:
    one = f"{counted(config.run.steps, 'step')} of {config.run.batch_size}"
    counts = {
        "born-again": (config.born_again.generations + 1, "generations"),
        "self-training": (config.self_training.rounds + 1, "rounds"),
    }
    count, kind = counts.get(config.method, (1, ""))
    longer = config.self_training.student_length
    students = (
        f", those of students {longer:g} times as long"
        if config.method == "self-training" and longer != 1
        else ""
    )
    return f"at most {count} {kind} of {one}{students}" if count > 1 else one


class _Telling:
    """What a course says, printed: each of its trainings has a bar of its own, under its name."""

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

    def begin(self, name: str, total: int, unit: str, *, say: bool = False) -> None:
        """The bar before ends, and one of this name begins; say: with a line."""
        self.__exit__(None, None, None)
        self._progress = ProgressReporter(
            name, total=total, unit=unit, quiet=self.quiet
        ).__enter__()
        if say:
            self.line(f"{name}: {total:,} {unit}")

    def show(self, log: "Mapping[str, Any]") -> None:
        """A line of what is measured."""
        if self._progress is not None and not self.quiet:
            show(log, self._progress)

    def count(self, done: int) -> None:
        """So much of the bar's total is done."""
        if self._progress is not None:
            self._progress(done)

    def line(self, text: str) -> None:
        """A line above the bar; with quiet none."""
        if self._progress is not None:
            self._progress.line(text)
        elif not self.quiet:
            print(text, file=sys.stderr)

    def note(self, note: str) -> None:
        """What was noticed, which is said with quiet too."""
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
    files = [
        ("backbone", backbone),
        ("classifier", flags.out / "classifier.safetensors"),
        ("report", flags.out / "report.html"),
    ]
    print_table(
        f"Chosen: {standing.chosen}",
        ("", ""),
        [("time", f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"), *files],
    )
    stdout().print(f"Next: featkit export {typed(flags.out)}{_exit(standing)} --out {name}.onnx")


def _exit(standing: "Standing") -> str:
    """The flag that takes the chosen exit out of the file of all of them; nothing for the deepest,
    which is taken anyway."""
    exits = [row.name for row in standing.rows if row.kind == "exit"]
    return f" --exit {exits.index(standing.chosen) + 1}" if standing.chosen in exits[:-1] else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# What of a row is shown, and how; with names of 16 letters it all fits into 80 columns.
COLUMNS: "dict[str, Callable[[Row], str]]" = {
    "accuracy": lambda row: f"{row.accuracy:.3f} ± {row.standard_error:.3f}",
    "kNN": lambda row: _share(row.knn),
    "copies": lambda row: _share(row.copies),
    "ECE": lambda row: _share(row.ece),
    "sure when\nwrong": lambda row: _share(row.wrong_confidence),
    "errors\nshared": lambda row: _share(row.shared_errors),
    "images/s": lambda row: "" if row.images_per_s is None else f"{row.images_per_s:,.0f}",
}
