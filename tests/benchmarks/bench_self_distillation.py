"""Look for what self-distillation gains, and for its pitfalls, in trainings that converge.

Four studies on 38,125 photographs of 275 classes at 48 pixels, with a network of a million weights:

- generations: Born-Again generations 0, 1 and 2, and ensembles, two seeds (about 50 minutes)
- exits: the network with exits against the plain one by equal steps, two seeds (25 minutes, and
  those of generation 0 if it is not trained yet)
- self-training: 20 labels a class, a teacher and its students, two seeds; the share of wrong
  pseudo-labels, and what students make of them with hard ones, without a threshold and without
  noise (30 minutes)
- momentum: DINO with a teacher that keeps from none to all of its weights, by kNN (20 minutes)

The minutes are those of two cores with AVX-512 bf16. Trainings are kept in --room: finished ones
are not repeated, and one that was stopped resumes. Figures are written after each training to
results/self_distillation_STUDY.json. `python -m tests.benchmarks.draw_self_distillation` draws them
and writes their page. With --cpus a process uses only these processors. Two processes with a
processor each learn faster than one with both; give each its own --seeds, since they cannot train
in the same folder.

Run: python tests/benchmarks/bench_self_distillation.py [STUDY ...] [--room FOLDER] [--cpus 0,1]
[--seeds 0,1] [--all-seeds] [--length 1.0] [--images things] [--quick]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from featkit.resources import usable_cpus
from featkit.wording import counted
from tests.benchmarks.labeled import SETTINGS, few_classes
from tests.benchmarks.record import RESULTS, save_result
from tests.benchmarks.studies import STUDIES, Laboratory, Study

ROOM = Path(__file__).parents[2] / "build" / "self-distillation"


def numbers(text: str) -> tuple[int, ...]:
    """Return the whole numbers of a list such as 0,1."""
    return tuple(int(each) for each in text.split(","))


def result_name(study: str, images: str = "things") -> str:
    """Return the name of a study's file of results."""
    suffix = "" if images == "things" else f"_{images.replace('-', '_')}"
    return f"self_distillation_{study.replace('-', '_')}{suffix}"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", choices=[[], *STUDIES], metavar="STUDY")
    parser.add_argument("--room", type=Path, default=ROOM, help="folder of the trainings")
    parser.add_argument("--cpus", type=numbers, help="processors to use, such as 0,1")
    parser.add_argument("--seeds", type=numbers, help="by default those of the images")
    parser.add_argument("--all-seeds", action="store_true", help="also for variants and momenta")
    parser.add_argument("--length", type=float, default=1.0, help="factor of all steps")
    parser.add_argument("--images", choices=[*SETTINGS], default="things")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="try the code in seconds; the figures mean nothing and go to ROOM/results",
    )
    return parser.parse_args(words)


def run(name: str, study: Study, lab: Laboratory, *, images: str, results: Path) -> None:
    """Train what is not finished, and write the figures after each training."""

    def report() -> None:
        save_result(result_name(name, images), study.figures(lab), folder=results)

    print(f"== {name}: about {counted(study.minutes, 'minute')} on two cores", flush=True)
    study.train(lab, report)
    report()
    print(f"== {name}: figures in {results / result_name(name, images)}.json", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Run the studies."""
    options = parse(words)
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    torch.set_num_threads(usable_cpus())
    setting = SETTINGS[options.images]
    images = setting.open()
    room = options.room / (f"{options.images}-quick" if options.quick else options.images)
    room.mkdir(parents=True, exist_ok=True)
    lab = Laboratory(
        setting=setting,
        images=few_classes(images) if options.quick else images,
        room=room,
        seeds=options.seeds or setting.seeds,
        length=options.length,
        all_seeds=options.all_seeds,
        quick=options.quick,
    )
    results = options.room / "results" if options.quick else RESULTS
    for name in options.studies or STUDIES:
        run(name, STUDIES[name], lab, images=options.images, results=results)


if __name__ == "__main__":
    main()
