"""Compare featkit's training step with plain loops of lightly's parts, for DINO and DINOv2.

Backbone, crops, batch, images and loader workers are the same. The loops take turns of a few steps.
Before each turn, the other loops' workers have time to fill their queues and become idle, and the
loop takes some steps to empty its own queue. lightly's loop is in float32; featkit is measured in
float32 and, if the CPU supports it, in bfloat16.
Run: python tests/benchmarks/bench_train_speed.py [--quick]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit.sources import Source, open_source
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.processes.device import pick_autocast
from featkit_train.settings import parse_settings
from tests.benchmarks.lightly_loops import LOOPS
from tests.benchmarks.loops import FeatkitLoop, Loop
from tests.benchmarks.record import is_quick, median_ratio, write_result
from tests.data import shared_data

# batches that a worker keeps ready
STEPS, ROUNDS, PAUSE_S, QUEUED = (1, 1, 0.0, 0) if is_quick() else (8, 5, 4.0, 4)
WORKERS = (1,) if is_quick() else (1, 2)  # on two cores either can be faster
BATCH = 4 if is_quick() else 64
TARGETS = {"dino": 2.0, "dinov2": 1.5}
SETTINGS = (
    f"run.batch_size={BATCH}",
    "run.held_out=0",
    "run.device=cpu",
    "crops.num_local=2",
    "crops.local_size=32",
)
OF_METHOD = {
    "dino": (),
    "dinov2": (
        "ibot.head={num_prototypes: 256, hidden_width: 1024, bottleneck_width: 192}",
        "model.layer_scale=1.0e-5",
    ),
}
CPU = torch.device("cpu")


def config_of(method: str, *, workers: int, precision: str = "float32") -> TrainConfig:
    """The tiny recipe with two local crops."""
    settings = [
        *SETTINGS,
        *OF_METHOD[method],
        f"run.workers={workers}",
        f"run.precision={precision}",
    ]
    return configure(method, "tiny", parse_settings(settings))


def precisions() -> Sequence[str]:
    """float32, and what `auto` is where that is another."""
    return ("float32",) if pick_autocast("auto", CPU) is None else ("float32", "auto")


def measure(method: str, source: Source, *, workers: int) -> dict[str, list[float]]:
    """Images a second of lightly, and of featkit in each precision, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        lightly = LOOPS[method](
            config_of(method, workers=workers), source, device=CPU, autocast_dtype=None
        )
        ours = {
            precision: FeatkitLoop(
                config_of(method, workers=workers, precision=precision), source, Path(folder)
            )
            for precision in precisions()
        }
        loops: dict[str, Loop[Any]] = {
            "lightly": lightly,
            **{f"featkit {precision}": loop for precision, loop in ours.items()},
        }
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(ROUNDS):
            for name, loop in loops.items():
                time.sleep(PAUSE_S)
                loop.steps(QUEUED * workers + 1)
                rates[name].append(loop.images_per_s(STEPS))
    return rates


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    torch.set_num_threads(usable_cpus())
    source = open_source(data / "photos")
    figures: dict[str, object] = {}
    for method, target in TARGETS.items():
        best: dict[str, float] = {}
        for workers in WORKERS:
            rates = measure(method, source, workers=workers)
            for name, values in rates.items():
                figures[f"{method}, {name}, {workers} workers, images/s"] = [
                    round(value, 1) for value in values
                ]
                best[name] = max(best.get(name, 0.0), statistics.median(values))
                if name != "lightly":
                    ratio = round(median_ratio(values, rates["lightly"]), 2)
                    figures[f"{method}, {name}, {workers} workers, median ratio"] = ratio
        for name, value in best.items():
            if name != "lightly":
                figures[f"{method}, {name}, each at its best workers"] = round(
                    value / best["lightly"], 2
                )
        figures[f"{method}, target ratio"] = target
    settings = {"all": list(SETTINGS), **{method: list(of) for method, of in OF_METHOD.items()}}
    write_result("train_speed", {**figures, "settings": settings})


if __name__ == "__main__":
    main()
