"""Short runs that differ in one or two settings, to choose their values by copy recall rather than
by the loss."""

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

SHARE_OF_STEPS, MIN_STEPS = 10, 100


@dataclasses.dataclass(frozen=True)
class Trial:
    """A config with one combination of values. label: the values in words."""

    label: str
    config: TrainConfig


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a trial. ended: "ok", or the collapse that ended it."""

    last: Log  # its last metrics
    scores: Log
    ended: str

    @property
    def score(self) -> float:
        """The score that trials are compared by: copy recall, 0 if it was not measured."""
        return self.scores.get(COPIES, 0.0)


def plan_trials(
    config: TrainConfig, sweeps: Sequence[str], *, names: Mapping[str, str], steps: int | None
) -> list[Trial]:
    """Return a trial for every combination of the sweeps, each written as `name=value,value`.

    names: short names of settings, such as momentum for teacher.momentum. steps: length of a trial;
    by default a tenth of the config's steps and at least 100. InputError for another form or an
    unknown name.
    """
    length = steps or min(config.run.steps, max(MIN_STEPS, config.run.steps // SHARE_OF_STEPS))
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
            advice = f"did you mean {near[0]}?" if near else "write it as section.key."
            raise InputError(f"There is no setting {name} to sweep; {advice}")
        # Commas within a list, such as [0.2, 0.9], do not separate values.
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
