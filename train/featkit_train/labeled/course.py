"""A course: a series of trainings in one folder, each a run in a subfolder, with a table of
results.

The files of the best training are copied to the course's folder. A course that was stopped resumes
by the same calls: finished trainings are not repeated, and an unfinished one is resumed.
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
from featkit_train.labeled.judge import Judge, Predictions
from featkit_train.labeled.split import Split
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

# Held-out images that a training measures on while it runs; the table uses all of them.
MAX_WATCHED = 500


@dataclass(frozen=True, kw_only=True)
class CourseListener(Listener):
    """Receives what each run reports, and the trainings of a course.

    on_training: the name and the steps of a training that begins. on_asking: its name and the
    number of images that its teacher will process first; on_asked: how many are done.
    """

    on_training: Callable[[str, int], None] = lambda _name, _steps: None
    on_asking: Callable[[str, int], None] = lambda _name, _count: None
    on_asked: Callable[[int], None] = lambda _done: None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training: its folder, network, and predictions on the held-out images by exit, the
    deepest last. seconds: the time of its steps."""

    name: str
    folder: Path
    classifier: Classifier
    predictions: list[Predictions]
    seconds: float


@dataclass(kw_only=True)
class Course:
    """A course in progress. `rows` and `remarks` are written after each training."""

    config: TrainConfig
    split: Split
    out: Path
    listener: CourseListener
    world: World
    device: torch.device
    rows: list[Row] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    _judge: Judge | None = None

    def train(self, name: str, config: TrainConfig, source: Source, labels: Labels) -> Trained:
        """Train in the subfolder `name` unless it is finished, and predict the held-out images."""
        folder = self.out / name
        if not self.is_finished(name, config):
            self.listener.on_training(name, config.run.steps)
            held_out = self.split.held_out
            train(
                config,
                [source],
                folder,
                held_out=subset(held_out, evenly(len(held_out), most=MAX_WATCHED)),
                labels=labels,
                resume=self.world.from_main((folder / CONFIG_FILE).is_file()),
                listener=self.listener,
            )
        classifier, info, classes = load_classifier(folder / CLASSIFIER_FILE)
        if classes != self.split.classes:
            raise InputError(
                f"{folder} was trained on other classes than the images have now; start another"
                " run."
            )
        classifier.to(self.device)
        if self._judge is None:
            self._judge = Judge(
                self.split.held_out, info.geometry, classes, label=self.config.labels.column
            )
        return Trained(
            name=name,
            folder=folder,
            classifier=classifier,
            predictions=self._judge.predict(classifier),
            seconds=read_metrics(folder / METRICS_FILE).seconds,
        )

    def is_finished(self, name: str, config: TrainConfig) -> bool:
        """Return whether the training of that name has taken all its steps."""
        checkpoints = list_checkpoints(self.out / name / CHECKPOINTS)
        return self.world.from_main(
            bool(checkpoints) and checkpoints[-1].name == f"step-{config.run.steps:08d}"
        )

    @property
    def judge(self) -> Judge:
        """The held-out images; available after the first training."""
        assert self._judge is not None
        return self._judge

    def add(
        self,
        name: str,
        kind: Kind,
        predictions: Predictions,
        *,
        teacher: Predictions | None = None,
        **known: Any,
    ) -> Row:
        """Add a row to the table and write it."""
        row = self.judge.row(name, kind, predictions, teacher=teacher, **known)
        self.rows.append(row)
        self._write()
        return row

    def follow(self, kind: Literal["generation", "round"], trained: Sequence[Trained]) -> bool:
        """Add the newest training's row; return whether it beats its teacher beyond noise, and
        remark on it if not.

        Its teacher is the training before it. The first has no teacher, and counts as a gain.
        """
        newest, generation = trained[-1], len(trained) - 1
        teacher = trained[-2] if generation else None
        row = self.add(
            newest.name,
            kind,
            newest.predictions[-1],
            teacher=None if teacher is None else teacher.predictions[-1],
            seconds=newest.seconds,
            parameters=sum(parameter.numel() for parameter in newest.classifier.parameters()),
        )
        if teacher is None:
            return True
        self.remark(agrees_with_errors(row.shared_errors, student=newest.name))
        gain = paired_gain(
            teacher.predictions[-1].probs, newest.predictions[-1].probs, self.judge.labels
        )
        before = next(each.accuracy for each in self.rows if each.name == teacher.name)
        self.remark(no_gain(before, row.accuracy, gain, generation=generation, kind=kind))
        return beyond_noise(gain)

    def end(self, kind: Literal["generation", "round"]) -> Standing:
        """Remark on the whole series of trainings, then `finish`."""
        confidences = [row.wrong_confidence for row in self.rows if row.kind == kind]
        self.remark(surer_of_mistakes(confidences, first=0, kind=kind))
        return self.finish()

    def remark(self, remark: Remark | None) -> None:
        """Keep a remark for the report and pass it to the listener; ignore None."""
        if remark is not None:
            self.remarks.append(remark)
            self.listener.on_note(remark.sentence)

    def finish(self, *, trained: str | None = None) -> Standing:
        """Copy the files of the chosen training to the course's folder and write the report.

        trained: its name; by default that of the most accurate one.
        """
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
            classes=list(self.split.classes),
            rows=self.rows,
            remarks=self.remarks,
            chosen=best.name,
        )
        if self.world.is_main:
            write_standing(self.out, standing)
        return standing


@contextlib.contextmanager
def open_course(
    config: TrainConfig,
    split: Split,
    out: Path,
    *,
    source: Source | None = None,
    resume: bool,
    listener: CourseListener | None,
) -> Iterator[Course]:
    """Begin a course in the folder `out`, or resume it.

    source: all images to learn from, if split.learned is only part of them. InputError as in
    `train`: `out` holds another run, or no run to resume.
    """
    check_out(out, resume=resume)
    device = local_device(pick_device(config.run.device))
    folder = run_folder(out, config, split.learned if source is None else source, split.held_out)
    with join_world(device) as world, explained(out, device), only_writer(out, world):
        if resume:
            folder.check_same()
        elif world.is_main:
            folder.begin()
        world.wait()
        listener = listener if listener is not None and world.is_main else CourseListener()
        if split.num_unlabeled:
            listener.on_note(f"Left out: {counted(split.num_unlabeled, 'image')} without a label.")
        try:
            yield Course(
                config=config, split=split, out=out, listener=listener, world=world, device=device
            )
        except InputError:
            # If no training could begin with these settings, leave the folder as it was, so that
            # the corrected command runs.
            if world.is_main and not resume and not any(out.glob(f"*/{CONFIG_FILE}")):
                (out / CONFIG_FILE).unlink()
            raise


def config_of_training(
    config: TrainConfig, index: int, *, length: float = 1.0, **changes: Any
) -> TrainConfig:
    """Return the config of training `index` of a course: with its own seed, and without held-out
    images, which the course holds out itself.

    length: its steps relative to the config's.
    """
    steps = max(1, round(config.run.steps * length))
    run = dataclasses.replace(config.run, seed=config.run.seed + index, held_out=0, steps=steps)
    return dataclasses.replace(config, run=run, **changes)
