"""Four studies of self-distillation: generations, self-training, exits, and momentum.

Each trains in folders of its own and can be stopped at any time; the next start resumes. Its
figures are those of the trainings that are finished. Gains are paired: two trainings are compared
image by image, and over several seeds the images' differences are averaged.

Letters: N test images, U images without labels, E exits (the deepest last), K classes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featkit.atomic import replace_folder, write_text
from featkit.evaluate.knn import NEIGHBORS, evaluate_knn
from featkit_export.graph import EmbeddingGraph
from featkit_export.recipe import Recipe
from featkit_export.torch_embedder import TorchEmbedder
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.engine.checkpoints import list_checkpoints, load_method
from featkit_train.labeled import born_again, internal, self_training
from featkit_train.labeled.course import CourseListener
from featkit_train.labeled.judge import Judge
from featkit_train.labeled.pseudo_labels import PSEUDO_FILE, accept, label_images
from featkit_train.loop import train
from featkit_train.methods import make_method
from featkit_train.methods.labels import codes_of
from featkit_train.methods.momentum import MomentumTeacher
from featkit_train.report.metrics import read_metrics
from featkit_train.run_folder import CHECKPOINTS, METRICS_FILE, NOTES_FILE
from featkit_train.settings import parse_settings
from featkit_train.watching.diagnostics import Collapse
from featkit_train.watching.judging import Gain, confidence_when_wrong, shared_errors
from featkit_train.watching.standing import NETWORK, STANDING_FILE, Row, read_standing
from featkit_train.weights import CLASSIFIER_FILE, load_backbone, load_classifier
from tests.benchmarks.labeled import (
    QUICK_STEPS,
    Images,
    Setting,
    config_of,
    for_training,
    is_begun,
    labels_in,
)

STUDENT_LENGTH = 3  # steps of a student, relative to its teacher's
QUICK = ("run.batch_size=16",)
TEACHER, STUDENT = "round-0", "round-1"
NO_NOISE = (
    "crops.global_scale=[1.0, 1.0]",
    "crops.flip_probability=0",
    "color.jitter_probability=0",
)
HARD, UNFILTERED = "self_training.pseudo=hard", "self_training.confidence=0"
# The first as the paper does it; the next three differ in one thing, and the last in all three.
STUDENTS: Mapping[str, Sequence[str]] = {
    "as in the paper": (),
    "hard pseudo-labels": (HARD,),
    "no threshold": (UNFILTERED,),
    "no noise": NO_NOISE,
    "all three": (HARD, UNFILTERED, *NO_NOISE),
}
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MOMENTA = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)
CENTERINGS = ("sinkhorn", "center")
MOMENTUM_STEPS = 1000
# The recipe `small` at 48 pixels, with the small convnet of the other studies.
DINO = (
    "network.options={stem: 16, widths: [32, 64, 128], blocks: [1, 2, 3]}",
    "crops.global_size=48",
    "dino.head={num_prototypes: 1024, hidden_width: 512, bottleneck_width: 128}",
    "run.held_out=0",
    "run.on_collapse=warn",
)
SEED = re.compile(r"-(\d+)(?=-|$)")  # in the name of a training's folder
Report = Callable[[], None]


@dataclass(kw_only=True)
class Laboratory:
    """Images, seeds and lengths of the trainings, and the folder that holds them.

    length: a factor of all trainings' steps. all_seeds: whether variants of self-training and the
    sweep of momentum are trained for every seed, and not for the setting's first one alone.
    """

    setting: Setting
    images: Images
    room: Path
    seeds: Sequence[int]
    length: float = 1.0
    all_seeds: bool = False
    quick: bool = False
    _probs: dict[Path, np.ndarray] = field(default_factory=dict)

    def steps(self, steps: int) -> int:
        """Return the steps of a training that has `steps` at length 1."""
        return QUICK_STEPS if self.quick else max(QUICK_STEPS, round(steps * self.length))

    @property
    def seeds_of_variants(self) -> list[int]:
        """The seeds to train variants for."""
        first = self.setting.seeds[0]
        return [seed for seed in self.seeds if self.all_seeds or seed == first]

    @property
    def known_seeds(self) -> list[int]:
        """The seeds that have a training in the room, also those of other processes."""
        found = (SEED.search(path.name) for path in self.room.iterdir())
        return sorted({int(match[1]) for match in found if match})

    def config(self, method: str, *settings: str, seed: int, few: bool = False) -> TrainConfig:
        """Return the config of a course. few: that of self-training, with few labels."""
        steps = self.steps(self.setting.few_steps if few else self.setting.steps)
        small = QUICK if self.quick else ()
        config = config_of(method, self.setting, *small, *settings)
        longest = STUDENT_LENGTH if few else 1
        return for_training(config, steps=steps, seed=seed, longest=longest)

    def listener(self, report: Report) -> CourseListener:
        """Return a listener that writes the figures of finished trainings when another begins."""

        def on_training(name: str, steps: int) -> None:
            report()
            print(f"{name}: {steps:,} steps", flush=True)

        return CourseListener(on_training=on_training, on_note=lambda note: print(note, flush=True))

    def plain(self, seed: int, report: Report) -> Path:
        """Train the network on all labels, without a teacher, unless it is finished; return its
        folder. It is generation 0, and the network to compare exits with."""
        out = self.room / f"plain-{seed}"
        if not is_finished(out):
            born_again(
                self.config("born-again", "born_again.generations=0", seed=seed),
                [self.images.learned],
                out,
                held_out=self.images.test,
                resume=is_begun(out),
                listener=self.listener(report),
            )
        return out / "generation-0"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The sorted classes."""
        return tuple(np.unique(labels_in(self.images.learned)).tolist())

    @cached_property
    def truth(self) -> np.ndarray:
        """Class ids (N,) of the test images."""
        return codes_of(labels_in(self.images.test).tolist(), self.classes)

    @cached_property
    def truth_of_unlabeled(self) -> np.ndarray:
        """Class ids (U,) that no training sees."""
        return codes_of(labels_in(self.images.unlabeled).tolist(), self.classes)

    @cached_property
    def judge(self) -> Judge:
        """The test images as the networks of this setting take them."""
        geometry = load_classifier(next(self.room.glob(f"*/*/{CLASSIFIER_FILE}")))[1].geometry
        return Judge(self.images.test, geometry, self.classes, label="label")

    def probs(self, training: Path) -> np.ndarray:
        """Return a finished training's probabilities (E, N, K) for the test images; they are kept
        in its folder."""
        path = training / "test.npy"
        if path not in self._probs:
            if not path.is_file():
                classifier, _, _ = load_classifier(training / CLASSIFIER_FILE)
                by_exit = [each.probs for each in self.judge.predict(classifier)]
                np.save(path, np.stack(by_exit))
            self._probs[path] = np.load(path)
        return self._probs[path]

    def gain(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
        """Return the figures of `gain_over` for pairs of probabilities (N, K), one for each
        seed, and the accuracies before."""
        gain = gain_over(pairs, self.truth)
        by_seed = [gain_over([pair], self.truth).difference for pair in pairs]
        before = [float((before.argmax(axis=1) == self.truth).mean()) for before, _ in pairs]
        return {
            "before": [round(each, 5) for each in before],
            "difference": round(gain.difference, 5),
            "standard error": round(gain.standard_error, 5),
            "by seed": [round(each, 5) for each in by_seed],
        }

    def about(self, config: TrainConfig) -> dict[str, Any]:
        """Return what was trained on what, for the record."""
        return {
            "quick": self.quick,
            "images with labels": len(self.images.learned),
            "test images": len(self.images.test),
            "classes": len(self.classes),
            "steps": config.run.steps,
            "batch size": config.run.batch_size,
            "pixels": config.crops.global_size,
        }


@dataclass(frozen=True)
class Study:
    """Trainings and their figures. minutes: of both cores together, as measured on two cores with
    AVX-512 bf16. train: calls its argument `report` after each training."""

    minutes: int
    train: Callable[[Laboratory, Report], None]
    figures: Callable[[Laboratory], dict[str, Any]]


# -- generations -----------------------------------------------------------------------------------


def train_generations(lab: Laboratory, report: Report) -> None:
    """Born-Again Networks (arXiv 1805.04770): generations that follow a plain network."""
    for seed in lab.seeds:
        first = lab.plain(seed, report)
        count = f"born_again.generations={lab.setting.generations}"
        courses = {"": (count,)} | {
            f"-{mode}": ("born_again.generations=1", f"knowledge.mode={mode}")
            for mode in lab.setting.modes
        }
        for name, settings in courses.items():
            out = adopt(first, lab.room / f"generations-{seed}{name}")
            if not is_finished(out):
                born_again(
                    lab.config("born-again", *settings, "born_again.patience=99", seed=seed),
                    [lab.images.learned],
                    out,
                    held_out=lab.images.test,
                    resume=is_begun(out),
                    listener=lab.listener(report),
                )
            report()


def figures_of_generations(lab: Laboratory) -> dict[str, Any]:
    """Return each generation, and its gain over generation 0, by seed; ensembles with the same
    number of networks that no network taught."""
    trainings: dict[str, dict[str, Any]] = {}
    by_name: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    plain: list[np.ndarray] = []
    for seed in lab.known_seeds:
        out = lab.room / f"generations-{seed}"
        rows = rows_of(out)
        if not rows:
            continue
        trainings[str(seed)] = {row.name: of_training(out, row) for row in rows}
        generations = [
            lab.probs(out / row.name)[-1] for row in rows if row.kind == "generation"
        ]  # each (N, K)
        plain.append(generations[0])
        for number, probs in enumerate(generations[1:], 1):
            by_name.setdefault(f"generation {number}", []).append((generations[0], probs))
        for first in (1, 0):
            for last in range(max(first + 1, 2), len(generations)):
                together = np.mean(generations[first : last + 1], axis=0)
                name = f"generations {first} to {last} together"
                by_name.setdefault(name, []).append((generations[0], together))
        for mode in lab.setting.modes:
            taught = lab.room / f"generations-{seed}-{mode}"
            for row in rows_of(taught)[1:2]:
                trainings[str(seed)][mode] = of_training(taught, row)
                pair = (generations[0], lab.probs(taught / row.name)[-1])
                by_name.setdefault(mode, []).append(pair)
    if len(plain) > 1:
        together = np.mean(plain, axis=0)
        by_name[f"{len(plain)} plain networks together"] = [(probs, together) for probs in plain]
    return {
        **lab.about(lab.config("born-again", seed=0)),
        "trainings": trainings,
        "gains over generation 0": {name: lab.gain(pairs) for name, pairs in by_name.items()},
    }


# -- self-training ---------------------------------------------------------------------------------


def train_students(lab: Laboratory, report: Report) -> None:
    """Noisy Student (arXiv 1911.04252) for each seed, and its variants for the first one."""
    first, *others = STUDENTS
    todo = [(first, seed) for seed in lab.seeds]
    for name, seed in [*todo, *itertools.product(others, lab.seeds_of_variants)]:
        out, config = folder_of_student(lab, name, seed), config_of_student(lab, name, seed)
        if name != first:
            adopt(folder_of_student(lab, first, seed) / TEACHER, out)
        if not is_finished(out):
            self_training(
                config,
                [lab.images.labeled],
                [lab.images.unlabeled],
                out,
                held_out=lab.images.test,
                resume=is_begun(out),
                listener=lab.listener(report),
            )
        report()


def folder_of_student(lab: Laboratory, name: str, seed: int) -> Path:
    """Return the folder of a teacher and its student."""
    return lab.room / f"self-training-{seed}-{name.replace(' ', '-')}"


def config_of_student(lab: Laboratory, name: str, seed: int) -> TrainConfig:
    """Return the config of a teacher and its student."""
    lengths = ("self_training.rounds=1", f"self_training.student_length={STUDENT_LENGTH}.0")
    # After a few steps no image reaches the paper's confidence.
    least = ("self_training.confidence=0.2",) if lab.quick else ()
    return lab.config("self-training", *lengths, *least, *STUDENTS[name], seed=seed, few=True)


def figures_of_students(lab: Laboratory) -> dict[str, Any]:
    """Return teachers, students and their gains, what the pseudo-labels were worth, and what the
    students made of the wrong ones."""
    trainings: dict[str, dict[str, Any]] = {}
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    pseudo: dict[str, dict[str, Any]] = {}
    thresholds: dict[str, list[list[float]]] = {}
    for seed, name in itertools.product(lab.known_seeds, STUDENTS):
        out = folder_of_student(lab, name, seed)
        rows = rows_of(out)
        if not rows:
            continue
        of_seed = trainings.setdefault(str(seed), {})
        of_seed["teacher"] = of_training(out, rows[0])
        if len(rows) < 2:
            continue
        of_seed[name] = of_training(out, rows[1])
        pairs.setdefault(name, []).append(
            (lab.probs(out / TEACHER)[-1], lab.probs(out / STUDENT)[-1])
        )
        probs = np.load(out / STUDENT / PSEUDO_FILE)  # (U, K)
        pseudo.setdefault(str(seed), {})[name] = pseudo_figures(lab, name, seed, probs)
        thresholds[str(seed)] = [
            [threshold, *kept_and_wrong(probs, lab.truth_of_unlabeled, threshold)]
            for threshold in THRESHOLDS
        ]
    config = lab.config("self-training", seed=0, few=True)
    return {
        **lab.about(config),
        "images with labels": len(lab.images.labeled),
        "images without labels": len(lab.images.unlabeled),
        "steps of a student": STUDENT_LENGTH * config.run.steps,
        "trainings": trainings,
        "gains over the teacher": {name: lab.gain(of) for name, of in pairs.items()},
        "pseudo-labels": pseudo,
        "kept and wrong by threshold": thresholds,
    }


def pseudo_figures(lab: Laboratory, name: str, seed: int, probs: np.ndarray) -> dict[str, Any]:
    """Return what a student learned from, probs (U, K), and what it made of the wrong labels.

    `repeated`, `corrected`: shares of the wrong pseudo-labels that it learned from, of which it
    gives the same class, or the right one. `repeated on test images`: the same for its teacher's
    mistakes on images that it did not learn from, if the teacher is as confident of them.
    """
    out, config = folder_of_student(lab, name, seed), config_of_student(lab, name, seed)
    path = out / STUDENT / "unlabeled.npy"
    student, info, _ = load_classifier(out / STUDENT / CLASSIFIER_FILE)
    answers = label_images(path, student, lab.images.unlabeled, info.geometry).argmax(axis=1)
    truth = lab.truth_of_unlabeled
    # The seed of a round is the course's, plus its number.
    accepted = accept(probs, config.self_training, seed=config.run.seed + 1).indices
    used = np.unique(accepted)
    given = probs.argmax(axis=1)
    wrong = used[given[used] != truth[used]]
    teacher, tested = lab.probs(out / TEACHER)[-1], lab.probs(out / STUDENT)[-1]
    confident = teacher.max(axis=1) >= config.self_training.confidence
    return {
        "used": share(len(used), len(probs)),
        "wrong": share(len(wrong), len(used)),
        "confidence when wrong": rounded(confidence_when_wrong(probs[used], truth[used])),
        "repeated": share(int((answers[wrong] == given[wrong]).sum()), len(wrong)),
        "corrected": share(int((answers[wrong] == truth[wrong]).sum()), len(wrong)),
        "repeated on test images": (
            rounded(shared_errors(tested[confident], teacher[confident], lab.truth[confident]))
            if confident.any()
            else None
        ),
    }


def kept_and_wrong(probs: np.ndarray, truth: np.ndarray, threshold: float) -> list[float]:
    """Return the share of images (U, K) that a threshold keeps, and the share of them that are
    wrong."""
    kept = probs.max(axis=1) >= threshold
    wrong = probs.argmax(axis=1) != truth
    return [share(int(kept.sum()), len(kept)), share(int((wrong & kept).sum()), int(kept.sum()))]


# -- exits -----------------------------------------------------------------------------------------


def train_exits(lab: Laboratory, report: Report) -> None:
    """Be Your Own Teacher (arXiv 1905.08094): the same network with exits, for as many steps."""
    for seed in lab.seeds:
        lab.plain(seed, report)
        out = lab.room / f"exits-{seed}"
        if not is_finished(out):
            internal(
                lab.config("internal", f"classifier.exits={lab.setting.exits}", seed=seed),
                [lab.images.learned],
                out,
                held_out=lab.images.test,
                resume=is_begun(out),
                listener=lab.listener(report),
            )
        report()


def figures_of_exits(lab: Laboratory) -> dict[str, Any]:
    """Return the plain network and every exit by seed, and what the exits gain over it."""
    trainings: dict[str, dict[str, Any]] = {}
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for seed in lab.known_seeds:
        plain, out = lab.room / f"plain-{seed}", lab.room / f"exits-{seed}"
        rows = rows_of(plain)
        if not rows:
            continue
        of_seed = trainings.setdefault(str(seed), {})
        of_seed["plain network"] = of_training(plain, rows[0])
        exits = rows_of(out)
        if not is_finished(out):
            continue
        of_seed |= {row.name: of_row(row) for row in exits}
        of_seed["curve of the deepest exit"] = curve_of(out / NETWORK)
        before, by_exit = lab.probs(plain / "generation-0")[-1], lab.probs(out / NETWORK)
        for number, probs in enumerate(by_exit, 1):
            pairs.setdefault(f"exit {number}", []).append((before, probs))
        pairs.setdefault("all exits together", []).append((before, by_exit.mean(axis=0)))
    return {
        **lab.about(lab.config("born-again", seed=0)),
        "trainings": trainings,
        "gains over the plain network": {name: lab.gain(of) for name, of in pairs.items()},
    }


# -- momentum --------------------------------------------------------------------------------------


def train_momenta(lab: Laboratory, report: Report) -> None:
    """DINO (arXiv 2104.14294) with a teacher that keeps more and more of its weights."""
    for seed, centering, momentum in sweep_of(lab.seeds_of_variants):
        out = folder_of_momentum(lab, seed, centering, momentum)
        config = config_of_momentum(lab, seed, centering, momentum)
        checkpoints = list_checkpoints(out / CHECKPOINTS)
        if not checkpoints or int(checkpoints[-1].name.removeprefix("step-")) < config.run.steps:
            print(f"{out.name}: {config.run.steps:,} steps", flush=True)
            with contextlib.suppress(Collapse):  # only if a loss is not finite
                train(config, [lab.images.learned], out, resume=is_begun(out))
        measure_momentum(lab, out, config)
        report()


def sweep_of(seeds: Sequence[int]) -> Iterator[tuple[int, str, float]]:
    """Return seed, centering and momentum of each training."""
    return itertools.product(seeds, CENTERINGS, MOMENTA)


def folder_of_momentum(lab: Laboratory, seed: int, centering: str, momentum: float) -> Path:
    """Return the folder of one training."""
    return lab.room / f"momentum-{seed}-{centering}-{momentum:g}"


def config_of_momentum(lab: Laboratory, seed: int, centering: str, momentum: float) -> TrainConfig:
    """Return a config whose momentum does not change."""
    settings = (
        f"dino.centering={centering}",
        f"teacher.momentum={momentum}",
        f"teacher.momentum_end={momentum}",
    )
    config = configure(
        "dino", "small", parse_settings([*DINO, *settings, *(QUICK if lab.quick else ())])
    )
    return for_training(config, steps=lab.steps(MOMENTUM_STEPS), seed=seed)


def measure_momentum(lab: Laboratory, out: Path, config: TrainConfig) -> None:
    """Write what teacher and student of a finished run know, and what collapsed, to knn.json in its
    folder."""
    path = out / "knn.json"
    if path.is_file():
        return
    backbone, info = load_backbone(out)
    method = make_method(config)
    assert isinstance(method, MomentumTeacher)
    load_method(list_checkpoints(out / CHECKPOINTS)[-1], method=method)
    branches = {"teacher": backbone, "student": method.student.backbone}
    figures: dict[str, Any] = {}
    for name, network in branches.items():
        embedder = TorchEmbedder(EmbeddingGraph(network, info.geometry, Recipe()), info)
        report = evaluate_knn(lab.images.gallery, lab.images.test, embedder)
        figures[name] = round(report.scores[0].majority, 5)
        figures["centered pixels"] = round(report.scores[1].majority, 5)
    curves = read_metrics(out / METRICS_FILE).curves
    for name in ("teacher_entropy", "batch_entropy", "rankme"):
        last = curves[name].last if name in curves else None
        figures[name] = None if last is None else round(last[1], 4)
    notes = out / NOTES_FILE
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    figures["collapses"] = [
        note for note in (json.loads(line)["note"] for line in lines) if "collapse at step" in note
    ]
    write_text(path, json.dumps(figures, indent=1) + "\n")


def figures_of_momenta(lab: Laboratory) -> dict[str, Any]:
    """Return kNN accuracy of teacher and student for each momentum."""
    runs: list[dict[str, Any]] = []
    for seed, centering, momentum in sweep_of(lab.known_seeds):
        path = folder_of_momentum(lab, seed, centering, momentum) / "knn.json"
        if path.is_file():
            known = {"seed": seed, "centering": centering, "momentum": momentum}
            runs.append({**known, **json.loads(path.read_text(encoding="utf-8"))})
    config = config_of_momentum(lab, 0, CENTERINGS[0], MOMENTA[0])
    return {
        **lab.about(config),
        "neighbors": NEIGHBORS,
        "gallery": len(lab.images.gallery),
        "runs": runs,
    }


# -- helpers ---------------------------------------------------------------------------------------


def is_finished(course: Path) -> bool:
    """Return whether all trainings of a course are finished; then it holds the chosen network."""
    return (course / CLASSIFIER_FILE).is_file()


def adopt(training: Path, course: Path) -> Path:
    """Copy a finished training to a course that would begin with the same one; return the
    course."""
    if not (course / training.name).is_dir():
        course.mkdir(parents=True, exist_ok=True)
        with replace_folder(course / training.name) as temporary:
            shutil.copytree(training, temporary, dirs_exist_ok=True)
    return course


def rows_of(course: Path) -> list[Row]:
    """Return the rows of the finished trainings of a course."""
    return read_standing(course).rows if (course / STANDING_FILE).is_file() else []


def of_row(row: Row) -> dict[str, Any]:
    """Return the columns of a row that charts and tables show."""
    columns = {
        "accuracy": row.accuracy,
        "ece": row.ece,
        "confidence when wrong": row.wrong_confidence,
        "repeats its teacher's errors": row.shared_errors,
        "knn": row.knn,
        "seconds": row.seconds,
        "images a second": row.images_per_s,
        "parameters": row.parameters,
    }
    return {name: rounded(value) for name, value in columns.items() if value is not None}


def of_training(course: Path, row: Row) -> dict[str, Any]:
    """Return a row's columns and how its accuracy rose; an ensemble has no curve."""
    folder = course / row.name
    return of_row(row) | ({"curve": curve_of(folder)} if folder.is_dir() else {})


def curve_of(training: Path) -> list[list[float]]:
    """Return steps and accuracies on some of the test images."""
    curve = read_metrics(training / METRICS_FILE).curves.get("accuracy")
    return [] if curve is None else [[point.step, round(point.mean, 4)] for point in curve.points]


def gain_over(pairs: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray) -> Gain:
    """Return the mean gain in accuracy over pairs (before, after) of probabilities (N, K).

    The standard error is that of the mean over images of each image's mean difference. So images
    that are hard for every seed count once, and one pair has the error of `judging.paired_gain`.
    """
    right = [[probs.argmax(axis=1) == labels for probs in pair] for pair in pairs]
    differences = np.mean([after * 1.0 - before for before, after in right], axis=0)  # (N,)
    return Gain(
        float(differences.mean()),
        float(differences.std()) / math.sqrt(len(labels)),
        len(labels),
    )


def share(part: int, whole: int) -> float:
    """Return part / whole to 4 decimals; 0 of nothing."""
    return round(part / whole, 4) if whole else 0.0


def rounded(value: float | None) -> float | None:
    """Return a figure to 4 decimals."""
    return None if value is None else round(value, 4)


STUDIES: Mapping[str, Study] = {
    "generations": Study(50, train_generations, figures_of_generations),
    "exits": Study(25, train_exits, figures_of_exits),
    "self-training": Study(30, train_students, figures_of_students),
    "momentum": Study(20, train_momenta, figures_of_momenta),
}
