"""Measure what a step costs without a teacher, with one that is asked, and with kept logits.

Small networks on 1,000 labeled images of CIFAR-10, whose four views repeat. Arguments: NETWORK,
resnet or vit. Run: python tests/benchmarks/bench_teacher_cost.py [NETWORK] [--quick]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit_train.config import TrainConfig
from featkit_train.labeled.split import Split, split_labeled
from featkit_train.labeled.teacher_logits import keep_logits, open_logits
from featkit_train.methods import Labels
from featkit_train.networks.classifier import Classifier, build_backbone
from tests.benchmarks.labeled import SETTINGS, Images, config_of, few_classes
from tests.benchmarks.loops import FeatkitLoop
from tests.benchmarks.record import arguments, is_quick, write_result

NETWORKS = {"resnet": "cifar10", "vit": "cifar10-vit"}
ROUNDS, COST_STEPS = (1, 2) if is_quick() else (5, 12)


def cost(network: str, images: Images, folder: Path) -> None:
    """Images a second of three ways in turn, and what keeping logits of every view takes once."""
    config = config_of(
        *("born-again", SETTINGS[NETWORKS[network]]),
        *("run.steps=1000", "crops.fixed_views=4", "run.workers=1"),
    )
    split = split_labeled([images.labeled], config, held_out=images.test)
    teacher = _drawn_teacher(config, split)
    kept = folder / f"{network}.npy"
    started = time.perf_counter()
    keep_logits(kept, teacher, split.learned, config, device=torch.device("cpu"))
    keeping = time.perf_counter() - started
    known: dict[str, Any] = {"classes": split.classes, "class_ids": split.labels}
    ways = {
        "no teacher": Labels(**known),
        "teacher asked": Labels(**known, teacher=teacher),
        "logits kept": Labels(**known, teacher_logits=open_logits(kept)),
    }
    loops = {
        name: FeatkitLoop(
            config, split.learned, folder / f"{network} {name.replace(' ', '-')}", labels=labels
        )
        for name, labels in ways.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(ROUNDS + 1):
        for name, loop in loops.items():
            rate = loop.images_per_s(COST_STEPS)
            if number:
                rates[name].append(rate)
    pairs = zip(rates["teacher asked"], rates["logits kept"], strict=True)
    write_result(
        f"born_again_cost_{network}",
        {
            **{f"images/s, {name}": round(statistics.median(of), 1) for name, of in rates.items()},
            "kept over asked, median of pairs": round(
                statistics.median(b / a for a, b in pairs), 2
            ),
            "seconds to keep 4 views of 1,000 images": round(keeping, 1),
            "raw": rates,
        },
    )


def _drawn_teacher(config: TrainConfig, split: Split) -> Classifier:
    """Time a teacher with random weights, since its cost does not depend on its training."""
    torch.manual_seed(0)
    return Classifier(build_backbone(config.classifier), len(split.classes)).eval()


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(usable_cpus())
    images = SETTINGS["cifar10"].open()
    if is_quick():
        images = few_classes(images)
    with tempfile.TemporaryDirectory() as name:
        for network in arguments()[:1] or NETWORKS:
            cost(network, images, Path(name))


if __name__ == "__main__":
    main()
