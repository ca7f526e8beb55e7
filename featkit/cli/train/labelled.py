"""The methods with labels as commands: what each is for, the settings that only it has, and its table."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.train.flags import ClusterFlags, LabelFlags, TrainFlags
from featkit.cli.train.methods import Data
from featkit.cli.train.running import configured, in_words, is_main, print_slurm, show
from featkit.errors import InputError

if TYPE_CHECKING:
    from featkit.sources import Source
    from featkit_train.config import TrainConfig
    from featkit_train.labelled.course import CourseEars
    from featkit_train.watching.standing import Row, Standing

Given = Annotated[list[str], Parameter(consume_multiple=True, negative=())]
Begin = Callable[["TrainConfig", "Sequence[Source]", "Source | None", "CourseEars"], "Standing"]


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
    """Train a network, then students of its own architecture, each taught by the one before (arXiv 1805.04770).

    For pictures with labels, when a better network of the same size is wanted, or an ensemble. One command runs all of them.

    Example: featkit train born-again pictures/ --out run/ --generations 3

    Parameters
    ----------
    data
        Where the pictures are; see `featkit train dino`. Labels are a column of theirs, or the folders that they lie in.
    generations
        Students after the first network; by default 3.
    patience
        Generations in a row that may fail to beat their teachers beyond noise; the run then ends. By default 1.
    mode
        What is learnt beside the labels: the teacher's distribution (kd), the labels alone but by the teacher's confidence
        (cwtm), or the distribution with all but its maximum permuted (dkpp).
    temperature
        Of teacher's and student's distributions; by default 1.
    student
        Another architecture for the students, such as timm:resnet34.
    """

    def begin(config: "TrainConfig", sources: "Sequence[Source]", held_out: "Source | None", ears: "CourseEars") -> "Standing":
        from featkit_train.labelled import born_again as course

        return course(config, sources, flags.out, held_out=held_out, resume=flags.resume, ears=ears)

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
    labelled: Given,
    unlabelled: Given,
    rounds: int | None = None,
    patience: int | None = None,
    confidence: float | None = None,
    pseudo: Literal["soft", "hard"] | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a teacher on labels, let it label other pictures, and train students on both (arXiv 1911.04252).

    For few pictures with labels and many without, of the same kinds. Labels that the others may have are not looked at.

    Example: featkit train self-training --labelled sorted/ --unlabelled unsorted/ --out run/

    Parameters
    ----------
    labelled
        Pictures with labels: whatever `featkit train dino` takes; one or several.
    unlabelled
        Pictures without; one or several.
    rounds
        Students after the teacher; by default 2.
    patience
        Rounds in a row that may fail to beat their teachers beyond noise; the run then ends. By default 1.
    confidence
        The least that a teacher must be sure of a label; by default 0.3.
    pseudo
        Whether a student learns the teacher's distribution (soft) or its best class (hard).
    """

    def begin(config: "TrainConfig", sources: "Sequence[Source]", held_out: "Source | None", ears: "CourseEars") -> "Standing":
        from featkit_train.labelled import self_training as course

        with_labels, without = sources[: len(labelled)], sources[len(labelled) :]
        return course(config, with_labels, without, flags.out, held_out=held_out, resume=flags.resume, ears=ears)

    settings = {
        "self_training.rounds": rounds,
        "self_training.patience": patience,
        "self_training.confidence": confidence,
        "self_training.pseudo": pseudo,
    }
    _run("self-training", [*labelled, *unlabelled], begin, flags, own, cluster, settings)


def internal(
    data: Data,
    /,
    *,
    exits: str | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a network with exits, the shallow ones taught by the deepest (Be Your Own Teacher, arXiv 1905.08094).

    For pictures with labels, when speed is wanted: the model may stop at any exit (`featkit export run/ --exit 2`), and the
    table says what each costs and finds.

    Example: featkit train internal pictures/ --out run/ --exits 1,2,3

    Parameters
    ----------
    data
        Where the pictures are; see `featkit train born-again`.
    exits
        Stages of a CNN, or blocks of a ViT, after which there is an exit beside the deepest, such as 1,2,3.
    """

    def begin(config: "TrainConfig", sources: "Sequence[Source]", held_out: "Source | None", ears: "CourseEars") -> "Standing":
        from featkit_train.labelled import internal as course

        return course(config, sources, flags.out, held_out=held_out, resume=flags.resume, ears=ears)

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
) -> None:
    config = configured(method, flags, own, settings)
    if cluster is not None and cluster.slurm:
        print_slurm(config, cluster)
        return
    from featkit_train.labelled.course import CourseEars
    from featkit_train.pictures.sources import open_training_source

    sources = [open_training_source(spec) for spec in data]
    held_out = open_training_source(flags.held_out) if flags.held_out is not None else None
    quiet = flags.quiet or not is_main()
    if not quiet:
        size, run = config.crops.global_size, config.run
        print(
            f"{config.name}: {method}, {config.classifier.arch} on {sum(map(len, sources)):,} pictures at {size}×{size}, "
            f"{run.steps:,} steps of {run.batch_size} each time, to {flags.out}.",
            file=sys.stderr,
        )
    with ProgressReporter(method, total=config.run.steps, unit="steps", quiet=quiet) as progress:

        def say(text: str) -> None:
            if quiet:
                print(text, file=sys.stderr)
            else:
                progress.line(text)

        ears = CourseEars(
            on_training=lambda name, steps: None if quiet else progress.line(f"{name}: {steps:,} steps"),
            on_log=lambda log: None if quiet else show(log, progress),
            on_note=lambda note: say(f"featkit: {note}"),
            on_plan=lambda plan: None if quiet else progress.line(in_words(plan)),
        )
        standing = begin(config, sources, held_out, ears)
    if is_main():
        _print_standing(standing, config.name, flags)


def _print_standing(standing: "Standing", name: str, flags: TrainFlags) -> None:
    backbone = flags.out / "backbone.safetensors"
    if flags.quiet:
        stdout().print(str(backbone))
        return
    columns = [column for column in COLUMNS if any(COLUMNS[column](row) for row in standing.rows)]
    rows = [(row.name, *(COLUMNS[column](row) for column in columns)) for row in standing.rows]
    print_table(f"On {standing.num_held_out:,} held-out pictures", ("", *columns), rows)
    print_table("Chosen", ("", ""), [(standing.chosen, backbone), ("report", flags.out / "report.html")])
    stdout().print(f"Next: featkit export {flags.out} --out {name}.onnx")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# What of a row is shown, and how.
COLUMNS: "dict[str, Callable[[Row], str]]" = {
    "accuracy": lambda row: f"{row.accuracy:.3f} ± {row.standard_error:.3f}",
    "kNN": lambda row: _share(row.knn),
    "copies": lambda row: _share(row.copies),
    "ECE": lambda row: _share(row.ece),
    "sure when wrong": lambda row: _share(row.wrong_confidence),
    "teacher's errors shared": lambda row: _share(row.shared_errors),
    "images/s": lambda row: "" if row.images_per_s is None else f"{row.images_per_s:,.0f}",
    "minutes": lambda row: "" if row.seconds is None else f"{row.seconds / 60:.1f}",
}
