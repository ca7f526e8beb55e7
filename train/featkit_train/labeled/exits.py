"""Internal distillation (Be Your Own Teacher, arXiv 1905.08094): one network with exits, and a
table of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featkit.errors import InputError
from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.labeled.course import CourseListener, config_of_training, open_course
from featkit_train.labeled.judge import ensemble_of
from featkit_train.labeled.split import split_labeled
from featkit_train.methods import Labels
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.watching.standing import NETWORK, Standing


def internal(
    config: TrainConfig,
    sources: Sequence[Source],
    out: Path,
    *,
    held_out: Source | None = None,
    resume: bool = False,
    listener: CourseListener | None = None,
) -> Standing:
    """Train in `out`/network; return the table of its exits and their ensemble.

    held_out: as in `split_labeled`. Errors as in `train`, and InputError for a classifier without
    exits.
    """
    if not config.classifier.exits:
        raise InputError(
            "classifier.exits names no exit besides the deepest, so there is nothing to teach; set"
            " it to stages of a CNN or blocks of a ViT, such as --exits 1,2."
        )
    split = split_labeled(sources, config, held_out=held_out)
    with open_course(config, split, out, resume=resume, listener=listener) as course:
        labels = Labels(classes=split.classes, class_ids=split.labels)
        trained = course.train(NETWORK, config_of_training(config, 0), split.learned, labels)
        backbone = trained.classifier.backbone
        assert isinstance(backbone, ExitedBackbone)
        networks = [backbone.cut(depth) for depth in range(1, backbone.depth + 1)]
        *rates, rate_of_all = course.judge.images_per_s([*networks, trained.classifier])
        for depth, (predictions, network, rate) in enumerate(
            zip(trained.predictions, networks, rates, strict=True), 1
        ):
            is_deepest = depth == len(networks)
            course.add(
                f"exit {depth}",
                "exit",
                predictions,
                teacher=None if is_deepest else trained.predictions[-1],
                seconds=trained.seconds if is_deepest else None,
                images_per_s=rate,
                parameters=sum(parameter.numel() for parameter in network.parameters()),
            )
        ensemble = ensemble_of(trained.predictions)
        course.add("all exits together", "ensemble", ensemble, images_per_s=rate_of_all)
        return course.finish(trained=NETWORK)
