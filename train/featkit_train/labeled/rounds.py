"""Self-training (Noisy Student, arXiv 1911.04252, algorithm 1): a teacher, then students that also
learn from its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featkit.sources import Source, concatenate
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.labeled.course import (
    Course,
    CourseListener,
    Trained,
    config_of_training,
    open_course,
)
from featkit_train.labeled.pseudo_labels import PSEUDO_FILE, accept, label_images, mixed
from featkit_train.labeled.split import check_disjoint, split_labeled
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
    """Train the teacher in `out`/round-0 and its students in round-1 ...; return their table. The
    most accurate one's files are copied to `out`.

    Labels of the unlabeled images are ignored. held_out: as in `split_labeled`; these images are
    neither pseudo-labeled nor trained on. Ends early as `born_again` does. Errors as in `train`,
    and InputError if an image is both held out and unlabeled.
    """
    split = split_labeled(labeled, config, held_out=held_out)
    rest = concatenate(unlabeled)
    check_disjoint(rest, split.held_out, what="unlabeled")
    everything = concatenate([split.learned, rest])
    with open_course(
        config, split, out, source=everything, resume=resume, listener=listener
    ) as course:
        rounds: list[Trained] = []
        failures = 0
        for number in range(config.self_training.rounds + 1):
            labels = _labels(course, rest, number, rounds)
            if labels is None:
                break
            length = config.self_training.student_length if rounds else 1.0
            round_config = config_of_training(config, number, length=length)
            rounds.append(course.train(f"round-{number}", round_config, everything, labels))
            failures = 0 if course.follow("round", rounds) else failures + 1
            if failures >= config.self_training.patience:
                break
        return course.end("round")


def _labels(
    course: Course, unlabeled: Source, number: int, rounds: Sequence[Trained]
) -> Labels | None:
    """Return the labels of a round: the human ones, and after the first round also the teacher's.

    None if the teacher is confident of no image.
    """
    split, config = course.split, course.config.self_training
    num_labeled = len(split.learned)
    class_ids = np.concatenate([split.labels, np.full(len(unlabeled), UNKNOWN)])
    if not rounds:
        return Labels(classes=split.classes, class_ids=class_ids, indices=np.arange(num_labeled))
    path = course.out / f"round-{number}" / PSEUDO_FILE
    teacher = rounds[-1].classifier
    if course.world.is_main:
        images = counted(len(unlabeled), "image")
        course.listener.on_note(f"round-{number}: its teacher labels {images}.")
        course.listener.on_asking(f"round-{number}", len(unlabeled))
        label_images(
            path,
            teacher,
            unlabeled,
            course.judge.geometry,
            on_progress=lambda done, _failed: course.listener.on_asked(done),
        )
    course.world.wait()
    probs = label_images(path, teacher, unlabeled, course.judge.geometry)
    accepted = accept(probs, config, seed=course.config.run.seed + number)
    course.remark(nothing_accepted(accepted.count, len(unlabeled), threshold=config.confidence))
    expected = effective_classes(np.bincount(split.labels, minlength=len(split.classes)))
    course.remark(few_classes(accepted.counts, expected=expected))
    if not accepted.count:
        return None
    indices = mixed(num_labeled, accepted.indices, labeled_share=config.labeled_share)
    if config.pseudo == "hard":
        class_ids[num_labeled:] = probs.argmax(axis=1)
        return Labels(classes=split.classes, class_ids=class_ids, indices=indices)
    no_probs = np.zeros((num_labeled, len(split.classes)), np.float32)
    return Labels(
        classes=split.classes,
        class_ids=class_ids,
        probs=np.concatenate([no_probs, probs]),
        indices=indices,
    )
