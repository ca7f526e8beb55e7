"""The parts of a training run: engine, order of the images, crops, held-out images and folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from featkit.geometry import Geometry
from featkit.resources import usable_cpus
from featkit.sources import Source, concatenate, has_keys, keys_sha256
from featkit.sources.locality import locality_of
from featkit_train.config import TrainConfig
from featkit_train.engine.step import Engine
from featkit_train.images.crops import CropDataset
from featkit_train.images.order import EpochOrder, split_held_out
from featkit_train.methods import METHODS, Labels
from featkit_train.methods.base import IMAGENET_MEAN, IMAGENET_STD
from featkit_train.methods.labels import labels_to_learn
from featkit_train.processes.device import pick_autocast, pick_device
from featkit_train.processes.distributed import ALONE, World, local_device
from featkit_train.run_folder import SNAPSHOTS, RunFolder
from featkit_train.watching.probe import HeldOut
from featkit_train.watching.snapshots import Snapshots


class RunParts:
    """Everything that a run is made of before its first step.

    sources: images to learn from. held_out: images to measure on; None takes a share of the
    sources, which is then not trained on. labels: class labels and a teacher, for methods with
    labels; None reads those of a method that also takes images without one.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[Source],
        out: Path,
        *,
        held_out: Source | None = None,
        labels: Labels | None = None,
        device: torch.device | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.world = config, world
        self.device = device or local_device(pick_device(config.run.device))
        torch.set_num_threads(max(1, usable_cpus() // world.local_size))
        source = concatenate(sources)
        self.train_ids, held_out_ids = split_held_out(
            len(source),
            wanted=config.run.held_out if held_out is None else 0,
            seed=config.run.seed,
        )
        if labels is None and config.method in METHODS and METHODS[config.method].some_unlabeled:
            labels = labels_to_learn(source, config.labels.column, self.train_ids)
        if labels is not None and labels.indices is not None:
            self.train_ids = labels.indices
        self.order = epoch_order(config, source, self.train_ids, world=world)
        self.engine = Engine(
            config,
            device=self.device,
            autocast_dtype=pick_autocast(config.run.precision, self.device),
            world=world,
            labels=labels,
        )
        method = self.engine.method
        self.geometry = geometry_of(
            config, patch=method.result.patch, mean=method.mean, std=method.std
        )
        self.dataset = CropDataset(
            source,
            crops=config.crops,
            color=config.color,
            seed=config.run.seed,
            cache_bytes=config.run.cache_bytes,
            indices=np.unique(self.train_ids),
            spec=self.engine.crop_spec(),
        )
        self.folder = run_folder(out, config, source, held_out)
        self.held_out = HeldOut(
            source if held_out is None else held_out,
            held_out_ids if held_out is None else np.arange(len(held_out)),
            self.geometry,
            label=config.labels.column,
        )
        self.snapshots = Snapshots(
            out / SNAPSHOTS,
            self.held_out.images,
            self.held_out.names,
            self.geometry,
            every=config.run.evaluate_every,
            enlarge=labels is None,  # architectures of timm and torchvision may fix their size
        )


def epoch_order(
    config: TrainConfig, source: Source, train_ids: np.ndarray, *, world: World
) -> EpochOrder:
    """Return the order in which this process reads the images of all steps."""
    return EpochOrder(
        train_ids,
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        first_step=0,
        last_step=config.run.steps,
        rank=world.rank,
        size=world.size,
        micro_batches=config.engine.accumulate,
        shares=[resolution.share for resolution in config.crops.resolutions] or (1.0,),
        num_views=config.crops.fixed_views,
        locality=locality_of(source),
    )


def run_folder(
    out: Path, config: TrainConfig, learned: Source, held_out: Source | None
) -> RunFolder:
    """Return the folder of a run, which records digests of its images."""
    digested = {"keys_sha256": learned, "held_out_keys_sha256": held_out}
    digests = {
        name: None if source is None else keys_sha256(source) for name, source in digested.items()
    }

    def is_same(name: str, digest: str) -> bool:
        source = digested[name]
        return source is not None and has_keys(source, digest)

    return RunFolder(out, config, {"names": learned.name, **digests}, is_same=is_same)


def geometry_of(
    config: TrainConfig,
    *,
    patch: int,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Geometry:
    """Return the preprocessing of the trained backbone, at its test size or that of its global
    crops."""
    size = config.crops.test_size or config.crops.global_size
    return Geometry(
        height=size,
        width=size,
        resize=config.resize,
        resize_to=size,
        interpolation="bicubic",
        patch=patch,
        mean=mean,
        std=std,
    )
