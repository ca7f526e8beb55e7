"""Promises of the watch: what goes wrong is noticed within 50 steps of a run that provokes it,
named, and answered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featkit.sources import open_source
from featkit_train.log import Log
from featkit_train.loop import TrainingRun, train
from featkit_train.run_folder import NOTES_FILE
from featkit_train.run_parts import RunParts
from featkit_train.watching import diagnostics
from featkit_train.watching.diagnostics import (
    MAX_SETTLE_STEPS,
    MIN_RANK,
    PATIENCE_STEPS,
    SPIKE_MIN,
    Collapse,
    Finding,
    Watch,
    first_bad_tensor,
    rank_me,
    slow_teacher,
)
from featkit_train.watching.listener import Listener
from tests.train.momentum import momentum_teacher
from tests.train.small import small_config
from tests.train.steps import drawn_images

HEALTHY = {
    "dino_loss": 1.0,
    "teacher_entropy": 0.5,
    "batch_entropy": 0.9,
    "grad_norm": 1.0,
    "rankme": 5.0,
}
UNIFORM = {"dino_loss": math.log(64), "teacher_entropy": 0.999, "batch_entropy": 1.0}
ONE_HOT = {"dino_loss": 0.01, "teacher_entropy": 0.001, "batch_entropy": 0.001}
FLAT = {"rankme": 1.2}


def watch(*, settle_steps: int = 0) -> Watch:
    """Over 64 prototypes."""
    return Watch(64, settle_steps=settle_steps, prototype_loss="dino_loss")


def said(watch: Watch, steps: int, log: Log | None = None, *, first: int = 1) -> list[Finding]:
    """All that the watch says over `steps` steps of the same log."""
    return [
        finding
        for step in range(first, first + steps)
        for finding in watch(step, {**HEALTHY, **(log or {})})
    ]


# -- the watch by itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "name", "answer"),
    [
        (UNIFORM, "Uniform collapse at step 49", "set dino.centering to sinkhorn"),
        (ONE_HOT, "One-hot collapse at step 49", "Raise dino.teacher_temp"),
        (FLAT, "Dimensional collapse at step 49", "Add dino.koleo_weight"),
    ],
)
def test_a_lasting_collapse_is_named_once_with_advice(log: Log, name: str, answer: str) -> None:
    assert said(watch(settle_steps=10), 10 + PATIENCE_STEPS - 2, log) == []
    (finding,) = said(watch(settle_steps=10), 500, log)
    assert finding.sentence.startswith(name)
    assert answer in finding.sentence
    assert finding.is_collapse


def test_a_method_without_prototype_loss_is_watched_by_entropy() -> None:
    other = {"loss": math.log(64), "grad_norm": 1.0}
    assert [f for step in range(1, 200) for f in watch()(step, other)] == []
    looking = watch()
    (finding,) = [
        f for step in range(1, 200) for f in looking(step, {**other, "teacher_entropy": 0.999})
    ]
    assert finding.sentence.startswith("Uniform collapse at step 40: ")
    assert "ln K" not in finding.sentence
    assert finding.is_collapse
    looking = watch()
    (finding,) = [
        f for step in range(1, 200) for f in looking(step, {**other, "batch_entropy": 0.001})
    ]
    assert finding.sentence.startswith("One-hot collapse")


@pytest.mark.parametrize(("log", "name"), [(ONE_HOT, "One-hot"), (FLAT, "Dimensional")])
def test_a_long_warmup_hides_no_one_hot_or_dimensional_collapse(log: Log, name: str) -> None:
    looking = watch(settle_steps=100_000)
    assert said(looking, MAX_SETTLE_STEPS - 1, log) == []
    (finding,) = said(looking, 50, log, first=MAX_SETTLE_STEPS)
    assert finding.sentence.startswith(f"{name} collapse at step 1039")
    assert finding.is_collapse


def test_uniform_outputs_are_only_noted_until_warmup_ends() -> None:
    looking = watch(settle_steps=2000)
    (note,) = said(looking, 1999, UNIFORM)
    assert note.sentence.startswith("Uniform outputs at step 1039")
    assert "from step 2,000 on it is a collapse" in note.sentence
    assert not note.is_collapse
    (finding,) = said(looking, 500, UNIFORM, first=2000)
    assert finding.sentence.startswith("Uniform collapse at step 2039")
    assert finding.is_collapse


@pytest.mark.parametrize("log", [UNIFORM, ONE_HOT, FLAT])
def test_a_recovery_resets_the_count_and_a_relapse_is_reported(log: Log) -> None:
    looking = watch()
    for _ in range(5):
        assert said(looking, PATIENCE_STEPS - 1, log) == []
        assert said(looking, 1) == []
    assert len(said(looking, PATIENCE_STEPS, log)) == 1
    assert said(looking, 1) == []
    assert len(said(looking, PATIENCE_STEPS, log)) == 1


def test_a_rank_counts_for_the_steps_until_the_next_one() -> None:
    looking, found = watch(), []
    for step in range(1, 51):
        log = (
            {**HEALTHY, **FLAT}
            if step % 10 == 0
            else {name: value for name, value in HEALTHY.items() if name != "rankme"}
        )
        found += looking(step, log)
    assert [finding.sentence.split(":")[0] for finding in found] == [
        "Dimensional collapse at step 49"
    ]


def test_sharp_outputs_spread_over_prototypes_are_no_collapse() -> None:
    assert (
        said(watch(), 200, {"dino_loss": 0.5, "teacher_entropy": 0.01, "batch_entropy": 0.95}) == []
    )
    assert (
        said(watch(), 200, {"dino_loss": 2.0, "teacher_entropy": 1.0, "batch_entropy": 1.0}) == []
    )


def test_a_spike_is_ten_times_the_median_and_not_a_collapse() -> None:
    looking = watch(settle_steps=1000)
    assert said(looking, SPIKE_MIN - 1, {"grad_norm": 1.0}) == []
    assert said(looking, 1, {"grad_norm": 100.0}) == []  # too early to tell
    assert said(looking, 1, {"grad_norm": 9.9}) == []
    (finding,) = said(looking, 1, {"grad_norm": 20.0}, first=13)
    assert finding.sentence.startswith(
        "Gradient spike at step 13: a norm of 20, 20 times the median of the steps before."
    )
    assert "optim.warmup_steps" in finding.sentence
    assert not finding.is_collapse


def test_gradients_that_grow_slowly_are_no_spike() -> None:
    looking = watch()
    assert [
        finding
        for step in range(300)
        for finding in said(looking, 1, {"grad_norm": 1.05**step}, first=step)
    ] == []


@pytest.mark.parametrize(
    ("momentum", "steps", "expected"),
    [
        (
            0.996,
            1000,
            "Momentum too high: at 0.996 over 1,000 steps the teacher is replaced only 4.0 times",
        ),
        (0.9999, 50_000, "Set teacher.momentum to 0.992"),
        (0.996, 100_000, None),
        (0.9, 8, None),
        (0.95, 1000, None),
    ],
)
def test_a_momentum_too_high_is_named_with_a_better_one(
    momentum: float, steps: int, expected: str | None
) -> None:
    sentence = slow_teacher(lambda _step: momentum, num_steps=steps)
    assert (
        (sentence is None) if expected is None else (sentence is not None and expected in sentence)
    )


# -- RankMe ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_rank_me_counts_equal_directions(directions: int) -> None:
    axes = torch.eye(8)[:directions]
    assert rank_me(torch.cat([axes, -axes]) + 3.0) == pytest.approx(directions, rel=1e-4)


def test_rank_me_is_the_formula_of_its_docstring() -> None:
    embeddings = torch.randn(12, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svd(embeddings - embeddings.mean(dim=0)).S
    shares = [float(value / values.sum()) for value in values]
    assert rank_me(embeddings) == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0), shift=st.floats(-10, 10))
def test_rank_me_ignores_scale_shift_and_rotation(seed: int, scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(9, 5, generator=generator)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q
    rank = rank_me(embeddings)
    assert 1 <= rank <= 5 + 1e-4
    assert rank_me(scale * embeddings @ turn + shift * scale) == pytest.approx(rank, rel=1e-2)


@pytest.mark.parametrize("row", [torch.zeros(6), torch.arange(6.0)])
def test_rank_me_of_copies_of_one_embedding_is_zero(row: Tensor) -> None:
    assert rank_me(row.expand(5, 6)) == 0.0


# -- the first bad tensor --------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers, and a square root whose gradient at 0 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, rows: Tensor) -> Tensor:
        """Finite where the sum is not negative."""
        return self.second(self.first(rows)).sum().sqrt()  # type: ignore[no-any-return]


def fill(net: Net, first: float, second: float) -> None:
    """Every weight of a layer alike."""
    with torch.no_grad():
        for parameter in net.first.parameters():
            parameter.fill_(first)
        for parameter in net.second.parameters():
            parameter.fill_(second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1.0, math.nan, "the parameter second.weight"),
        (3e38, 1.0, "the output of first"),
        (1e30, 1e30, "the output of second"),
        (0.0, 0.0, "the gradient of first.weight"),
        (1.0, -1.0, "the loss itself"),
    ],
)
def test_the_first_bad_tensor_is_named(first: float, second: float, expected: str) -> None:
    net, rows = Net(), torch.ones(1, 2)
    fill(net, first, second)
    if expected.startswith("the gradient"):
        net(rows).backward()
    assert first_bad_tensor(net, lambda: net(rows)).startswith(expected)
    assert not net.first._forward_hooks


# -- runs that go wrong ----------------------------------------------------------------------------

LENGTH = [
    *("run.steps=50", "run.evaluate_every=50", "run.checkpoint_every=50"),
    *("dino.koleo_weight=0.0", "run.batch_size=4", "crops.num_local=0", "run.held_out=0"),
]
STILL = ["optim.lr=0.0", "optim.min_lr=0.0"]


def go(out: Path, spoil: Callable[[TrainingRun, int], None], *changes: str) -> list[str]:
    """Run 50 steps and let `spoil` change the weights before the first step (0) and after each one.

    Return the run's notes.
    """
    notes: list[str] = []

    def on_log(log: Log) -> None:
        if "loss" in log:
            spoil(run, int(log["step"]))

    config = small_config(*LENGTH, *changes)
    parts = RunParts(config, [open_source(drawn_images())], out)
    run = TrainingRun(parts, Listener(on_log=on_log, on_note=notes.append))
    out.mkdir()
    first = run.state.begin()
    spoil(run, 0)
    run.go(first)
    return notes


@torch.no_grad()
def to_one_prototype(run: TrainingRun, step: int) -> None:
    """The same bottleneck for every image, and a prototype in its direction."""
    if step == 0:
        branches: Sequence[Any] = run.parts.engine.method.branches()
        for branch in branches:
            last = branch.head.mlp[-1]
            last.weight.zero_()
            last.bias.copy_(
                torch.randn(last.bias.shape, generator=torch.Generator().manual_seed(0))
            )
            branch.head.prototypes[0] = last.bias


@torch.no_grad()
def to_one_direction(run: TrainingRun, step: int) -> None:
    """All channels but one of the last norm are held at a constant."""
    if step == 0:
        branches: Sequence[Any] = run.parts.engine.method.branches()
        for branch in branches:
            branch.backbone.norm.weight[1:] = 0.0


@torch.no_grad()
def to_short_prototypes(run: TrainingRun, step: int) -> None:
    """Gradients of unit directions grow as the vectors get short."""
    if step == 20:
        momentum_teacher(run.parts.engine.method).student.head.prototypes.mul_(1e-4)


@torch.no_grad()
def to_an_infinite_weight(run: TrainingRun, step: int) -> None:
    """Make one number of one parameter infinite."""
    if step == 5:
        momentum_teacher(run.parts.engine.method).student.backbone.get_parameter(
            "blocks.1.mlp.fc1.weight"
        )[3, 4] = math.inf


@torch.no_grad()
def to_an_overflow(run: TrainingRun, step: int) -> None:
    """Set finite weights whose products overflow."""
    if step == 5:
        backbone = momentum_teacher(run.parts.engine.method).student.backbone
        backbone.get_parameter("blocks.0.mlp.fc1.bias").fill_(10.0)
        backbone.get_parameter("blocks.0.mlp.fc2.weight").fill_(3e38)


def nothing(_run: TrainingRun, _step: int) -> None:
    """Settings alone are enough."""


WARM = ["dino.teacher_temp=100.0", "dino.teacher_temp_end=100.0", "optim.lr=0.01"]
COLD = ["dino.teacher_temp=0.02", "dino.teacher_temp_end=0.02", *STILL]
MILD = ["dino.teacher_temp=0.2", "dino.teacher_temp_end=0.2", *STILL]
COLLAPSES = {
    "uniform": (nothing, WARM, "Uniform collapse at step"),
    "one-hot": (to_one_prototype, COLD, "One-hot collapse at step"),
    "dimensional": (to_one_direction, MILD, "Dimensional collapse at step"),
}


@pytest.mark.parametrize("kind", COLLAPSES)
def test_a_provoked_collapse_stops_the_run_by_name(tmp_path: Path, kind: str) -> None:
    spoil, changes, name = COLLAPSES[kind]
    with pytest.raises(Collapse, match=name):
        go(tmp_path / "run", spoil, *changes)


@pytest.mark.parametrize("kind", ["one-hot", "dimensional"])
def test_a_provoked_collapse_stops_a_run_in_its_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(diagnostics, "MAX_SETTLE_STEPS", 5)
    spoil, changes, name = COLLAPSES[kind]
    with pytest.raises(Collapse, match=f"{name} 44:"):
        go(tmp_path / "run", spoil, *changes, "optim.warmup_steps=100000", "run.steps=200")


def test_a_provoked_collapse_is_a_note_with_on_collapse_warn(tmp_path: Path) -> None:
    spoil, changes, name = COLLAPSES["uniform"]
    notes = go(tmp_path / "run", spoil, "run.on_collapse=warn", *changes)
    (note,) = [note for note in notes if note.startswith(name)]
    kept = [json.loads(line) for line in (tmp_path / "run" / NOTES_FILE).read_text().splitlines()]
    assert note in [line["note"] for line in kept]
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_collapse_is_kept_in_the_folder_and_its_report(tmp_path: Path) -> None:
    with pytest.raises(Collapse):
        go(tmp_path / "run", nothing, *WARM)
    assert "Uniform collapse" in (tmp_path / "run" / NOTES_FILE).read_text()
    assert "Uniform collapse" in (tmp_path / "run" / "report.html").read_text()


def test_a_provoked_spike_is_noted_and_the_run_continues(tmp_path: Path) -> None:
    notes = go(tmp_path / "run", to_short_prototypes, *STILL)
    assert next(note for note in notes if "spike" in note).startswith("Gradient spike at step 21")


def test_a_weight_that_is_no_number_is_named_at_the_next_step(tmp_path: Path) -> None:
    bad = (
        r"not a number at step 6: the first bad tensor is the parameter"
        r" student\.backbone\.blocks\.1\.mlp\.fc1\.weight\."
    )
    with pytest.raises(Collapse, match=bad):
        go(tmp_path / "run", to_an_infinite_weight, "run.on_collapse=warn")


def test_an_activation_that_overflows_is_named_by_its_module(tmp_path: Path) -> None:
    bad = (
        r"not a number at step 6: .* is the output of student\.backbone\.blocks\.0\.mlp\.fc2\."
        r" Lower optim\.lr"
    )
    with pytest.raises(Collapse, match=bad):
        go(tmp_path / "run", to_an_overflow)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []

    def spoil(run: TrainingRun, step: int) -> None:
        to_an_overflow(run, step)
        if step == 5:
            seen.append(
                {
                    name: tensor.clone()
                    for name, tensor in run.parts.engine.method.state_dict().items()
                }
            )
            seen.append(run.parts.engine.method.state_dict())

    with pytest.raises(Collapse):
        go(tmp_path / "run", spoil)
    before, after = seen
    assert all(torch.equal(before[name], after[name]) for name in before if "center" not in name)


def test_a_momentum_too_high_is_noted_before_the_first_step(tmp_path: Path) -> None:
    notes: list[str] = []
    config = small_config("run.steps=2", "teacher.momentum=0.999")
    train(
        config,
        [open_source(drawn_images())],
        tmp_path / "run",
        listener=Listener(on_note=notes.append),
    )
    (note,) = [note for note in notes if "Momentum too high" in note]
    assert "Set teacher.momentum to 0.9" in note
    (line,) = [
        json.loads(line) for line in (tmp_path / "run" / NOTES_FILE).read_text().splitlines()
    ]
    assert line == {"step": 0, "note": note}


def test_a_healthy_run_says_nothing(tmp_path: Path) -> None:
    assert (
        go(
            tmp_path / "run",
            nothing,
            "dino.centering=sinkhorn",
            "dino.teacher_temp=0.01",
            "dino.teacher_temp_end=0.01",
        )
        == []
    )


def test_the_least_rank_is_above_that_of_one_direction() -> None:
    line = torch.linspace(-1, 1, 9)[:, None] * torch.ones(1, 4)
    assert rank_me(line) == pytest.approx(1.0, abs=1e-3)
    assert rank_me(line) < MIN_RANK
