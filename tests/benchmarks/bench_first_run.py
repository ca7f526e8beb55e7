"""Measure a first run of 15 minutes on 400 photographs by the copies found among 200 others.

Raw pixels and the untrained network are measured too. The images are 64×64 and the network is a ViT
of width 192 and patch 8, trained by the tiny recipe for as many steps as fit into 15 minutes.
Run: python tests/benchmarks/bench_first_run.py [MINUTES | --quick]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from featkit.embedder import Embedder
from featkit.evaluate.copies import evaluate_copies
from featkit.sources import Source
from featkit_export.recipe import Feature
from featkit_export.request import ExportRequest, export
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.loop import train
from featkit_train.watching.listener import Listener
from tests.benchmarks.photos import open_photos
from tests.benchmarks.record import is_quick, write_result

MINUTES = 15.0
WARM_STEPS = 1 if is_quick() else 10


def tiny(steps: int) -> TrainConfig:
    """The tiny recipe at another length, without pauses for evaluation."""
    return configure(
        "dino",
        "tiny",
        {"run.steps": steps, "run.held_out": 0, "run.evaluate_every": 1_000_000},
    )


def recall(run: Path, held_out: Source, feature: Feature) -> dict[str, float]:
    """recall@1 of the run's exported file and of the baselines."""
    export(ExportRequest(source=str(run), out=run / "m.onnx", feature=feature))
    report = evaluate_copies(held_out, Embedder(run / "m.onnx"))
    return {method.name: round(method.recall_at_1, 3) for method in report.methods}


def main() -> None:
    """Train, measure and record."""
    minutes = 0.1 if is_quick() else float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = open_photos(folder)
        first, last = photos.learned, photos.held_out
        warm = train(tiny(WARM_STEPS), [first], folder / "warm")
        untrained = train(tiny(1), [first], folder / "untrained")
        assert untrained.steps == 1
        steps = int(minutes * 60 * WARM_STEPS / warm.seconds)
        started = time.perf_counter()
        report = train(
            tiny(steps),
            [first],
            folder / "run",
            listener=Listener(on_log=lambda log: print(log, flush=True)),
        )
        spent = time.perf_counter() - started
        figures = {
            "minutes": round(spent / 60, 1),
            "steps": report.steps,
            "images/s": round(report.images_per_s, 1),
            "recall@1, class token": recall(folder / "run", last, "cls"),
            "recall@1, class token and mean": recall(folder / "run", last, "cls+mean"),
            "recall@1 after one step": recall(folder / "untrained", last, "cls"),
        }
    write_result("first_run", figures)


if __name__ == "__main__":
    main()
