"""Compare training on a GPU with plain loops of lightly's parts in bfloat16 autocast.

The models are DINO ViT-S/16 and DINOv2 ViT-L/14 in bfloat16. Measured are images per second with
and without data loading, the share of the chip's matrix rate (operations needed / time / peak),
time spent waiting for data, and peak memory. featkit runs with and without torch.compile, and the
faster counts. Loops take turns at one batch size, which is halved until it fits all of them.
Without a folder of images, drawn ones of 500 × 375 pixels are used.
Run: python tests/benchmarks/bench_gpu.py [--images FOLDER] [--batch N]
(--cpu-check tries the code on a CPU, in seconds)
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit.sources import Source, open_source
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.settings import parse_settings
from tests.benchmarks.flops import chip_peak, count_flops, square_rate
from tests.benchmarks.lightly_loops import LOOPS
from tests.benchmarks.loops import FeatkitLoop, Loop
from tests.benchmarks.record import markdown_table, write_result
from tests.images import draw_folder

TARGET_RATIO, TARGET_SHARE = 2.0, {"DINOv2 ViT-L/14": 0.45}
LIGHTLY, EAGER, COMPILED = "lightly", "featkit", "featkit compiled"


class Work(NamedTuple):
    """A method with its recipe, and the images of a step to begin with."""

    method: str
    recipe: str
    batch: int


class Effort(NamedTuple):
    """How much is measured. settings: what makes a recipe small enough to try."""

    warm_steps: int
    steps: int
    rounds: int
    num_images: int  # to draw
    square: int  # side of the product that gives the rate of an unknown chip
    workers: int
    settings: Mapping[str, Sequence[str]]


WORKS = {
    "DINO ViT-S/16": Work("dino", "dino_vits16", 256),
    "DINOv2 ViT-L/14": Work("dinov2", "dinov2_vitl14", 64),
}
WHOLE = Effort(
    warm_steps=6,
    steps=10,
    rounds=3,
    num_images=2000,
    square=8192,
    workers=usable_cpus(),
    settings={},
)
SMALL = (
    *(
        "model.width=24",
        "model.num_heads=2",
        "model.depth=2",
        "model.mlp_width=48",
        "model.patch=8",
        "model.position_grid=8",
    ),
    *("crops.global_size=64", "crops.local_size=32", "crops.num_local=2"),
    "dino.head={num_prototypes: 16, hidden_width: 32, bottleneck_width: 16}",
)
SMALL_PATCHES = "ibot.head={num_prototypes: 12, hidden_width: 32, bottleneck_width: 8}"
TRIED = Effort(
    warm_steps=1,
    steps=1,
    rounds=1,
    num_images=16,
    square=256,
    workers=0,
    settings={"dino": SMALL, "dinov2": (*SMALL, SMALL_PATCHES)},
)


def config_of(
    work: Work, effort: Effort, *, batch: int, device: torch.device, compiled: bool
) -> TrainConfig:
    """The recipe on one device at this batch."""
    settings = [
        *(
            f"run.batch_size={batch}",
            f"run.workers={effort.workers}",
            f"run.device={device.type}",
            "run.precision=bfloat16",
        ),
        *("run.held_out=0", "engine.shard=false", f"engine.compile={str(compiled).lower()}"),
        *effort.settings.get(work.method, ()),
    ]
    return configure(work.method, work.recipe, parse_settings(settings))


@dataclass
class Measured:
    """Figures of one loop: images per second and waiting share of each round, and peak memory."""

    with_data: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def row(self, name: str, flops_a_image: float, peaks: Mapping[str, float]) -> dict[str, Any]:
        """Return the medians as a row of a table."""
        with_data, alone = statistics.median(self.with_data), statistics.median(self.alone)
        shares = {
            f"share of the {peak} rate": round(alone * flops_a_image / rate, 3)
            for peak, rate in peaks.items()
        }
        return {
            "loop": name,
            "images/s": round(with_data, 1),
            "images/s of the step alone": round(alone, 1),
            **shares,
            "waiting for data": round(statistics.median(self.waiting), 3),
            "peak memory, GB": round(self.peak_bytes / 1e9, 2),
        }


def make_loop(
    name: str,
    work: Work,
    effort: Effort,
    source: Source,
    *,
    batch: int,
    device: torch.device,
    out: Path,
) -> Loop[Any]:
    """A loop by its name."""
    config = config_of(work, effort, batch=batch, device=device, compiled=name == COMPILED)
    if name == LIGHTLY:
        return LOOPS[work.method](config, source, device=device, autocast_dtype=torch.bfloat16)
    return FeatkitLoop(config, source, out)


def warm(loop: Loop[Any], *, steps: int, before: int) -> int:
    """Steps to compile and to fill queues; bytes that the loop had at most, beyond the `before` of
    others."""
    on_gpu = loop.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(loop.device)
    loop.steps(steps)
    return torch.cuda.max_memory_allocated(loop.device) - before if on_gpu else 0


def measure(
    work: Work, effort: Effort, source: Source, *, batch: int, device: torch.device
) -> tuple[dict[str, Measured], float]:
    """Every loop at this batch, in turn, and the operations that an image needs. OutOfMemoryError
    where it does not fit."""
    names = [
        EAGER,
        *([COMPILED] if device.type == "cuda" else []),
        *([LIGHTLY] if has_lightly() else []),
    ]
    loops: dict[str, Loop[Any]] = {}
    measured = {name: Measured() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            loops[name] = make_loop(
                name, work, effort, source, batch=batch, device=device, out=Path(folder)
            )
            # at such sizes threads only cost time, above all on a busy machine
            if device.type == "cpu":
                torch.set_num_threads(1)
            measured[name].peak_bytes = warm(loops[name], steps=effort.warm_steps, before=before)
            free(device)
        held = {name: loop.next() for name, loop in loops.items()}
        flops = count_flops(lambda: loops[EAGER].step(held[EAGER])) / batch
        for _ in range(effort.rounds):
            for name, loop in loops.items():
                free(device)
                loop.steps(2)  # its queue was filled while others ran
                measured[name].alone.append(loop.images_per_s_on(held[name], effort.steps))
                rate, share = rate_with_data(loop, effort.steps)
                measured[name].with_data.append(rate)
                measured[name].waiting.append(share)
    return measured, flops


def rate_with_data(loop: Loop[Any], steps: int) -> tuple[float, float]:
    """Images a second of twice the steps after as many that empty the queue, and the share of
    their time spent waiting."""
    loop.steps(steps)
    loop.waited_s = 0.0
    rate = loop.images_per_s(2 * steps)
    return rate, loop.waited_s * rate / (2 * steps * loop.images)


def free(device: torch.device) -> None:
    """Give back what the allocator keeps of the last loop."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def has_lightly() -> bool:
    """Return whether lightly is installed to compare with."""
    return importlib.util.find_spec("lightly") is not None


def measure_what_fits(
    work: Work, effort: Effort, source: Source, *, batch: int, device: torch.device
) -> dict[str, Any]:
    """The measurement at the largest of batch, batch / 2, ... at which every loop fits."""
    while True:
        try:
            measured, flops = measure(work, effort, source, batch=batch, device=device)
        except torch.OutOfMemoryError:
            if batch < 4:
                raise
        else:
            return {"batch": batch, "measured": measured, "flops": flops}
        batch //= 2  # outside of the handler, which would hold on to what did not fit
        free(device)
        print(f"out of memory; trying {batch} images per step", flush=True)


def report(name: str, found: Mapping[str, Any], peaks: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one method, printed as a table."""
    measured: dict[str, Measured] = found["measured"]
    rows = [each.row(loop, found["flops"], peaks) for loop, each in measured.items()]
    print(
        f"\n{name}, {found['batch']} images per step, {found['flops'] / 1e9:.3g} GFLOP an image\n"
        + markdown_table(rows)
    )
    best = max(
        (loop for loop in measured if loop != LIGHTLY),
        key=lambda loop: statistics.median(measured[loop].alone),
    )
    figures: dict[str, Any] = {
        "images per step": found["batch"],
        "GFLOP an image": float(f"{found['flops'] / 1e9:.4g}"),
        "loops": rows,
        "rounds": {
            loop: {"with data": each.with_data, "alone": each.alone}
            for loop, each in measured.items()
        },
        "the better of featkit": best,
    }
    if LIGHTLY in measured:
        for kind in ("with_data", "alone"):
            pairs = zip(
                getattr(measured[best], kind), getattr(measured[LIGHTLY], kind), strict=True
            )
            figures[f"median ratio to lightly, {kind.replace('_', ' ')}"] = round(
                statistics.median(a / b for a, b in pairs), 2
            )
        figures["target ratio"] = TARGET_RATIO
    if name in TARGET_SHARE:
        figures["target share of the peak"] = TARGET_SHARE[name]
    return figures


def peaks_of(device: torch.device, effort: Effort) -> tuple[str, dict[str, float]]:
    """The chip's name and its matrix rates in bfloat16: the data sheet's where it is known, and
    that of one large product."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = chip_peak(name)
    measured = square_rate(effort.square, device=device, dtype=torch.bfloat16)
    return name, {**({"data sheet's": known} if known is not None else {}), "measured": measured}


def run(
    effort: Effort, *, device: torch.device, image_folder: Path | None, batch: int | None
) -> dict[str, Any]:
    """All figures."""
    started = time.perf_counter()
    chip, peaks = peaks_of(device, effort)
    figures: dict[str, Any] = {
        "chip": chip,
        "matrix rates, TFLOP/s": {name: round(rate / 1e12, 2) for name, rate in peaks.items()},
    }
    if not has_lightly():
        print("lightly is not installed, so featkit runs alone.")
    with tempfile.TemporaryDirectory() as folder:
        drawn = image_folder is None
        where = (
            draw_folder(Path(folder), effort.num_images, height=375, width=500)
            if image_folder is None
            else image_folder
        )
        source = open_source(where)
        figures["images"] = f"{len(source):,} {'drawn' if drawn else 'of a folder'}"
        for name, work in WORKS.items():
            found = measure_what_fits(
                work, effort, source, batch=batch or work.batch, device=device
            )
            figures[name] = report(name, found, peaks)
    figures["minutes"] = round((time.perf_counter() - started) / 60, 1)
    return figures


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and record, under the chip's name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a folder, a list or anything featkit opens")
    parser.add_argument("--batch", type=int, help="images per step to begin with")
    parser.add_argument(
        "--cpu-check",
        action="store_true",
        help="try the path on a CPU, by tiny sizes; writes nothing",
    )
    asked = parser.parse_args(arguments)
    if asked.cpu_check:
        threads = torch.get_num_threads()
        figures = run(
            TRIED,
            device=torch.device("cpu"),
            image_folder=asked.images,
            batch=asked.batch or 4,
        )
        torch.set_num_threads(threads)
        write_result("gpu", figures, keep=False)
        return figures
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --cpu-check tries the path without one.")
    figures = run(
        WHOLE, device=torch.device("cuda", 0), image_folder=asked.images, batch=asked.batch
    )
    slug = re.sub("[^a-z0-9]+", "_", figures["chip"].lower()).strip("_")
    write_result(f"gpu_{slug}", figures)
    return figures


if __name__ == "__main__":
    main()
