"""Compare internal distillation of a small ResNet with the plain network, exit by exit.

1,000 labeled images of CIFAR-10, three seeds, the same number of steps. Measured are accuracy on
5,000 test images and images per second of each exit.
Run: python tests/benchmarks/bench_internal.py [--quick]        (six trainings of 90 seconds)

The paper (arXiv 1905.08094) gains 2.65 points on average over five networks on CIFAR-100.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit_train.labeled import born_again, internal
from featkit_train.watching.standing import Row
from tests.benchmarks.labeled import (
    Cifar,
    config_of,
    figures_of,
    for_training,
    open_cifar,
    spread,
    steps_in,
)
from tests.benchmarks.record import is_quick, write_result

SEEDS = (0, 1, 2)
SECONDS = 1.0 if is_quick() else 90.0
EXITS = "classifier.exits=[1, 2, 3]"


def pair(seed: int, steps: int, cifar: Cifar, folder: Path) -> dict[str, Row]:
    """The plain network, and one with exits."""
    alone = for_training(
        config_of("born-again", "resnet", "born_again.generations=0"), steps=steps, seed=seed
    )
    plain = born_again(alone, [cifar.labeled], folder / f"plain-{seed}", held_out=cifar.test)
    taught = internal(
        for_training(config_of("internal", "resnet", EXITS), steps=steps, seed=seed),
        [cifar.labeled],
        folder / f"exits-{seed}",
        held_out=cifar.test,
    )
    return {"plain network": plain.rows[0], **{row.name: row for row in taught.rows}}


def main() -> None:
    """Train, judge and record."""
    torch.set_num_threads(usable_cpus())
    cifar = open_cifar()
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = steps_in(SECONDS, config_of("internal", "resnet", EXITS), cifar, folder / "warm")
        figures: dict[str, Any] = {"steps of a training": steps}
        for seed in SEEDS:
            for what, row in pair(seed, steps, cifar, folder).items():
                rows.setdefault(what, []).append(row)
            for what, of in rows.items():
                figures[f"{what}, accuracy in %"] = spread([row.accuracy for row in of])
            rates = {what: [row.images_per_s for row in of] for what, of in rows.items()}
            figures["images a second"] = {
                what: [round(one or 0, 1) for one in of] for what, of in rates.items() if of[0]
            }
            figures["all figures"] = {
                what: [figures_of(row) for row in of] for what, of in rows.items()
            }
            write_result("internal", figures)


if __name__ == "__main__":
    main()
