"""Run an engine's steps on drawn images, without a run's files."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from featkit.sources import open_source
from featkit_train.config import TrainConfig
from featkit_train.engine.step import Engine
from featkit_train.images.batches import crop_loader
from featkit_train.images.crops import CropDataset, Crops
from featkit_train.images.order import EpochOrder
from featkit_train.log import Log
from featkit_train.methods import Labels
from featkit_train.processes.device import pick_autocast
from featkit_train.processes.distributed import ALONE
from tests.images import draw_folder

NUM_IMAGES = 20


@functools.cache
def drawn_images() -> Path:
    """Return the drawn images that all tests share."""
    folder = Path(tempfile.mkdtemp(prefix="featkit-steps-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return draw_folder(folder / "images", NUM_IMAGES)


def make_engine(config: TrainConfig, *, labels: Labels | None = None) -> Engine:
    """Create an engine on the CPU as a run does. labels: of the drawn images, for supervised
    methods."""
    device, autocast_dtype = (
        torch.device("cpu"),
        pick_autocast(config.run.precision, torch.device("cpu")),
    )
    engine = Engine(
        config, device=device, autocast_dtype=autocast_dtype, world=ALONE, labels=labels
    )
    engine.method.start_run()
    return engine


def batches(config: TrainConfig, engine: Engine, *, steps: int) -> list[Crops]:
    """Return a run's first batches over all drawn images."""
    run = config.run
    dataset = CropDataset(
        open_source(drawn_images()),
        crops=config.crops,
        color=config.color,
        seed=run.seed,
        cache_bytes=run.cache_bytes,
        spec=engine.crop_spec(),
    )
    shares = [resolution.share for resolution in config.crops.resolutions] or (1.0,)
    order = EpochOrder(
        np.arange(NUM_IMAGES),
        batch_size=run.batch_size,
        seed=run.seed,
        first_step=0,
        last_step=steps,
        shares=shares,
        num_views=config.crops.fixed_views,
    )
    return list(crop_loader(dataset, order, workers=0))


def learn(config: TrainConfig, *, steps: int) -> tuple[Engine, list[Log]]:
    """Return an engine after `steps` steps, and their logs."""
    engine = make_engine(config)
    return engine, [
        engine.step(crops, step) for step, crops in enumerate(batches(config, engine, steps=steps))
    ]
