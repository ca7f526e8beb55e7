"""Turn the flags of `featkit train` into a config, then into a run, trials, or a Slurm script."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.selecting import note_passed_over, selection_of
from featkit.cli.train.flags import SETTINGS, ClusterFlags, LabelFlags, TeacherFlags, TrainFlags
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.wording import counted, typed

if TYPE_CHECKING:
    from featkit.sources import Source
    from featkit_train.config import TrainConfig
    from featkit_train.loop import TrainReport
    from featkit_train.watching.listener import Listener
    from featkit_train.watching.plan import Plan

SHOWN = ("loss", "batch_accuracy", "teacher_entropy", "rankme", "images_per_s", "waiting_share")
# Scores in metrics.jsonl, and how they are printed.
SCORES = {"accuracy": "accuracy", "copy_recall": "copy recall@1", "knn": "kNN accuracy"}


def run(
    method: str,
    data: list[str],
    flags: TrainFlags,
    own: TeacherFlags | None,
    cluster: ClusterFlags | None,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Train by a method with a momentum teacher. settings: values of the method's own flags, None
    for those not given."""
    config = configured(method, flags, own, settings)
    from featkit_train.loop import train

    if cluster is not None and cluster.slurm:
        print_slurm(config, cluster)
        return
    sources, held_out = open_images(data, flags)
    if own is not None and own.sweep:
        from featkit.cli.train.trials import run_trials

        run_trials(config, sources, held_out, flags, own.sweep)
        return
    quiet = flags.quiet or not is_main()
    if not quiet:
        _print_introduction(config, sum(len(source) for source in sources), flags)
        note_passed_over(*sources)
    with ProgressReporter(
        "training", total=config.run.steps, unit="steps", quiet=quiet
    ) as progress:
        report = train(
            config,
            sources,
            flags.out,
            held_out=held_out,
            resume=flags.resume,
            listener=_printing(progress, quiet=quiet),
        )
    if is_main():
        _print_result(report, config.name, flags)


def _printing(progress: ProgressReporter, *, quiet: bool) -> "Listener":
    """Return a listener that prints above the progress bar. Notes are printed with --quiet, too."""
    from featkit_train.watching.listener import Listener

    if quiet:
        return Listener(on_note=lambda note: print(f"featkit: {note}", file=sys.stderr))
    return Listener(
        on_log=lambda log: show(log, progress),
        on_note=lambda note: progress.line(f"featkit: {note}"),
        on_plan=lambda plan: progress.line(in_words(plan)),
    )


def configured(
    method: str,
    flags: TrainFlags,
    own: TeacherFlags | LabelFlags | None,
    settings: Mapping[str, object] | None,
) -> "TrainConfig":
    """Build the config: the recipe, then the flags that all methods and this kind of method share,
    then the method's own `settings`, then --set."""
    need_extra("train", "torch", "safetensors", "yaml", "tensorboard")
    from featkit_train.configure import configure
    from featkit_train.settings import parse_settings

    typed_flags = {
        SETTINGS[flag]: getattr(group, flag)
        for group in (flags, own)
        for flag in SETTINGS
        if hasattr(group, flag)
    }
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in (typed_flags | dict(settings or {})).items()
        if value is not None
    }
    with plain_warnings():
        return configure(method, flags.recipe, given | parse_settings(flags.set_ or []))


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each different warning raised inside as one line, without Python's file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if is_main():
        for sentence in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"featkit: {sentence}", file=sys.stderr)


def open_images(data: Sequence[str], flags: TrainFlags) -> "tuple[list[Source], Source | None]":
    """Open the images to learn from and those of --held-out, if given."""
    from featkit.sources.opening import refuse_unused_column
    from featkit_train.images.torchvision import open_training_source

    for spec in data:
        if Path(spec).is_dir() and Path(spec).resolve() == flags.out.resolve():
            raise InputError(
                f"--out {flags.out} is the folder of images itself. Name a folder in it, such as"
                f" {flags.out / 'run'}."
            )
    selection = selection_of(flags.select, own=[flags.out])
    specs = data if flags.held_out is None else [*data, flags.held_out]
    sources = [
        open_training_source(spec, selection=selection, check_column=False) for spec in specs
    ]
    refuse_unused_column(selection, *sources)
    return sources[: len(data)], None if flags.held_out is None else sources[-1]


def is_main() -> bool:
    """Return whether this is the only process, or the first one of torchrun's."""
    return os.environ.get("RANK", "0") == "0"


def _print_introduction(config: "TrainConfig", count: int, flags: TrainFlags) -> None:
    model = (
        f"ViT of width {config.model.width}, depth {config.model.depth}, patch {config.model.patch}"
    )
    if config.method == "adapt":
        model = config.pretrained.name
    elif config.network.arch != "vit":
        model = config.network.arch
    size, run = config.crops.global_size, config.run
    print(
        f"{config.name}: {config.method}, {model} on {counted(count, 'image')} at {size}×{size}, "
        f"{counted(run.steps, 'step')} of {run.batch_size}, to {flags.out}.",
        file=sys.stderr,
    )


def in_words(plan: "Plan") -> str:
    """Return the plan as a line of text."""
    hours = (
        f"{plan.hours_left:.1f} h" if plan.hours_left >= 1 else f"{plan.hours_left * 60:.0f} min"
    )
    memory = f", {plan.memory_bytes / 1e9:.1f} GB of memory" if plan.memory_bytes else ""
    return (
        f"plan: {counted(plan.steps_left, 'step')} to go, {hours} at {plan.images_per_s:.1f}"
        f" images/s on {plan.device}{memory}. Ctrl-C stops at a checkpoint."
    )


def show(log: Mapping[str, Any], progress: ProgressReporter) -> None:
    """Print a log entry as one line above the progress bar."""
    step = int(log["step"])
    progress(step)
    scores = [(words, log[name]) for name, words in SCORES.items() if name in log]
    shown = [f"{words} {score:.3f}" for words, score in scores]
    if scores:
        words, score = scores[0]
        shown[0] = f"{words} on held-out images {score:.3f}"
    else:
        shown = [f"{name} {log[name]:.3f}" for name in SHOWN if name in log]
    progress.line(f"step {step:>6,}  " + "  ".join(shown))


def _print_result(report: "TrainReport", name: str, flags: TrainFlags) -> None:
    if flags.quiet:
        stdout().print(str(report.backbone))
        return
    rows: list[tuple[str, object]] = [
        ("steps", f"{report.steps:,}"),
        ("time", f"{report.seconds / 60:.1f} min"),
        ("images/s", f"{report.images_per_s:.1f}"),
        ("waiting for data", f"{report.waiting_share:.1%}"),
    ]
    if report.unreadable:
        rows.append(("failed reads of images", f"{report.unreadable:,}"))
    rows += [
        (f"{words}, held out", f"{report.scores[key]:.3f}")
        for key, words in SCORES.items()
        if key in report.scores
    ]
    if report.rolled_back_to is not None:
        rows.append(
            ("model of step", f"{report.rolled_back_to:,}, the best; later steps were worse")
        )
    print_table(
        "Training finished",
        ("", ""),
        [*rows, ("backbone", report.backbone), ("report", report.page)],
    )
    stdout().print(f"Next: featkit export {typed(flags.out)} --out {name}.onnx")


def print_slurm(config: "TrainConfig", cluster: ClusterFlags) -> None:
    """Print a Slurm script that runs this command."""
    from featkit_train.slurm import slurm_script

    script = slurm_script(
        command_without(
            sys.argv[1:],
            {"--slurm": 0, "--nodes": 1, "--gpus-per-node": 1, "--time": 1, "--partition": 1},
        ),
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        time=cluster.time,
        partition=cluster.partition,
        name=config.name,
    )
    print(script, end="")


def command_without(arguments: Sequence[str], flags: Mapping[str, int]) -> list[str]:
    """Return a command line without some flags. flags: how many arguments follow each;
    `--flag=value` is one argument."""
    kept: list[str] = []
    skip = 0
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        if skip:
            skip -= 1
        elif name in flags:
            skip = 0 if separator else flags[name]
        else:
            kept.append(argument)
    if not kept:
        raise InputError(
            "There is no command line for the Slurm script. Run `featkit train METHOD ... --slurm`"
            " from a shell."
        )
    return kept
