"""Break down the time of a training step and compare it with the machine's matrix rate.

The tiny recipe at depth 6 and 100 images per step: width 192, patch 8, two crops of 64 pixels. The
matrix rate is that of the fastest product in the step. Each product is measured alone, with its own
size, dtype and layout, in turn with the step.
Run: python tests/benchmarks/bench_step_cost.py [--quick]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit.sources import Source, open_source
from featkit_train.configure import configure
from featkit_train.images.crops import Crops
from featkit_train.processes.device import pick_autocast
from featkit_train.settings import parse_settings
from tests.benchmarks.flops import ProductsOf, Rate, best_rate, count_flops, measure_products
from tests.benchmarks.loops import FeatkitLoop
from tests.benchmarks.parts import Clock, clocked, shares_of_operators
from tests.benchmarks.record import is_quick, markdown_table, write_result
from tests.data import shared_data

BATCH = 4 if is_quick() else 100
STEPS, ROUNDS, PAUSE_S = (1, 1, 0.0) if is_quick() else (4, 5, 5.0)
WARM_STEPS = 1 if is_quick() else 6  # the first pass over 600 photographs fills the cache
QUEUED = 0 if is_quick() else 5  # batches that are ready by then and would cost nothing
SETTINGS = ("model.depth=6", f"run.batch_size={BATCH}", "run.held_out=0", "run.device=cpu")
TARGET = 0.7
WAITING = "waiting for data"
CPU = torch.device("cpu")


def measure(source: Source, precision: str, folder: Path) -> dict[str, Any]:
    """All figures of one precision."""
    loop = FeatkitLoop(
        configure("dino", "tiny", parse_settings([*SETTINGS, f"run.precision={precision}"])),
        source,
        folder,
    )
    loop.steps(WARM_STEPS)
    batch = loop.next()
    flops = count_flops(lambda: loop.step(batch))
    with ProductsOf() as products:
        loop.step(batch)
    whole: list[float] = []
    alone: list[float] = []
    rates: list[list[Rate]] = []
    for _ in range(ROUNDS):
        loop.steps(QUEUED)
        whole.append(BATCH / loop.images_per_s(STEPS))
        time.sleep(PAUSE_S)  # the worker fills its queue and rests
        alone.append(BATCH / loop.images_per_s_on(batch, STEPS))
        rates.append(measure_products(products.counts, repeats=1 if is_quick() else 3))
    parts = seconds_of_parts(loop, rounds=ROUNDS * STEPS)
    by_kind, operators = shares_of_operators(lambda: loop.step(batch))
    return {
        "precision": "float32" if pick_autocast(precision, CPU) is None else "bfloat16",
        "GFLOP a step": round(flops / 1e9, 1),
        "matrix rate, GFLOP/s": [round(best_rate(each) / 1e9, 1) for each in rates],
        **against_the_rate("step with data", whole, flops, rates),
        **against_the_rate("step alone", alone, flops, rates),
        **products_alone(flops, alone, rates),
        "seconds of a step's parts": {name: round(value, 4) for name, value in parts.items()},
        "shares of a step's parts": {
            name: round(value / sum(parts.values()), 3) for name, value in parts.items()
        },
        "shares of operators, step alone": {
            name: round(value, 3) for name, value in by_kind.items()
        },
        "largest operators": {name: round(value, 3) for name, value in operators.items()},
        "heaviest products": [
            {
                "product": rate.product.shape,
                "a step": rate.times,
                "GFLOP/s": round(rate.flops_per_s / 1e9, 1),
            }
            for rate in rates[-1][:12]
        ],
    }


def seconds_of_parts(loop: FeatkitLoop, *, rounds: int) -> dict[str, float]:
    """Return the seconds of a step with its data, averaged over several."""
    clock = Clock(CPU)
    loop.steps(QUEUED)
    with clocked(loop.engine, clock):
        for _ in range(rounds):
            with clock.part(WAITING):
                batch: Crops = loop.next()
            loop.step(batch)
    parts = sorted(clock.seconds.items(), key=lambda pair: -pair[1])
    return {name: value / rounds for name, value in parts}


def against_the_rate(
    name: str, seconds: list[float], flops: int, rates: list[list[Rate]]
) -> dict[str, Any]:
    """Images a second as they are and as the matrix rate would allow, and the median share of the
    one in the other."""
    possible = [flops / best_rate(each) for each in rates]
    shares = [could / did for could, did in zip(possible, seconds, strict=True)]
    return {
        f"{name}, images/s": [round(BATCH / value, 1) for value in seconds],
        f"{name}, images/s at the matrix rate": [round(BATCH / value, 1) for value in possible],
        f"{name}, share of the matrix rate": round(statistics.median(shares), 3),
    }


def products_alone(flops: int, seconds: list[float], rates: list[list[Rate]]) -> dict[str, Any]:
    """Split a step into its products, at the matrix rate and at their own, and everything else."""
    own = statistics.median(sum(rate.times * rate.seconds for rate in each) for each in rates)
    best = statistics.median(flops / best_rate(each) for each in rates)
    step = statistics.median(seconds)
    return {
        "seconds of a step alone": round(step, 4),
        "seconds of its products at the matrix rate": round(best, 4),
        "seconds of its products, each at its own rate": round(own, 4),
        "seconds of all else": round(step - own, 4),
    }


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    torch.set_num_threads(usable_cpus())
    source = open_source(data / "photos")
    figures: dict[str, Any] = {
        "settings": list(SETTINGS),
        "target share of the matrix rate": TARGET,
    }
    started = time.perf_counter()
    for precision in ("float32",) if pick_autocast("auto", CPU) is None else ("auto", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            found = measure(source, precision, Path(folder))
        name = found.pop("precision")
        parts, shares = found["seconds of a step's parts"], found["shares of a step's parts"]
        print(
            f"\n{name}\n"
            + markdown_table(
                [{"part": part, "s": parts[part], "share": shares[part]} for part in parts]
            )
        )
        print("\n" + markdown_table(found["heaviest products"]) + "\n")
        figures |= {f"{name}: {figure}": value for figure, value in found.items()}
    write_result(
        "step_cost", {**figures, "minutes": round((time.perf_counter() - started) / 60, 1)}
    )


if __name__ == "__main__":
    main()
