"""`featkit train ... --sweep`: short trials of a setting's values, and a table to compare them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.train.flags import SETTINGS, TrainFlags
from featkit.wording import counted

# Values of a trial's last log, and their headings.
COLUMNS = {
    "loss": "loss",
    "teacher_entropy": "entropy",
    "rankme": "RankMe",
    "images_per_s": "images/s",
}

if TYPE_CHECKING:
    from featkit.sources import Source
    from featkit_train.config import TrainConfig


def run_trials(
    config: "TrainConfig",
    sources: "Sequence[Source]",
    held_out: "Source | None",
    flags: TrainFlags,
    sweep: Sequence[str],
) -> None:
    """Run every combination of the values and print a table of the results.

    Each trial takes --steps, by default a tenth of the recipe's steps.
    """
    from featkit_train.trials import plan_trials, run_trial

    steps = config.run.steps if flags.steps is not None else None
    trials = plan_trials(config, sweep, names=SETTINGS, steps=steps)
    length = trials[0].config.run.steps
    if not flags.quiet:
        print(
            f"{counted(len(trials), 'trial')} of {counted(length, 'step')} each, in {flags.out}.",
            file=sys.stderr,
        )
    outcomes = []
    for position, trial in enumerate(trials, 1):
        label = f"trial {position} of {len(trials)}, {trial.label}"
        with ProgressReporter(label, total=length, unit="steps", quiet=flags.quiet) as progress:
            outcomes.append(
                run_trial(trial, sources, flags.out, held_out=held_out, on_log=_moving(progress))
            )
    rows = [
        (
            trial.label,
            f"{outcome.score:.3f}",
            *(f"{outcome.last[name]:.3f}" if name in outcome.last else "" for name in COLUMNS),
            outcome.ended,
        )
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]
    print_table(
        f"Trials of {counted(length, 'step')}",
        ("setting", "copies", *COLUMNS.values(), "ended"),
        rows,
    )
    best, _ = max(zip(trials, outcomes, strict=True), key=lambda pair: pair[1].score)
    stdout().print(f"Best: {best.label}.")


def _moving(progress: ProgressReporter) -> Callable[[Mapping[str, float]], None]:
    return lambda log: progress(int(log["step"]))
