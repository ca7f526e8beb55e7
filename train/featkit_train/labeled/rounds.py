"""Self-training (Noisy Student, arXiv 1911.04252, algorithm 1): a teacher, then students that learn
its labels too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featkit.sources import Source, concatenate
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.labeled.course import Course, CourseListener, Trained, course, of_training
from featkit_train.labeled.parting import check_apart, part
from featkit_train.labeled.pseudo_labels import PSEUDO_FILE, accept, label_images, mixed
from featkit_train.methods import Labels
from featkit_train.methods.labels import UNKNOWN
from featkit_train.watching.judging import effective_classes, few_classes, nothing_accepted
from featkit_train.watching.standing import Standing


def self_training(
    config: TrainConfig,
    labeled: Sequence[Source],
    unlabeled: Sequence[Source],
    out: Path,
    *,
    held_out: Source | None = None,
    resume: bool = False,
    listener: CourseListener | None = None,
) -> Standing:
    """The teacher in `out`/round-0, its students in round-1 ..., the table, and the most accurate
    one's files in `out`.

    Labels of the unlabeled images, where they have any, are never looked at. held_out: as for
    `parting.part`, of the labeled ones; nothing of it is labeled or learned. It ends early as
    `born_again` does. Errors as for `train`, and InputError where an image is both held out and
    unlabeled.
    """
    parted = part(labeled, config, held_out=held_out)
    rest = concatenate(unlabeled)
    check_apart(rest, parted.held_out, what="unlabeled")
    everything = concatenate([parted.learned, rest])
    with course(config, parted, out, source=everything, resume=resume, listener=listener) as here:
        rounds: list[Trained] = []
        failures = 0
        for number in range(config.self_training.rounds + 1):
            labels = _labels(here, rest, number, rounds)
            if labels is None:
                break
            of_round = of_training(
                config, number, length=config.self_training.student_length if rounds else 1.0
            )
            rounds.append(here.train(f"round-{number}", of_round, everything, labels))
            failures = 0 if here.follow("round", rounds) else failures + 1
            if failures >= config.self_training.patience:
                break
        return here.end("round")


def _labels(
    here: Course, unlabeled: Source, number: int, rounds: Sequence[Trained]
) -> Labels | None:
    """People's labels, and after the first round the last student's of the others; None where it is
    sure of nothing."""
    parted, config = here.parted, here.config.self_training
    own = len(parted.learned)
    labels = np.concatenate([parted.labels, np.full(len(unlabeled), UNKNOWN)])
    if not rounds:
        return Labels(classes=parted.classes, class_ids=labels, indices=np.arange(own))
    path = here.out / f"round-{number}" / PSEUDO_FILE
    teacher = rounds[-1].classifier
    if here.world.is_main:
        here.listener.on_note(
            f"round-{number}: its teacher labels {counted(len(unlabeled), 'image')}."
        )
        here.listener.on_asking(f"round-{number}", len(unlabeled))
        label_images(
            path,
            teacher,
            unlabeled,
            here.judge.geometry,
            on_progress=lambda done, _failed: here.listener.on_asked(done),
        )
    here.world.wait()
    probs = label_images(path, teacher, unlabeled, here.judge.geometry)
    accepted = accept(probs, config, seed=here.config.run.seed + number)
    here.remark(nothing_accepted(accepted.count, len(unlabeled), threshold=config.confidence))
    expected = effective_classes(np.bincount(parted.labels, minlength=len(parted.classes)))
    here.remark(few_classes(accepted.counts, expected=expected))
    if not accepted.count:
        return None
    numbers = mixed(own, accepted.numbers, labeled_share=config.labeled_share)
    if config.pseudo == "hard":
        labels[own:] = probs.argmax(axis=1)
        return Labels(classes=parted.classes, class_ids=labels, indices=numbers)
    rows = np.concatenate([np.zeros((own, len(parted.classes)), np.float32), probs])
    return Labels(classes=parted.classes, class_ids=labels, probs=rows, indices=numbers)
