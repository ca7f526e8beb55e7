"""Self-training on CIFAR-10: 1,000 images with labels and 9,000 whose labels are not used, a
teacher and two students.

A small ResNet, two seeds; accuracy on 5,000 test images. Students take as many steps as their
teacher. Run: python tests/benchmarks/bench_self_training.py [SECONDS] [--quick]        (six
trainings of 90 seconds)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit_train.labeled import self_training
from featkit_train.watching.standing import Row
from tests.benchmarks.labeled import (
    config_of,
    figures_of,
    for_training,
    open_cifar,
    spread,
    steps_in,
)
from tests.benchmarks.record import arguments, is_quick, write_result

SEEDS = (0, 1)
SECONDS = 1 if is_quick() else 90
NOISE = ("crops.rotation_degrees=10", "self_training.rounds=2", "self_training.patience=99")


def main() -> None:
    """Train, judge and record."""
    words = arguments()
    seconds = int(words[0]) if words else SECONDS
    torch.set_num_threads(usable_cpus())
    cifar = open_cifar()
    rows: dict[str, list[Row]] = {}
    plain = config_of("self-training", "resnet", *NOISE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = steps_in(seconds, plain, cifar, folder / "warm")
        figures: dict[str, Any] = {"steps of a training": steps}
        for seed in SEEDS:
            config = for_training(plain, steps=steps, seed=seed)
            standing = self_training(
                config,
                [cifar.labeled],
                [cifar.unlabeled],
                folder / f"run-{seed}",
                held_out=cifar.test,
            )
            for row in standing.rows:
                rows.setdefault(row.name, []).append(row)
            for what, of in rows.items():
                figures[f"{what}, accuracy in %"] = spread([row.accuracy for row in of])
            figures["noticed"] = [remark.sentence for remark in standing.remarks]
            figures["all figures"] = {
                what: [figures_of(row) for row in of] for what, of in rows.items()
            }
            write_result(f"self_training_{seconds}s", figures)


if __name__ == "__main__":
    main()
