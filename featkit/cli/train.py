"""`featkit train`: a self-distilled backbone from your own pictures."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.extras import need_extra

app = App(name="train", help="Train a self-distilled backbone on your own pictures.")

SHOWN = ("loss", "teacher_entropy", "steps_per_s", "images_per_s", "waiting_share")


@app.command
def dino(
    data: Annotated[list[Path], Parameter(consume_multiple=True)],
    /,
    *,
    out: Path,
    recipe: str = "tiny",
    name: str | None = None,
    held_out: Path | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    prototypes: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Train by DINO (arXiv 2104.14294): a student matches its own momentum teacher across crops of a picture.

    DATA are folders, tar shards, Parquet files or lists of paths, one or several; no labels are needed.

    Example: featkit train dino pictures/ --out run/ --recipe tiny --steps 300

    Parameters
    ----------
    data
        Where the pictures are.
    out
        Folder of the run: config.yaml, metrics.jsonl, TensorBoard events, checkpoints/, backbone.safetensors.
    recipe
        A recipe that ships with featkit, or a YAML file. Flags override it.
    name
        The model's name, which its file and its indexes carry; by default `backbone`.
    held_out
        Pictures to measure copy recall on while training; by default a part of DATA, not trained on.
    steps
        Optimisation steps.
    batch_size
        Pictures a step.
    lr
        Learning rate after the warm-up.
    momentum
        Share of the teacher that a step keeps; near 0.9 for a thousand steps, 0.996 for a hundred thousand.
    prototypes
        Outputs of the projection head; 256 to 512 for a few hundred pictures.
    seed
        Of all randomness.
    workers
        Processes that read and crop pictures.
    device
        auto, cpu or cuda.
    set_
        Any other setting as section.key=value, such as --set crops.num_local=4. Repeat for more.
    resume
        Go on from the newest checkpoint in OUT.
    quiet
        Print nothing but the result.
    """
    need_extra("train", "torch", "safetensors", "yaml", "tensorboard")
    from featkit.sources import open_source
    from featkit_train.config import TrainConfig, from_mapping, read_recipe, with_settings
    from featkit_train.loop import train

    flags = {
        "name": name,
        "run.steps": steps,
        "run.batch_size": batch_size,
        "optim.lr": lr,
        "dino.momentum": momentum,
        "dino.head.num_prototypes": prototypes,
        "run.seed": seed,
        "run.workers": workers,
        "run.device": device,
    }
    settings = [f"{setting}={json.dumps(value)}" for setting, value in flags.items() if value is not None]
    config = from_mapping(TrainConfig, with_settings(read_recipe(recipe), ["method=dino", *settings, *(set_ or [])]))
    sources = [open_source(path) for path in data]
    count = sum(len(source) for source in sources)
    if not quiet:
        print(
            f"{config.name}: ViT of width {config.model.width}, depth {config.model.depth}, patch {config.model.patch} on "
            f"{count:,} pictures, {config.run.steps:,} steps of {config.run.batch_size}.",
            file=sys.stderr,
        )
    with ProgressReporter("training", total=config.run.steps, unit="steps", quiet=quiet) as progress:
        report = train(
            config,
            sources,
            out,
            held_out=open_source(held_out) if held_out is not None else None,
            resume=resume,
            on_log=lambda log: None if quiet else _show(log, progress),
            on_note=lambda note: print(f"featkit: {note}", file=sys.stderr),
        )
    if quiet:
        stdout().print(str(report.backbone))
        return
    rows: list[tuple[str, object]] = [
        ("steps", f"{report.steps:,}"),
        ("time", f"{report.seconds / 60:.1f} min"),
        ("images/s", f"{report.images_per_s:.1f}"),
        ("waiting for data", f"{report.waiting_share:.1%}"),
    ]
    if report.copy_recall is not None:
        rows.append(("copy recall@1, held out", f"{report.copy_recall:.3f}"))
    print_table("Training finished", ("", ""), [*rows, ("backbone", report.backbone)])
    stdout().print(f"Next: featkit export {out} --out {config.name}.onnx")


def _show(log: Mapping[str, Any], progress: ProgressReporter) -> None:
    """One plain line a log entry; the bar, where there is one, stays below."""
    step = int(log["step"])
    progress(step)
    if "copy_recall" in log:
        progress.line(f"step {step:>6,}  copy recall@1 on held-out pictures {log['copy_recall']:.3f}")
    else:
        shown = "  ".join(f"{name} {log[name]:.3f}" for name in SHOWN if name in log)
        progress.line(f"step {step:>6,}  {shown}")
