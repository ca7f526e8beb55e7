"""Generations of small networks on 1,000 labeled images of CIFAR-10: three seeds of a ResNet,
one of a ViT.

The first network, BAN-1 to BAN-3, CWTM and DKPP of the first network, and ensembles; accuracy on
5,000 test images. Then what a step costs without a teacher, with one that is asked, and with
logits that were kept. Arguments: NETWORK. Results are written after every course. Run: python
tests/benchmarks/bench_born_again.py [--quick]   (24 trainings of 90 s)

The paper on CIFAR-100 (arXiv 1805.04770, its tables): DenseNet-112-33 error 18.25, then 17.61,
17.22, 16.59, three together 15.68; a Wide ResNet-28-5 gets worse.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit.sources import subset
from featkit_train.config import TrainConfig
from featkit_train.labeled import born_again
from featkit_train.labeled.judge import Judge
from featkit_train.labeled.split import Split, split_labeled
from featkit_train.labeled.teacher_logits import keep_logits, open_logits
from featkit_train.loop import train
from featkit_train.methods import Labels
from featkit_train.networks.classifier import Classifier, build_backbone
from featkit_train.watching.standing import Row
from featkit_train.weights import CLASSIFIER_FILE, load_classifier
from tests.benchmarks.labeled import (
    Cifar,
    config_of,
    figures_of,
    for_training,
    open_cifar,
    spread,
    steps_in,
)
from tests.benchmarks.loops import FeatkitLoop
from tests.benchmarks.record import arguments, is_quick, write_result

SEEDS = {"resnet": (0, 1, 2), "vit": (0,)}
SECONDS = 1.0 if is_quick() else 90.0
ROUNDS, COST_STEPS = (1, 2) if is_quick() else (5, 12)
GENERATIONS = 3


def course(config: TrainConfig, cifar: Cifar, out: Path) -> dict[str, Row]:
    """The first network, its generations and ensembles, by name."""
    return {
        row.name: row for row in born_again(config, [cifar.labeled], out, held_out=cifar.test).rows
    }


def variant(mode: str, config: TrainConfig, parted: Split, first: Path, out: Path) -> Row:
    """A student of the first network by another way of teaching, judged as the course's are."""
    teacher, info, classes = load_classifier(first / CLASSIFIER_FILE)
    knowledge = dataclasses.replace(config.knowledge, mode=mode)  # type: ignore[arg-type]
    taught = dataclasses.replace(config, knowledge=knowledge)
    taught = dataclasses.replace(
        taught, run=dataclasses.replace(taught.run, seed=config.run.seed + 1)
    )
    labels = Labels(classes=parted.classes, class_ids=parted.labels, teacher=teacher)
    watched = subset(parted.held_out, range(0, len(parted.held_out), 10))
    train(taught, [parted.learned], out, held_out=watched, labels=labels)
    judge = Judge(parted.held_out, info.geometry, classes, label=config.labels.column)
    student, _, _ = load_classifier(out / CLASSIFIER_FILE)
    return judge.row(
        mode, "generation", judge.predict(student)[-1], teacher=judge.predict(teacher)[-1]
    )


def table(network: str, cifar: Cifar, folder: Path) -> None:
    """All rows over the seeds."""
    rows: dict[str, list[Row]] = {}
    plain = config_of(
        "born-again", network, f"born_again.generations={GENERATIONS}", "born_again.patience=99"
    )
    steps = steps_in(SECONDS, plain, cifar, folder / f"{network} warm")
    figures: dict[str, Any] = {"steps of a training": steps}
    for seed in SEEDS[network]:
        config = for_training(plain, steps=steps, seed=seed)
        out = folder / f"{network}-{seed}"
        found = course(config, cifar, out)
        parted = split_labeled([cifar.labeled], config, held_out=cifar.test)
        for mode in ("cwtm", "dkpp"):
            found[mode] = variant(
                mode, config, parted, out / "generation-0", folder / f"{network}-{seed}-{mode}"
            )
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
        seconds = [row.seconds for row in found.values() if row.seconds is not None]
        figures["seconds of steps, by generation"] = [round(each, 1) for each in seconds]
        for name, of in rows.items():
            figures[f"{name}, accuracy in %"] = spread([row.accuracy for row in of])
        figures["all figures"] = {
            name: [figures_of(row) for row in of] for name, of in rows.items()
        }
        write_result(f"born_again_{network}", figures)


def cost(network: str, cifar: Cifar, folder: Path) -> None:
    """Images a second of three ways in turn, and what keeping logits of every view takes once."""
    config = config_of(
        "born-again", network, "run.steps=1000", "crops.fixed_views=4", "run.workers=1"
    )
    parted = split_labeled([cifar.labeled], config, held_out=cifar.test)
    teacher = _drawn_teacher(config, parted)
    started = time.perf_counter()
    keep_logits(folder / "logits.npy", teacher, parted.learned, config, device=torch.device("cpu"))
    keeping = time.perf_counter() - started
    known: dict[str, Any] = {"classes": parted.classes, "class_ids": parted.labels}
    ways = {
        "no teacher": Labels(**known),
        "teacher asked": Labels(**known, teacher=teacher),
        "logits kept": Labels(**known, teacher_logits=open_logits(folder / "logits.npy")),
    }
    loops = {
        name: FeatkitLoop(config, parted.learned, folder / name.replace(" ", "-"), labels=labels)
        for name, labels in ways.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(ROUNDS + 1):
        for name, loop in loops.items():
            rate = loop.images_per_s(COST_STEPS)
            if number:
                rates[name].append(rate)
    asked, kept = rates["teacher asked"], rates["logits kept"]
    write_result(
        f"born_again_cost_{network}",
        {
            **{f"images/s, {name}": round(statistics.median(of), 1) for name, of in rates.items()},
            "kept over asked, median of pairs": round(
                statistics.median(b / a for a, b in zip(asked, kept, strict=True)), 2
            ),
            "seconds to keep 4 views of 1,000 images": round(keeping, 1),
            "raw": rates,
        },
    )


def _drawn_teacher(config: TrainConfig, parted: Split) -> Classifier:
    """Time a teacher with random weights, since its cost does not depend on its training."""
    torch.manual_seed(0)
    return Classifier(build_backbone(config.classifier), len(parted.classes)).eval()


def main() -> None:
    """Train, judge and record."""
    torch.set_num_threads(usable_cpus())
    words = arguments()
    networks = words[:1] or [*SEEDS]
    cifar = open_cifar()
    with tempfile.TemporaryDirectory() as name:
        for network in networks:
            cost(network, cifar, Path(name))
            table(network, cifar, Path(name))


if __name__ == "__main__":
    main()
