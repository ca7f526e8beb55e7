"""Internal distillation (Be Your Own Teacher, arXiv 1905.08094): one network with exits, its table
by exit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featkit.errors import InputError
from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.labeled.course import CourseListener, course, of_training
from featkit_train.labeled.judge import together
from featkit_train.labeled.parting import part
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
    """Train in `out`/network; the table of its exits and of all of them together, and its files in
    `out`.

    held_out: as for `parting.part`. Errors as for `train`, and InputError for a classifier without
    exits.
    """
    if not config.classifier.exits:
        raise InputError(
            "classifier.exits names no exit beside the deepest, so there is nothing to teach; set"
            " it to stages of a CNN or blocks of a ViT, such as --exits 1,2,3."
        )
    parted = part(sources, config, held_out=held_out)
    with course(config, parted, out, resume=resume, listener=listener) as here:
        labels = Labels(classes=parted.classes, class_ids=parted.labels)
        trained = here.train(NETWORK, of_training(config, 0), parted.learned, labels)
        backbone = trained.classifier.backbone
        assert isinstance(backbone, ExitedBackbone)
        networks = [backbone.cut(number) for number in range(1, backbone.depth + 1)]
        *rates, rate_of_all = here.judge.images_per_s([*networks, trained.classifier])
        for number, (seen, network, rate) in enumerate(
            zip(trained.seen, networks, rates, strict=True), 1
        ):
            here.add(
                f"exit {number}",
                "exit",
                seen,
                teacher=trained.seen[-1] if number < len(networks) else None,
                seconds=trained.seconds if number == len(networks) else None,
                images_per_s=rate,
                parameters=sum(parameter.numel() for parameter in network.parameters()),
            )
        here.add("all exits together", "ensemble", together(trained.seen), images_per_s=rate_of_all)
        return here.finish(trained=NETWORK)
