"""Pictures a second of featkit's training step beside a loop of lightly's DINOTransform and DINOLoss.

The same backbone, crops, batch, pictures, optimizer and loader workers; the two run in turn, a few steps each.
Run: python tests/benchmarks/bench_train_speed.py
"""

from __future__ import annotations

import copy
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featkit.resources import usable_cpus
from featkit.sources import Source, open_source
from featkit_train.config import TrainConfig, from_mapping, read_recipe, with_settings
from featkit_train.data import CropDataset, EpochOrder, crop_loader
from featkit_train.loop import Run
from featkit_train.vit import VisionTransformer
from tests.benchmarks.record import alternate, median_ratio, write_result
from tests.data import shared_data
from tests.torchvision_without_cuda import import_lightly_loss, import_quietly

STEPS, ROUNDS = 6, 5
WORKERS = (1, 2)  # featkit is fastest with one on two cores, lightly by a little with two
SETTINGS = ("run.batch_size=64", "run.held_out=0", "crops.num_local=2", "crops.local_size=32")


class LightlyPictures(Dataset[list[Tensor]]):
    """Decode with Pillow, then lightly's transform: what its own example does."""

    def __init__(self, source: Source, transform: Any) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(Image.open(io.BytesIO(self.source.read(number))).convert("RGB"))
        return views


class LightlyLoop:
    """The training loop of lightly's DINO example with featkit's backbone."""

    def __init__(self, config: TrainConfig, source: Source) -> None:
        heads = import_quietly("lightly.models.modules.heads")
        transforms = import_quietly("lightly.transforms.dino_transform")
        head, crops = config.dino.head, config.crops
        sizes = (config.model.width, head.hidden_width, head.bottleneck_width, head.num_prototypes)
        self.student = VisionTransformer(config.model)
        self.teacher = copy.deepcopy(self.student)
        self.student_head = heads.DINOProjectionHead(*sizes, freeze_last_layer=0)
        self.teacher_head = heads.DINOProjectionHead(*sizes)
        self.loss = import_lightly_loss("DINOLoss")(output_dim=head.num_prototypes)
        self.parameters = [*self.student.parameters(), *self.student_head.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, fused=True)
        transform = transforms.DINOTransform(
            global_crop_size=crops.global_size,
            local_crop_size=crops.local_size,
            n_local_views=crops.num_local,
            global_crop_scale=crops.global_scale,
            local_crop_scale=crops.local_scale,
        )
        self.batches = self._batches(
            DataLoader(
                LightlyPictures(source, transform),
                batch_size=config.run.batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=config.run.workers,
                persistent_workers=True,
            )
        )
        self.update_momentum = import_quietly("lightly.models.utils").update_momentum

    def _batches(self, loader: DataLoader[list[Tensor]]) -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    def steps(self, count: int) -> None:
        """Run some steps."""
        for _ in range(count):
            views = next(self.batches)
            self.update_momentum(self.student, self.teacher, m=0.99)
            self.update_momentum(self.student_head, self.teacher_head, m=0.99)
            with torch.no_grad():
                teacher = [self.teacher_head(self.teacher(view).class_token) for view in views[:2]]
            student = [self.student_head(self.student(view).class_token) for view in views]
            loss = self.loss(teacher, student, epoch=0)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 3.0)
            self.optimizer.step()


class FeatkitLoop:
    """featkit's own step and data."""

    def __init__(self, config: TrainConfig, source: Source, out: Path) -> None:
        self.run = Run(config, [source], out, held_out=None, on_log=lambda _: None, on_note=lambda _: None)
        dataset = CropDataset(source, crops=config.crops, colour=config.colour, seed=0, cache_bytes=config.run.cache_bytes)
        order = EpochOrder(self.run.numbers, batch_size=config.run.batch_size, seed=0, first_step=0, last_step=config.run.steps)
        self.batches = iter(crop_loader(dataset, order, workers=config.run.workers))
        self.step = 0

    def steps(self, count: int) -> None:
        """Run some steps."""
        for _ in range(count):
            self.run.step(next(self.batches), self.step)
            self.step += 1


def measure(source: Source, *, workers: int) -> tuple[list[float], list[float]]:
    """Images a second of featkit and of lightly, in turn, both with so many loader workers."""
    config = from_mapping(TrainConfig, with_settings(read_recipe("tiny"), [*SETTINGS, f"run.workers={workers}"]))
    with tempfile.TemporaryDirectory() as folder:
        loops = (FeatkitLoop(config, source, Path(folder)), LightlyLoop(config, source))

        def images_per_s(number: int) -> float:
            started = time.perf_counter()
            loops[number].steps(STEPS)
            return STEPS * config.run.batch_size / (time.perf_counter() - started)

        for loop in loops:
            loop.steps(2)
        return alternate(lambda: images_per_s(0), lambda: images_per_s(1), rounds=ROUNDS)


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    torch.set_num_threads(usable_cpus())
    source = open_source(data / "photos")
    figures: dict[str, object] = {}
    medians = []
    for workers in WORKERS:
        ours, theirs = measure(source, workers=workers)
        medians.append((statistics.median(ours), statistics.median(theirs)))
        figures[f"featkit images/s, {workers} workers"] = [round(value, 1) for value in ours]
        figures[f"lightly images/s, {workers} workers"] = [round(value, 1) for value in theirs]
        figures[f"median ratio, {workers} workers"] = round(median_ratio(ours, theirs), 2)
    best = max(ours for ours, _ in medians) / max(theirs for _, theirs in medians)
    figures["each with its best number of workers"] = round(best, 2)
    write_result("train_speed", {**figures, "target ratio": 2.0, "settings": list(SETTINGS)})


if __name__ == "__main__":
    main()
