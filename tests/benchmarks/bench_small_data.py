"""Measure minutes of training on 400 photographs at 64×64 by the copies found among 200 others.

dino, ibot and dinov2 run by the tiny recipe, 5 minutes and two seeds each, and the best of them for
15 minutes. lightly's parts run in plain loops with the papers' settings, 5 minutes each. Raw pixels
are the baseline. Results are written after every run, so a stop loses nothing. With METHODs, only
these run, for 15 minutes, and are added to the existing results.
Run: python tests/benchmarks/bench_small_data.py [METHOD ...] [--quick]        (about an hour)
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.evaluate.copies import CopiesReport, evaluate_copies
from featkit.resources import usable_cpus
from featkit_export.torch_embedder import TorchEmbedder
from featkit_train.configure import configure
from featkit_train.loop import train
from featkit_train.networks.vit import VisionTransformer
from featkit_train.run_parts import geometry_of
from featkit_train.schedules import cosine_schedule
from featkit_train.settings import parse_settings
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone
from tests.benchmarks.lightly_loops import LOOPS
from tests.benchmarks.photos import Photos, open_photos
from tests.benchmarks.record import arguments, is_quick, read_figures, write_result

Found = tuple[CopiesReport, int, float]  # what is found, steps, minutes
METHODS = ("dino", "ibot", "dinov2")
SEEDS = (0, 1)
SHORT, LONG = (0.05, 0.1) if is_quick() else (5.0, 15.0)  # minutes
WARM_STEPS = 2 if is_quick() else 30  # the first ones are slow
QUIET = ("run.held_out=0", "run.evaluate_every=1000000", "run.checkpoint_every=1000000")
# The papers' numbers for the head, the momentum, the rates and the temperatures, at the crops and
# model of the others.
PAPER_HEAD = "{num_prototypes: 65536, hidden_width: 2048, bottleneck_width: 256}"
PAPER = (f"dino.head={PAPER_HEAD}", f"ibot.head={PAPER_HEAD}")
PAPER_LR, PAPER_MOMENTUM = 5e-4 * 64 / 256, 0.996


def steps_in(minutes: float, method: str, photos: Photos, out: Path) -> int:
    """How many steps of a method fit, by a few of them."""
    warm = configure(method, "tiny", parse_settings([*QUIET, f"run.steps={WARM_STEPS}"]))
    report = train(warm, [photos.learned], out)
    return max(2, int(minutes * 60 * report.images_per_s / warm.run.batch_size))


def ours(method: str, seed: int, minutes: float, photos: Photos, folder: Path) -> Found:
    """A run of featkit's by the clock: what it finds, its steps, its minutes."""
    settings = [*QUIET, f"run.seed={seed}"]
    out = folder / f"{method}-{seed}-{minutes}"
    steps = steps_in(minutes, method, photos, folder / f"{out.name} warm")
    report = train(
        configure(method, "tiny", parse_settings([*settings, f"run.steps={steps}"])),
        [photos.learned],
        out,
    )
    return evaluate_copies(photos.held_out, TorchEmbedder.open(out)), steps, report.seconds / 60


def lightlys(method: str, minutes: float, photos: Photos, folder: Path) -> Found:
    """lightly's parts in a plain loop for so long; the teacher is measured."""
    settings = PAPER if method == "dinov2" else PAPER[:1]
    config = configure(method, "tiny", parse_settings(settings))
    steps = 0

    def momentum(step: int) -> float:  # over the steps that the pace so far leads to
        spent = max(time.perf_counter() - started, 1e-3)
        return cosine_schedule(
            step,
            start=PAPER_MOMENTUM,
            end=1.0,
            num_steps=max(step + 1, int(step / spent * minutes * 60)),
        )

    torch.manual_seed(0)
    loop = LOOPS[method](
        config,
        photos.learned,
        device=torch.device("cpu"),
        autocast_dtype=None,
        lr=PAPER_LR,
        momentum=momentum,
    )
    started = time.perf_counter()
    while time.perf_counter() - started < minutes * 60:
        loop.steps(1)
        steps += 1
    spent = (time.perf_counter() - started) / 60
    out = folder / f"lightly-{method}"
    out.mkdir()
    geometry = geometry_of(config, patch=config.model.patch)
    teacher = loop.branches()[1][0]
    assert isinstance(teacher, VisionTransformer)
    save_backbone(
        out / BACKBONE_FILE,
        teacher,
        BackboneInfo(name="lightly", family=method, geometry=geometry, license="none"),
    )
    return evaluate_copies(photos.held_out, TorchEmbedder.open(out)), steps, spent


def main() -> None:
    """Train, measure and record."""
    torch.set_num_threads(usable_cpus())
    figures: dict[str, object] = {}

    def keep(name: str, found: Found) -> float:
        report, steps, minutes = found
        recall = report.model.recall_at_1
        figures.setdefault(
            "centered pixels, recall@1", round(report.method("centered pixels").recall_at_1, 3)
        )
        figures[f"{name}, recall@1"] = round(recall, 3)
        figures[f"{name}, steps and minutes"] = [steps, round(minutes, 1)]
        write_result("small_data", figures)
        return recall

    chosen = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = open_photos(folder)
        if chosen:
            figures.update(read_figures("small_data"))
        else:
            chosen = [everything(photos, folder, keep)]
        for method in chosen:
            keep(f"{method}, long", ours(method, 0, LONG, photos, folder))


def everything(photos: Photos, folder: Path, keep: Callable[[str, Found], float]) -> str:
    """All the short runs; the method that finds most over its seeds."""
    untrained = configure("dino", "tiny", parse_settings([*QUIET, "run.steps=1"]))
    train(untrained, [photos.learned], folder / "untrained")
    keep(
        "untrained",
        (evaluate_copies(photos.held_out, TorchEmbedder.open(folder / "untrained")), 1, 0.0),
    )
    recalls: dict[str, float] = {}
    for method in METHODS:
        recalls[method] = sum(
            keep(f"{method}, seed {seed}", ours(method, seed, SHORT, photos, folder))
            for seed in SEEDS
        )
    for method in LOOPS:
        keep(f"lightly's {method}, paper's numbers", lightlys(method, SHORT, photos, folder))
    return max(recalls, key=lambda method: recalls[method])


if __name__ == "__main__":
    main()
