"""The search for featkit-tiny's recipe: short trainings that each change one thing.

Trained on the 38,125 photographs of `things`, and measured on what choosing.py holds out for it.

A variant is measured by the feature that ships: its last two stages, pooled by the generalized
mean, each whitened on 4,000 training images. A vision transformer is measured by its class token,
whitened alike.
Trainings are kept in --room: finished ones are not repeated, and a stopped one resumes. Each takes
10 to 20 minutes of one core with AVX-512 bf16.

Run: python tests/benchmarks/bench_tiny_search.py [VARIANT ...] [--room FOLDER] [--cpus 0] [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit_export.recipe import Recipe
from featkit_export.torch_embedder import TorchEmbedder
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.loop import train
from featkit_train.networks.convnet import ConvNet
from featkit_train.report.metrics import read_metrics
from featkit_train.run_folder import CONFIG_FILE, METRICS_FILE
from featkit_train.settings import parse_settings
from featkit_train.weights import load_backbone
from tests.benchmarks.choosing import (
    Photographs,
    embed_photographs,
    open_photographs,
    scores_of,
    whitening_of,
)
from tests.benchmarks.record import markdown_table, read_figures, save_result

RESULT = "tiny_search"
VIT = "{patch: 8, width: 192, depth: 4, num_heads: 3, mlp_width: 768, position_grid: 8,"
WEAK_COLOR = (
    "color={jitter_probability: 0.5, hue: 0.02, gray_probability: 0.05, blur_probability: [0.1,"
    " 0.1, 0.1], solarize_probability: [0, 0, 0]}"
)
# What the search began with, before its findings became the recipe `small`.
START = (
    "joint={num_layers: 2, hidden_width: 1024}",
    "color={hue: 0.05, gray_probability: 0.1, blur_probability: [0.2, 0.1, 0.2],"
    " solarize_probability: [0, 0, 0]}",
)
MEAN = "network.options={pooling: mean}"
SLOW = ("optim.lr=2e-3", MEAN)

SELF03 = ("joint.self_weight=0.3",)


@dataclass(frozen=True)
class Variant:
    """The changes of START, and their reason. steps: of 128 images."""

    about: str
    settings: tuple[str, ...] = ()
    steps: int = 800
    seed: int = 0


WEAK_SELF = "weak color and DINO's loss at 0.3"
WEAK = "half as much change of color"
VARIANTS = {
    "joint-a": Variant("labels and DINO, learning rate 2e-3, mean pooling", SLOW),
    "labels-a": Variant("labels alone", (*SLOW, "joint.self_weight=0", "dino.koleo_weight=0")),
    "self-a": Variant("DINO alone", (*SLOW, "joint.label_weight=0")),
    "joint-lr4": Variant("learning rate 4e-3", (MEAN,)),
    "gem-lr4": Variant("the generalized mean"),
    "scale10": Variant("crops from a tenth of the area", (MEAN, "crops.global_scale=[0.1,1.0]")),
    "gem-self03": Variant("DINO's loss at 0.3", SELF03),
    "gem-local2": Variant(
        "two local crops, in as many minutes",
        ("crops.num_local=2", "crops.local_size=32", "crops.local_scale=[0.08,0.3]"),
        steps=650,
    ),
    "weak-color": Variant(WEAK, (WEAK_COLOR,)),
    "weak-color-1": Variant(WEAK, (WEAK_COLOR,), seed=1),
    "b-ref": Variant(WEAK_SELF, (WEAK_COLOR, *SELF03)),
    "b-ref-1": Variant(WEAK_SELF, (WEAK_COLOR, *SELF03), seed=1),
    "s-proj1": Variant(
        "DINO's loss at 0.3, a projector of one layer", (*SELF03, "joint.num_layers=1")
    ),
    "s-mix50": Variant(
        "DINO's loss at 0.3, CutMix in half of the steps", (*SELF03, "joint.mix_probability=0.5")
    ),
    "s-multi": Variant(
        "DINO's loss at 0.3, crops of 48, 64 and 96 pixels, in as many minutes",
        (
            *SELF03,
            "crops.resolutions=[{share: 0.35, global_size: 48, local_size: 32}, {share: 0.35,"
            " global_size: 64, local_size: 32}, {share: 0.3, global_size: 96, local_size: 48}]",
        ),
        steps=700,
    ),
    "vit": Variant(
        "a ViT of 1.2 times the multiply-adds, learning rate 1e-3",
        (
            *("network.arch=vit", f"model={VIT} position_offset: 0.0}}"),
            *("optim.lr=1e-3", "optim.warmup_steps=100"),
        ),
    ),
}


def config_of(variant: Variant, *, quick: bool) -> TrainConfig:
    """Return the recipe with the variant's changes."""
    steps = 2 if quick else variant.steps
    return configure(
        "joint",
        "small",
        parse_settings(
            [
                *START,
                *(f"run.steps={steps}", f"run.seed={variant.seed}", "run.batch_size=128"),
                *("run.evaluate_every=1000000", "run.held_out=0", "run.log_every=20"),
                *variant.settings,
                *(["run.batch_size=8"] if quick else []),
            ]
        ),
    )


def train_variant(variant: Variant, photographs: Photographs, run: Path, *, quick: bool) -> None:
    """Train in the folder `run`, or resume it, unless it has taken all its steps."""
    config = config_of(variant, quick=quick)
    if (run / METRICS_FILE).is_file() and read_metrics(run / METRICS_FILE).last_step >= (
        config.run.steps
    ):
        return
    resume = (run / CONFIG_FILE).is_file()
    train(config, [photographs.learned], run, resume=resume)


def measure(run: Path, photographs: Photographs) -> dict[str, float]:
    """Return the scores of a run by the feature that ships, and the minutes of its steps."""
    backbone, _ = load_backbone(run)
    is_convnet = isinstance(backbone, ConvNet)
    recipe = Recipe(feature="gem", layers=(2, 3)) if is_convnet else Recipe()
    parts = recipe.widths(backbone.widths) if is_convnet else ()
    embedded = embed_photographs(photographs, TorchEmbedder.open(run, recipe=recipe))
    minutes = read_metrics(run / METRICS_FILE).seconds / 60
    return {
        **scores_of(embedded, whitening_of(embedded, parts=parts)),
        "minutes": round(minutes, 1),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Train and measure, and print all that is measured so far as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", choices=[[], *VARIANTS], metavar="VARIANT")
    parser.add_argument("--room", type=Path, default=Path("build/tiny-search"))
    parser.add_argument("--cpus", help="processors to use, such as 0,1")
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    if options.cpus:
        os.sched_setaffinity(0, [int(each) for each in options.cpus.split(",")])
    torch.set_num_threads(usable_cpus())
    with tempfile.TemporaryDirectory() as folder:
        photographs = open_photographs(Path(folder), quick=options.quick)
        for name in options.variants or VARIANTS:
            variant, run = VARIANTS[name], options.room / name
            train_variant(variant, photographs, run, quick=options.quick)
            row = {
                "variant": variant.about,
                "steps": variant.steps,
                "seed": variant.seed,
                **measure(run, photographs),
                "settings": list(variant.settings),
            }
            print(name, row, flush=True)
            if not options.quick:
                # read again: another process may have written its own variants
                save_result(RESULT, {**read_figures(RESULT), name: row})
    figures = read_figures(RESULT)
    if figures:
        rows = [
            {key: value for key, value in row.items() if key != "settings"}
            for row in figures.values()
        ]
        print(markdown_table(rows))


if __name__ == "__main__":
    main()
