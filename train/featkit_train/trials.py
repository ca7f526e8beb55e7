"""Short runs that differ in one setting or two, to choose its value by what is found and not by
what the loss says."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from featkit.errors import InputError
from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.log import Log
from featkit_train.loop import train
from featkit_train.settings import from_mapping, parse_settings, to_mapping, with_settings
from featkit_train.watching.diagnostics import Collapse
from featkit_train.watching.listener import Listener
from featkit_train.watching.probe import COPIES

SHARE_OF_STEPS, LEAST_STEPS = 10, 100


@dataclasses.dataclass(frozen=True)
class Trial:
    """One combination of values: `label` says them, `config` has them."""

    label: str
    config: TrainConfig


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial came to; `ended` says whether by a collapse."""

    last: Log  # the last numbers of its log
    scores: Log
    ended: str

    @property
    def score(self) -> float:
        """What trials are compared by: copies found, or nothing."""
        return self.scores.get(COPIES, 0.0)


def plan_trials(
    config: TrainConfig, sweeps: Sequence[str], *, names: Mapping[str, str], steps: int | None
) -> list[Trial]:
    """Every combination of `name=value,value`, each `steps` long, by default a tenth of the
    config's and at least 100.

    names: short names for settings, such as momentum for teacher.momentum. InputError for another
    form or an unknown name.
    """
    length = steps or min(config.run.steps, max(LEAST_STEPS, config.run.steps // SHARE_OF_STEPS))
    choices = []
    for sweep in sweeps:
        name, separator, values = sweep.partition("=")
        if not separator or not values:
            raise InputError(
                f"--sweep {sweep} has no values; write it as name=value,value, such as"
                " momentum=0.9,0.99."
            )
        if "." not in name and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            meant = f"did you mean {near[0]}?" if near else "write it as section.key."
            raise InputError(f"There is no setting {name} to sweep; {meant}")
        choices.append([(name, value) for value in re.split(r",(?![^\[]*\])", values)])
    trials = []
    for chosen in itertools.product(*choices):
        lengths = dict.fromkeys(("run.steps", "run.evaluate_every", "run.checkpoint_every"), length)
        values_by_name = parse_settings(
            [f"{names.get(name, name)}={value}" for name, value in chosen]
        )
        mapping = with_settings(to_mapping(config), lengths | values_by_name)
        label = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in chosen)
        trials.append(Trial(label, from_mapping(TrainConfig, mapping)))
    return trials


def run_trial(
    trial: Trial,
    sources: Sequence[Source],
    out: Path,
    *,
    held_out: Source | None = None,
    on_log: Callable[[Log], None] = lambda _log: None,
) -> Outcome:
    """Run a trial in its own folder below `out`. A collapse is an outcome like any other."""
    logs: list[Log] = []

    def keep(log: Log) -> None:
        logs.append(log)
        on_log(log)

    folder = out / re.sub(r"[^\w.=,-]", "_", trial.label)
    ended = "ok"
    try:
        train(trial.config, sources, folder, held_out=held_out, listener=Listener(on_log=keep))
    except Collapse as collapse:
        ended = str(collapse).split(":")[0]
    last = next((log for log in reversed(logs) if "loss" in log), {})
    scores = next((log for log in reversed(logs) if COPIES in log), {})
    return Outcome(last, scores, ended)
