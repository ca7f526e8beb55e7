"""Shared by the benchmarks of methods with labels: the images, and the network that suits them.

A setting is a set of images with a network and lengths of trainings. `things` is 38,125 photographs
of 275 classes with a small residual network, trained until it converges. The others are short
trainings on CIFAR-10 with 1,000 labels, of a small ResNet and a small ViT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.evaluate.labels import find_column, labels_of
from featkit.resources import usable_cpus
from featkit.sources import Source, concatenate, open_source, subset
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.settings import parse_settings
from tests.benchmarks.photos import data_folder
from tests.torchvision_without_cuda import allow_torchvision

allow_torchvision()

LABELS_A_CLASS = 20  # of `things`, for self-training
CIFAR_LABELED, CIFAR_UNLABELED = 1000, 9000
QUICK_CLASSES, QUICK_STEPS = 5, 4
EVALUATIONS = 8  # points of a training's curve
FLAT_COLORS = "blur_probability: [0, 0, 0], solarize_probability: [0, 0, 0]"


@dataclass(frozen=True)
class Images:
    """Images to learn from and to test on. `labeled` and `unlabeled` are the two parts of
    self-training; the other methods learn from `learned`. Neighbors are sought in `gallery`. The
    parts are the same for all seeds."""

    learned: Source
    gallery: Source
    labeled: Source
    unlabeled: Source
    test: Source


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Images, a network for them, and the steps of its trainings.

    steps: of a training on all labels. few_steps: of a teacher of self-training. exits: after which
    stages or blocks. modes: further ways in which a first network teaches.
    """

    open: Callable[[], Images]
    settings: Sequence[str]
    steps: int
    few_steps: int
    exits: str
    seeds: tuple[int, ...] = (0, 1)
    generations: int = 2
    modes: tuple[str, ...] = ()


def open_things() -> Images:
    """The photographs of 275 everyday classes; 20 of each class keep their labels, 32,625 do
    not."""
    folder = data_folder() / "things"
    gallery, more = (open_source(folder / f"train-0000{number}.parquet") for number in range(2))
    learned = concatenate([gallery, more])
    few, rest = few_of_each(labels_in(learned), LABELS_A_CLASS)
    test = open_source(folder / "val-00000.parquet")
    return Images(learned, gallery, subset(learned, few), subset(learned, rest), test)


def open_cifar() -> Images:
    """1,000 images of the first training shard with labels, the other 9,000 without, and 5,000 to
    test on."""
    folder = data_folder() / "cifar10"
    shard = open_source(folder / "train-00000.tar")
    numbers = np.random.default_rng(0).permutation(len(shard))
    labeled = subset(shard, sorted(numbers[:CIFAR_LABELED].tolist()))
    rest = subset(shard, sorted(numbers[CIFAR_LABELED:][:CIFAR_UNLABELED].tolist()))
    return Images(labeled, shard, labeled, rest, open_source(folder / "test-00000.parquet"))


# The steps on CIFAR-10 are those of 90 seconds on one core, as in docs/figures/labels.md.
CIFAR = (
    "crops.global_size=32",
    "crops.global_scale=[0.5, 1.0]",
    "crops.rotation_degrees=10",
    "resize=stretch",
    f"color={{jitter_probability: 0.5, hue: 0.02, gray_probability: 0.0, {FLAT_COLORS}}}",
    "run.batch_size=50",
    "optim.warmup_steps=20",
)
SETTINGS: Mapping[str, Setting] = {
    "things": Setting(
        open=open_things,
        settings=(
            "classifier.arch=featkit:convnet",
            "classifier.options={stem: 16, widths: [32, 64, 128], blocks: [1, 2, 3]}",
            "crops.global_size=48",
            "crops.global_scale=[0.35, 1.0]",
            "crops.rotation_degrees=0",
            "optim.lr=2e-3",
            "optim.warmup_steps=200",
            "run.batch_size=128",
        ),
        steps=11_000,
        few_steps=2000,
        exits="[1, 2]",
    ),
    "cifar10": Setting(
        open=open_cifar,
        settings=(
            *CIFAR,
            "classifier={arch: 'timm:resnet18', options: {layers: [1, 1, 1, 1], channels: [16, 32,"
            " 64, 128]}, small_stem: true}",
            "optim.lr=3e-3",
            "optim.min_lr=0.0",
        ),
        steps=220,
        few_steps=220,
        exits="[1, 2, 3]",
        seeds=(0, 1, 2),
        generations=3,
        modes=("cwtm", "dkpp"),
    ),
    "cifar10-vit": Setting(
        open=open_cifar,
        settings=(
            *CIFAR,
            "classifier.arch=timm:vit_tiny_patch16_224",
            "classifier.options={img_size: 32, patch_size: 4, embed_dim: 96, depth: 4,"
            " num_heads: 3}",
            "optim.lr=1e-3",
        ),
        steps=220,
        few_steps=220,
        exits="[1, 2, 3]",
        seeds=(0,),
        generations=3,
        modes=("cwtm", "dkpp"),
    ),
}


def labels_in(source: Source) -> np.ndarray:
    """Return every image's label (N,)."""
    label_of = labels_of(source, find_column(source, "label"))
    return np.array([label_of(index) for index in range(len(source))])


def few_of_each(labels: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Return the indices of `count` images of each label, drawn at random, and of the others, both
    ascending."""
    order = np.random.default_rng(0).permutation(len(labels))
    drawn = [order[labels[order] == label][:count] for label in np.unique(labels)]
    few = np.sort(np.concatenate(drawn))
    return few.tolist(), np.setdiff1d(np.arange(len(labels)), few).tolist()


def few_classes(images: Images) -> Images:
    """Return a few images of a few classes, to try the code on."""
    classes = np.unique(labels_in(images.labeled))[:QUICK_CLASSES]

    def some(source: Source, count: int) -> Source:
        labels = labels_in(source)
        chosen = [np.flatnonzero(labels == label)[:count] for label in classes]
        return subset(source, np.sort(np.concatenate(chosen)).tolist())

    labeled, unlabeled = some(images.labeled, 10), some(images.unlabeled, 20)
    learned = labeled if images.learned is images.labeled else some(images.learned, 30)
    return Images(learned, learned, labeled, unlabeled, some(images.test, 6))


def config_of(method: str, setting: Setting, *settings: str) -> TrainConfig:
    """Return the small recipe with the setting's network, and with decay that does not change."""
    decay = ("optim.weight_decay=0.05", "optim.weight_decay_end=0.05")
    texts = [*decay, *setting.settings, "run.held_out=0", *settings]
    return configure(method, "small_labeled", parse_settings(texts))


def for_training(config: TrainConfig, *, steps: int, seed: int, longest: int = 1) -> TrainConfig:
    """Return the same config for a number of steps and a seed. Trainings that follow it in a course
    take the seeds after it. longest: the longest of them, relative to `steps`."""
    every = max(QUICK_STEPS, longest * steps // EVALUATIONS)
    run = dataclasses.replace(
        config.run,
        steps=steps,
        seed=100 * seed,
        evaluate_every=every,
        checkpoint_every=every,
        keep_checkpoints=1,
        # With one processor, a second process would only take turns with the first.
        workers=min(1, usable_cpus() - 1),
    )
    return dataclasses.replace(config, run=run)


def is_begun(run: Path) -> bool:
    """Return whether a training or a course began in that folder and can be resumed."""
    return (run / "config.yaml").is_file()
