"""featkit-tiny, the model that ships: train it again by its two recipes, or take a finished second
run, and measure it.

Copies among the last 200 of 600 photographs in name order, which it was not trained on, next to the
baselines; and, for what it is not good at, the kinds of things in CIFAR-10 by their nearest
neighbors, next to raw pixels. Run: python tests/benchmarks/bench_tiny.py [RUN | --quick]
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[2]))

from featkit.embedder import Embedder
from featkit.evaluate.copies import CopiesReport, evaluate_copies
from featkit.evaluate.knn import evaluate_knn
from featkit.sources import Source, open_source, subset
from featkit_export.recipe import Feature
from featkit_export.request import ExportRequest, export
from featkit_train.configure import configure
from featkit_train.loop import train
from featkit_train.settings import parse_settings
from featkit_train.watching.listener import Listener
from tests.benchmarks.photos import NUM_HELD_OUT, NUM_LEARNED, data_folder, open_part
from tests.benchmarks.record import is_quick, write_result

NEIGHBORS, GALLERY, QUERIES = (20, 60, 20) if is_quick() else (20, 5000, 1000)


def cifar_accuracy(data: Path, embedder: Embedder) -> dict[str, float]:
    """Return accuracies of the model and of centered pixels, by majority and by weighted vote."""
    shards = (open_source(data / "cifar10" / f"train-0000{number}.tar") for number in range(2))
    gallery, queries = (
        subset(shard, range(count)) for shard, count in zip(shards, (GALLERY, QUERIES), strict=True)
    )
    found = {}
    for name, score in zip(
        ("model", "centered pixels"),
        evaluate_knn(gallery, queries, embedder, ks=(NEIGHBORS,)).scores,
        strict=True,
    ):
        found[f"CIFAR-10 by {NEIGHBORS} neighbors, {name}"] = round(score.majority, 3)
        found[f"CIFAR-10 by {NEIGHBORS} neighbors, weighted, {name}"] = round(score.weighted, 3)
    return found


def minutes_of(run: Path) -> float:
    """Time of the steps of the last stage, from the rates that its run logged."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "steps_per_s" in line]
    spent = 0.0
    before = 0
    for line in steps:
        spent += (line["step"] - before) / line["steps_per_s"]
        before = line["step"]
    return spent / 60


def train_stages(first: Source, last: Source, folder: Path) -> Path:
    """The run of the second stage, after the first."""
    stages = (("dino", "tiny"), ("adapt", "tiny_adapt"))
    settings = ["run.steps=4", "run.held_out=4"] if is_quick() else []
    for method, recipe in stages:
        config = configure(method, recipe, parse_settings(settings))
        train(
            config,
            [first],
            folder / recipe,
            held_out=last,
            listener=Listener(on_log=lambda log: print(log, flush=True)),
        )
        settings = [*settings, f"pretrained.name={folder / recipe}"]
    return folder / recipe


def measure(run: Path, held_out: Source, feature: Feature, out: Path) -> CopiesReport:
    """The copies yardstick of one feature."""
    export(ExportRequest(source=str(run), out=out, feature=feature))
    return evaluate_copies(held_out, Embedder(out))


def main() -> None:
    """Measure and record."""
    data = data_folder()
    photos = sorted((data / "photos").iterdir())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, last = (
            open_part(photos[:NUM_LEARNED], folder / "first.txt"),
            open_part(photos[-NUM_HELD_OUT:], folder / "last.txt"),
        )
        run = (
            Path(sys.argv[1])
            if len(sys.argv) > 1 and not is_quick()
            else train_stages(first, last, folder)
        )
        reports = {
            feature: measure(run, last, feature, folder / f"{feature}.onnx")
            for feature in get_args(Feature)
        }
        figures = {
            "minutes of steps": round(minutes_of(run), 1),
            **{
                f"copy recall@1, {feature}": round(report.model.recall_at_1, 3)
                for feature, report in reports.items()
            },
            "copy recall@1, centered pixels": round(
                reports["cls"].method("centered pixels").recall_at_1, 3
            ),
            "target": "twice centered pixels, aim for three times",
            **cifar_accuracy(data, Embedder(folder / "cls.onnx")),
            "reports": {feature: asdict(report) for feature, report in reports.items()},
        }
    write_result("tiny", figures)


if __name__ == "__main__":
    main()
