"""Born-Again Networks (arXiv 1805.04770): a network, then generations of students, each taught by
the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.labeled.course import (
    Course,
    CourseListener,
    Trained,
    config_of_training,
    open_course,
)
from featkit_train.labeled.judge import ensemble_of
from featkit_train.labeled.split import split_labeled
from featkit_train.labeled.teacher_logits import (
    LOGITS_FILE,
    is_worth_keeping,
    keep_logits,
    open_logits,
)
from featkit_train.methods import Labels, make_method
from featkit_train.networks.classifier import Classifier
from featkit_train.watching.standing import Standing


def born_again(
    config: TrainConfig,
    sources: Sequence[Source],
    out: Path,
    *,
    held_out: Source | None = None,
    resume: bool = False,
    listener: CourseListener | None = None,
) -> Standing:
    """Train the generations in `out`/generation-0, -1 ...; return their table. The most accurate
    one's files are copied to `out`.

    held_out: as in `split_labeled`; no generation learns from it. Training ends early after
    `born_again.patience` generations in a row that do not beat their teachers beyond noise. Errors
    as in `train`.
    """
    split = split_labeled(sources, config, held_out=held_out)
    # Refuse an impossible student now, not after its teacher has trained for hours.
    if config.born_again.student is not None:
        student = config_of_training(config, 1, classifier=config.born_again.student)
        make_method(student, labels=Labels(classes=split.classes, class_ids=split.labels))
    with open_course(config, split, out, resume=resume, listener=listener) as course:
        generations: list[Trained] = []
        failures = 0
        for generation in range(config.born_again.generations + 1):
            teacher = generations[-1] if generations else None
            generations.append(_train(course, generation, teacher))
            failures = 0 if course.follow("generation", generations) else failures + 1
            if generation >= 2:
                students = ensemble_of([each.predictions[-1] for each in generations[1:]])
                course.add(f"ensemble of {generation}", "ensemble", students)
            if failures >= config.born_again.patience:
                break
        if len(generations) > 2:
            everyone = ensemble_of([each.predictions[-1] for each in generations])
            course.add("ensemble of all, generation 0 too", "ensemble", everyone)
        return course.end("generation")


def _train(course: Course, generation: int, teacher: Trained | None) -> Trained:
    student = course.config.born_again.student if generation > 0 else None
    config = config_of_training(
        course.config, generation, classifier=student or course.config.classifier
    )
    name, split = f"generation-{generation}", course.split
    if teacher is None:
        labels = Labels(classes=split.classes, class_ids=split.labels)
        return course.train(name, config, split.learned, labels)
    path = course.out / name / LOGITS_FILE
    if is_worth_keeping(config, num_images=len(split.learned), num_classes=len(split.classes)):
        return _train_with_kept_logits(course, name, config, teacher.classifier, path)
    labels = Labels(classes=split.classes, class_ids=split.labels, teacher=teacher.classifier)
    return course.train(name, config, split.learned, labels)


def _train_with_kept_logits(
    course: Course, name: str, config: TrainConfig, teacher: Classifier, path: Path
) -> Trained:
    """Compute the teacher's logits of every view once, train on them, then remove them."""
    split = course.split
    is_finished = course.is_finished(name, config)
    if course.world.is_main and not is_finished and not path.exists():
        num_views = len(split.learned) * config.crops.fixed_views
        course.listener.on_note(f"{name}: keeping its teacher's outputs for {num_views:,} views.")
        course.listener.on_asking(name, num_views)
        keep_logits(
            path,
            teacher,
            split.learned,
            config,
            device=course.device,
            on_progress=lambda done, _all: course.listener.on_asked(done),
        )
    course.world.wait()
    teacher_logits = None if is_finished else open_logits(path)
    labels = Labels(classes=split.classes, class_ids=split.labels, teacher_logits=teacher_logits)
    trained = course.train(name, config, split.learned, labels)
    if course.world.is_main:
        path.unlink(missing_ok=True)
    return trained
