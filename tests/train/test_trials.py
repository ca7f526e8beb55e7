"""Promises of trials."""

from __future__ import annotations

import re

import pytest

from featkit.errors import InputError
from featkit_train.trials import Outcome, plan_trials
from tests.train.small import small_config

NAMES = {"momentum": "teacher.momentum", "lr": "optim.lr"}


def test_every_combination_is_a_trial_with_its_label() -> None:
    sweeps = ["momentum=0.5,0.9", "crops.local_scale=[0.1, 0.2],[0.2, 0.4]"]
    trials = plan_trials(small_config(), sweeps, names=NAMES, steps=7)
    values = [(trial.config.teacher.momentum, trial.config.crops.local_scale) for trial in trials]
    assert values == [
        (0.5, (0.1, 0.2)),
        (0.5, (0.2, 0.4)),
        (0.9, (0.1, 0.2)),
        (0.9, (0.2, 0.4)),
    ]
    assert trials[1].label == "momentum=0.5, local_scale=[0.2, 0.4]"
    for trial in trials:
        run = trial.config.run
        assert run.steps == run.evaluate_every == run.checkpoint_every == 7


@pytest.mark.parametrize(("steps", "length"), [(5000, 500), (500, 100), (60, 60)])
def test_a_trial_takes_a_tenth_of_the_steps_and_at_least_100(steps: int, length: int) -> None:
    config = small_config(f"run.steps={steps}")
    (trial,) = plan_trials(config, ["lr=0.1"], names=NAMES, steps=None)
    assert trial.config.run.steps == length


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("momentum", "--sweep momentum has no values"),
        ("momentum=", "--sweep momentum= has no values"),
        ("momentun=0.9", "did you mean momentum?"),
        ("zzz=1", "write it as section.key"),
        ("optim.lrr=1", "did you mean optim.lr?"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused(sweep: str, words: str) -> None:
    config = small_config()
    with pytest.raises(InputError, match=re.escape(words)):
        plan_trials(config, [sweep], names=NAMES, steps=None)


def test_a_trial_without_a_score_counts_as_zero() -> None:
    assert Outcome({}, {}, "Uniform collapse at step 40").score == 0.0
    assert Outcome({}, {"copy_recall": 0.5}, "ok").score == 0.5
