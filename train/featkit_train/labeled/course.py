"""The folder of trainings that follow each other: each a run of its own below it, one table of all,
and the chosen one's files.

A course that was stopped goes on by the same calls: what is finished is not trained again, what is
not is resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from featkit.atomic import replace_file
from featkit.errors import InputError
from featkit.sources import Source, evenly, subset
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.engine.checkpoints import list_checkpoints
from featkit_train.engine.failures import explained
from featkit_train.labeled.judge import Judge, Seen
from featkit_train.labeled.parting import Parted
from featkit_train.loop import check_out, only_writer, train
from featkit_train.methods import Labels
from featkit_train.networks.classifier import Classifier
from featkit_train.processes.device import pick_device
from featkit_train.processes.distributed import World, join_world, local_device
from featkit_train.report.generations import write_generations_report
from featkit_train.report.metrics import read_metrics
from featkit_train.run_folder import CHECKPOINTS, CONFIG_FILE, METRICS_FILE
from featkit_train.run_parts import run_folder
from featkit_train.watching.judging import (
    Remark,
    agrees_with_errors,
    beyond_noise,
    no_gain,
    paired_gain,
    surer_of_mistakes,
)
from featkit_train.watching.listener import Listener
from featkit_train.watching.standing import Kind, Row, Standing, write_standing
from featkit_train.weights import BACKBONE_FILE, CLASSIFIER_FILE, load_classifier

# held-out images that a training is measured on as it goes; the table is of all
MOST_WATCHED = 500


@dataclass(frozen=True, kw_only=True)
class CourseListener(Listener):
    """Who hears of a course: as of a run, and of each training as it begins, with its name and
    steps.

    on_asking: a training's teacher begins to be asked about so many images; on_asked: about how
    many it has been.
    """

    on_training: Callable[[str, int], None] = lambda _name, _steps: None
    on_asking: Callable[[str, int], None] = lambda _name, _count: None
    on_asked: Callable[[int], None] = lambda _done: None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training: its network, where it lies, what it makes of the held-out images by
    exit, and seconds of steps."""

    name: str
    folder: Path
    classifier: Classifier
    seen: list[Seen]
    seconds: float


@dataclass(kw_only=True)
class Course:
    """A course in progress. `rows` and `remarks` are written each time that a training has been
    judged."""

    config: TrainConfig
    parted: Parted
    out: Path
    listener: CourseListener
    world: World
    device: torch.device
    rows: list[Row] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    _judge: Judge | None = None

    def train(self, name: str, config: TrainConfig, source: Source, labels: Labels) -> Trained:
        """Train by `config` in the folder `name`, unless that has been done, and look at the
        held-out images."""
        folder = self.out / name
        if not self.is_finished(name, config):
            self.listener.on_training(name, config.run.steps)
            held_out = self.parted.held_out
            train(
                config,
                [source],
                folder,
                held_out=subset(held_out, evenly(len(held_out), most=MOST_WATCHED)),
                labels=labels,
                resume=self.world.from_main((folder / CONFIG_FILE).is_file()),
                listener=self.listener,
            )
        classifier, info, classes = load_classifier(folder / CLASSIFIER_FILE)
        if classes != self.parted.classes:
            raise InputError(
                f"{folder} is of other classes than the images now have; begin another run."
            )
        classifier.to(self.device)
        if self._judge is None:
            self._judge = Judge(
                self.parted.held_out, info.geometry, classes, label=self.config.labels.column
            )
        return Trained(
            name=name,
            folder=folder,
            classifier=classifier,
            seen=self._judge.see(classifier),
            seconds=read_metrics(folder / METRICS_FILE).seconds,
        )

    def is_finished(self, name: str, config: TrainConfig) -> bool:
        """Whether the training of that name has taken all its steps."""
        checkpoints = list_checkpoints(self.out / name / CHECKPOINTS)
        return self.world.from_main(
            bool(checkpoints) and checkpoints[-1].name == f"step-{config.run.steps:08d}"
        )

    @property
    def judge(self) -> Judge:
        """Who looks at the held-out images; there is one as soon as anything has been trained."""
        assert self._judge is not None
        return self._judge

    def add(
        self, name: str, kind: Kind, seen: Seen, *, teacher: Seen | None = None, **known: Any
    ) -> Row:
        """A row of the table, which is written anew."""
        row = self.judge.row(name, kind, seen, teacher=teacher, **known)
        self.rows.append(row)
        self._write()
        return row

    def follow(self, kind: Literal["generation", "round"], trained: Sequence[Trained]) -> bool:
        """The row of the newest, and whether it beats its teacher, the one before, beyond noise;
        said where it does not.

        The first has no teacher, and True is said of it.
        """
        newest, number = trained[-1], len(trained) - 1
        teacher = trained[-2] if number else None
        row = self.add(
            newest.name,
            kind,
            newest.seen[-1],
            teacher=None if teacher is None else teacher.seen[-1],
            seconds=newest.seconds,
            parameters=sum(parameter.numel() for parameter in newest.classifier.parameters()),
        )
        if teacher is None:
            return True
        self.remark(agrees_with_errors(row.shared_errors, student=newest.name))
        gain = paired_gain(teacher.seen[-1].probs, newest.seen[-1].probs, self.judge.labels)
        before = next(each.accuracy for each in self.rows if each.name == teacher.name)
        self.remark(no_gain(before, row.accuracy, gain, generation=number, kind=kind))
        return beyond_noise(gain)

    def end(self, kind: Literal["generation", "round"]) -> Standing:
        """What is to be said of all that followed each other, and `finish`."""
        self.remark(
            surer_of_mistakes(
                [row.wrong_confidence for row in self.rows if row.kind == kind], first=0, kind=kind
            )
        )
        return self.finish()

    def remark(self, remark: Remark | None) -> None:
        """Keep what was noticed, and say it; nothing of None."""
        if remark is not None:
            self.remarks.append(remark)
            self.listener.on_note(remark.sentence)

    def finish(self, *, trained: str | None = None) -> Standing:
        """The files of the most accurate training, or of the one named, are copied up: they are the
        result. The report."""
        standing = self._write()
        if self.world.is_main:
            chosen = self.out / (trained or standing.chosen)
            for file in (BACKBONE_FILE, CLASSIFIER_FILE):
                with replace_file(self.out / file) as temporary:
                    shutil.copyfile(chosen / file, temporary)
            write_generations_report(self.out)
        self.world.wait()
        return standing

    def _write(self) -> Standing:
        best = max(
            (row for row in self.rows if row.kind != "ensemble"), key=lambda row: row.accuracy
        )
        standing = Standing(
            name=self.config.name,
            method=self.config.method,
            num_held_out=len(self.judge.labels),
            classes=list(self.parted.classes),
            rows=self.rows,
            remarks=self.remarks,
            chosen=best.name,
        )
        if self.world.is_main:
            write_standing(self.out, standing)
        return standing


@contextlib.contextmanager
def course(
    config: TrainConfig,
    parted: Parted,
    out: Path,
    *,
    source: Source | None = None,
    resume: bool,
    listener: CourseListener | None,
) -> Iterator[Course]:
    """Begin the folder `out`, or go on in it. source: all images that are learned from, where they
    are not parted.learned.

    InputError as for `train`: `out` holds another run, or none to resume.
    """
    check_out(out, resume=resume)
    device = local_device(pick_device(config.run.device))
    learned = parted.learned if source is None else source
    folder = run_folder(out, config, learned, parted.held_out)
    with join_world(device) as world, explained(out, device), only_writer(out, world):
        if resume:
            folder.check_same()
        elif world.is_main:
            folder.begin()
        world.wait()
        listener = listener if listener is not None and world.is_main else CourseListener()
        if parted.num_unlabeled:
            listener.on_note(
                f"Neither learned nor measured on: {counted(parted.num_unlabeled, 'image')}"
                " without a label."
            )
        try:
            yield Course(
                config=config, parted=parted, out=out, listener=listener, world=world, device=device
            )
        except InputError:
            # Settings that no training could begin with: the folder is as it was, for a command
            # that mends them.
            if world.is_main and not resume and not any(out.glob(f"*/{CONFIG_FILE}")):
                (out / CONFIG_FILE).unlink()
            raise


def of_training(
    config: TrainConfig, number: int, *, length: float = 1.0, **changes: Any
) -> TrainConfig:
    """The config of training `number` of a course: other randomness than the others', and no
    images held out by itself.

    length: its steps over those that the config says.
    """
    steps = max(1, round(config.run.steps * length))
    run = dataclasses.replace(config.run, seed=config.run.seed + number, held_out=0, steps=steps)
    return dataclasses.replace(config, run=run, **changes)
