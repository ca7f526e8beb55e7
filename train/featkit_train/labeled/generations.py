"""Born-Again Networks (arXiv 1805.04770): a network, and generations of students that each learn
from the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.labeled.course import Course, CourseListener, Trained, course, of_training
from featkit_train.labeled.judge import together
from featkit_train.labeled.parting import part
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
    """All generations in `out`/generation-0, -1 ..., the table, and the most accurate generation's
    files in `out`.

    held_out: as for `parting.part`; nothing of it is labeled, distilled on or cached. It ends
    early after `born_again.patience` generations in a row that do not beat their teachers beyond
    noise. Errors as for `train`.
    """
    parted = part(sources, config, held_out=held_out)
    # one that cannot be made is refused before its teacher has trained for hours
    if config.born_again.student is not None:
        student = of_training(config, 1, classifier=config.born_again.student)
        make_method(student, labels=Labels(classes=parted.classes, class_ids=parted.labels))
    with course(config, parted, out, resume=resume, listener=listener) as here:
        generations: list[Trained] = []
        failures = 0
        for number in range(config.born_again.generations + 1):
            generations.append(_train(here, number, generations[-1] if generations else None))
            failures = 0 if here.follow("generation", generations) else failures + 1
            if number >= 2:
                here.add(
                    f"ensemble of {number}",
                    "ensemble",
                    together([each.seen[-1] for each in generations[1:]]),
                )
            if failures >= config.born_again.patience:
                break
        if len(generations) > 2:
            whole = together([each.seen[-1] for each in generations])
            here.add("ensemble of all, generation 0 too", "ensemble", whole)
        return here.end("generation")


def _train(here: Course, number: int, teacher: Trained | None) -> Trained:
    student = here.config.born_again.student if number > 0 else None
    config = of_training(here.config, number, classifier=student or here.config.classifier)
    name, parted = f"generation-{number}", here.parted
    if teacher is None:
        return here.train(
            name, config, parted.learned, Labels(classes=parted.classes, class_ids=parted.labels)
        )
    path = here.out / name / LOGITS_FILE
    if is_worth_keeping(config, num_images=len(parted.learned), num_classes=len(parted.classes)):
        return _with_kept_logits(here, name, config, teacher.classifier, path)
    labels = Labels(classes=parted.classes, class_ids=parted.labels, teacher=teacher.classifier)
    return here.train(name, config, parted.learned, labels)


def _with_kept_logits(
    here: Course, name: str, config: TrainConfig, teacher: Classifier, path: Path
) -> Trained:
    """The teacher is asked once about every view, and its answers are removed when the student has
    learned."""
    parted = here.parted
    done = here.is_finished(name, config)
    if here.world.is_main and not done and not path.exists():
        here.listener.on_note(
            f"{name}: keeping what its teacher says of"
            f" {len(parted.learned) * config.crops.fixed_views:,} views."
        )
        here.listener.on_asking(name, len(parted.learned) * config.crops.fixed_views)
        keep_logits(
            path,
            teacher,
            parted.learned,
            config,
            device=here.device,
            on_progress=lambda asked, _all: here.listener.on_asked(asked),
        )
    here.world.wait()
    teacher_logits = None if done else open_logits(path)
    labels = Labels(classes=parted.classes, class_ids=parted.labels, teacher_logits=teacher_logits)
    trained = here.train(name, config, parted.learned, labels)
    if here.world.is_main:
        path.unlink(missing_ok=True)
    return trained
