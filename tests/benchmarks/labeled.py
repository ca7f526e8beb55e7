"""Shared by the benchmarks of methods with labels: data, networks and timing.

The data is CIFAR-10 with 1,000 labels, and the networks are a small ResNet and a small ViT.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.sources import Source, open_source, subset
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.labeled.split import split_labeled
from featkit_train.loop import train
from featkit_train.methods import Labels
from featkit_train.settings import parse_settings
from featkit_train.watching.standing import Row
from tests.benchmarks.photos import data_folder
from tests.benchmarks.record import is_quick
from tests.torchvision_without_cuda import allow_torchvision

allow_torchvision()

NUM_LABELED = 100 if is_quick() else 1000
NUM_UNLABELED = 200 if is_quick() else 9000
NUM_TEST = 100 if is_quick() else 5000
WARM_STEPS = 3 if is_quick() else 15
SMALL_COLORS = (
    "{jitter_probability: 0.5, hue: 0.02, gray_probability: 0.0, blur_probability: [0, 0, 0],"
    " solarize_probability: [0, 0, 0]}"
)
QUIET = ("run.evaluate_every=1000000", "run.checkpoint_every=1000000", "run.held_out=0")
COMMON = (
    "crops.global_size=32",
    "crops.global_scale=[0.5, 1.0]",
    "resize=stretch",
    f"color={SMALL_COLORS}",
    "run.batch_size=50",
)
# The trainings are short, so both learn faster than their recipes for whole data sets say.
NETWORKS: Mapping[str, Sequence[str]] = {
    "resnet": (
        (
            "classifier={arch: 'timm:resnet18', options: {layers: [1, 1, 1, 1], channels: [16, 32,"
            " 64, 128]}, small_stem: true}"
        ),
        *(
            "optim.lr=3e-3",
            "optim.min_lr=0.0",
            "optim.warmup_steps=20",
            "optim.weight_decay=0.05",
            "optim.weight_decay_end=0.05",
        ),
    ),
    "vit": (
        "classifier.arch=timm:vit_tiny_patch16_224",
        "classifier.options={img_size: 32, patch_size: 4, embed_dim: 96, depth: 4, num_heads: 3}",
        *(
            "optim.lr=1e-3",
            "optim.warmup_steps=20",
            "optim.weight_decay=0.05",
            "optim.weight_decay_end=0.05",
        ),
    ),
}


@dataclass(frozen=True)
class Cifar:
    """1,000 images whose labels are used, 9,000 whose are not, and 5,000 to test on."""

    labeled: Source
    unlabeled: Source
    test: Source


def open_cifar() -> Cifar:
    """The first training shard, parted at random, and the test images."""
    folder = data_folder() / "cifar10"
    shard, test = (
        open_source(folder / "train-00000.tar"),
        open_source(folder / "test-00000.parquet"),
    )
    numbers = np.random.default_rng(0).permutation(len(shard))
    labeled, rest = numbers[:NUM_LABELED], numbers[NUM_LABELED:][:NUM_UNLABELED]
    return Cifar(
        subset(shard, sorted(labeled.tolist())),
        subset(shard, sorted(rest.tolist())),
        subset(test, range(NUM_TEST)),
    )


def config_of(method: str, network: str, *settings: str) -> TrainConfig:
    """The small recipe with the network of that name."""
    return configure(
        method, "small_labeled", parse_settings([*COMMON, *NETWORKS[network], *QUIET, *settings])
    )


def steps_in(seconds: float, config: TrainConfig, cifar: Cifar, out: Path) -> int:
    """How many steps of a training fit, by a few of them without a teacher."""
    parted = split_labeled([cifar.labeled], config, held_out=subset(cifar.test, range(20)))
    warm = for_training(config, steps=WARM_STEPS)
    labels = Labels(classes=parted.classes, class_ids=parted.labels)
    report = train(
        warm, [parted.learned], out, held_out=subset(cifar.test, range(20)), labels=labels
    )
    return max(2, int(seconds * report.images_per_s / config.run.batch_size))


def for_training(config: TrainConfig, *, steps: int, seed: int = 0) -> TrainConfig:
    """The same config for a number of steps and a seed; those of a course that follow on take the
    seeds after it."""
    return dataclasses.replace(
        config, run=dataclasses.replace(config.run, steps=steps, seed=100 * seed)
    )


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation in percent; a single value has no deviation."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def figures_of(row: Row) -> dict[str, float]:
    """Return the columns of a row that the table shows."""
    found = {
        "accuracy": row.accuracy,
        "ece": row.ece,
        "knn": row.knn,
        "copies": row.copies,
        "sure when wrong": row.wrong_confidence,
    }
    return {name: round(value, 4) for name, value in found.items() if value is not None}
