"""Measure half an hour of training on 10,000 small images: CIFAR-10 kNN accuracy over time.

Training uses the first training shard at 32×32 without labels. Accuracy is that of 20 neighbors for
5,000 test images, by the shard's labels, compared with raw pixels.
Run: python tests/benchmarks/bench_cifar.py [MINUTES] [METHOD] [--quick]
(30 minutes and the measurements)
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.evaluate.knn import KnnReport, evaluate_knn
from featkit.resources import usable_cpus
from featkit.sources import Source, open_source, subset
from featkit_export.graph import EmbeddingGraph
from featkit_export.recipe import Recipe
from featkit_export.torch_embedder import TorchEmbedder
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.settings import parse_settings
from featkit_train.weights import BackboneInfo
from tests.benchmarks.loops import FeatkitLoop
from tests.benchmarks.photos import data_folder
from tests.benchmarks.record import arguments, is_quick, write_result

NEIGHBORS = 20
MINUTES = 0.2 if is_quick() else 30.0
WARM_STEPS = 3 if is_quick() else 15
MARKS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of the time, when it is measured
# The tiny recipe for images of 32 pixels: patches of 4, half the width, prototypes for 10,000
# images; DINO's colors and temperature, and nothing turned, were the best of a dozen trials of
# minutes.
SETTINGS = (
    "crops.global_size=32",
    "crops.local_size=16",
    "crops.rotation_degrees=0",
    (
        "color={hue: 0.1, gray_probability: 0.2, blur_probability: [0, 0, 0],"
        " solarize_probability: [0, 0, 0]}"
    ),
    (
        "model={patch: 4, width: 96, depth: 4, num_heads: 3, mlp_width: 384, position_grid: 8,"
        " position_offset: 0.0}"
    ),
    "dino.head.num_prototypes=1024",
    "dino.teacher_temp=0.04",
    "dino.teacher_temp_end=0.04",
    "run.held_out=0",
    "run.batch_size=64",
)


def config_of(method: str, steps: int) -> TrainConfig:
    """The tiny recipe at CIFAR's size."""
    return configure(method, "tiny", parse_settings([*SETTINGS, f"run.steps={steps}"]))


def measure(loop: FeatkitLoop, train: Source, test: Source) -> KnnReport:
    """The teacher as it is now."""
    backbone = loop.engine.result()
    info = BackboneInfo(name="teacher", family="dino", geometry=loop.run.geometry, license="none")
    embedder = TorchEmbedder(EmbeddingGraph(backbone, info.geometry, Recipe()), info, device="cpu")
    return evaluate_knn(train, test, embedder, ks=(NEIGHBORS,))


def main() -> None:
    """Train, measure and record."""
    words = arguments()
    minutes = float(words[0]) if words else MINUTES
    method = words[1] if len(words) > 1 else "dino"
    torch.set_num_threads(usable_cpus())
    cifar = data_folder() / "cifar10"
    train, test = open_source(cifar / "train-00000.tar"), open_source(cifar / "test-00000.parquet")
    if is_quick():
        train, test = subset(train, range(200)), subset(test, range(100))
    with tempfile.TemporaryDirectory() as name:
        warm = FeatkitLoop(config_of(method, WARM_STEPS), train, Path(name))
        warm.steps(WARM_STEPS // 3)
        rate = warm.images_per_s(WARM_STEPS - WARM_STEPS // 3)
        config = config_of(method, max(len(MARKS), int(minutes * 60 * rate / warm.images)))
        loop = FeatkitLoop(config, train, Path(name))
        figures: dict[str, object] = {
            "method": method,
            "settings": list(SETTINGS),
            "images/s": round(rate, 1),
        }
        marks = [round(share * config.run.steps) for share in MARKS]
        spent = 0.0
        for before, mark in itertools.pairwise([0, *marks]):
            started = time.perf_counter()
            loop.steps(mark - before)
            spent += time.perf_counter() - started
            report = measure(loop, train, test)
            model, pixels = report.scores
            figures["centered pixels"] = round(pixels.weighted, 3)
            figures[f"after {mark:,} steps, {spent / 60:.1f} minutes"] = round(model.weighted, 3)
            write_result("cifar", figures)


if __name__ == "__main__":
    main()
