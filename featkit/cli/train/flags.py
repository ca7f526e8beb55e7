"""The flags that every method takes; each docstring is what --help says of its flag."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from featkit.cli.selecting import SelectionFlags

# What the flags are settings of.
SETTINGS = {
    "name": "name",
    "init": "init",
    "steps": "run.steps",
    "batch_size": "run.batch_size",
    "lr": "optim.lr",
    "momentum": "teacher.momentum",
    "prototypes": "dino.head.num_prototypes",
    "seed": "run.seed",
    "workers": "run.workers",
    "device": "run.device",
    "on_collapse": "run.on_collapse",
    "arch": "classifier.arch",
    "label": "labels.column",
}
STRINGS = Annotated[list[str] | None, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What a run is told on the command line."""

    out: Path
    """Folder of the run: what it was told and what it measures, checkpoints, backbone.safetensors,
    report.html."""

    recipe: str | None = None
    """A recipe that ships with featkit, or a YAML file; flags override it. By default `tiny`, for
    adapt `adapt_dinov2`, for methods with labels `small_labeled`."""

    name: str | None = None
    """The model's name, which its file and its indexes carry; by default `backbone`."""

    held_out: str | None = None
    """Images to measure on while training; by default a part of those to learn from, not trained
    on."""

    steps: int | None = None
    """Optimization steps; where trainings follow each other, of each of them."""

    batch_size: int | None = None
    """Images a step, of all processes together."""

    lr: float | None = None
    """Learning rate after the warm-up."""

    seed: int | None = None
    """Of all randomness."""

    workers: int | None = None
    """Processes that read and crop images."""

    device: str | None = None
    """auto, cpu or cuda."""

    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None
    """Any other setting as section.key=value, such as --set crops.num_local=4. Repeat for more."""

    resume: bool = False
    """Go on from the newest checkpoint in OUT."""

    quiet: bool = False
    """Print nothing but the result."""

    select: SelectionFlags | None = None
    """Which files of the images to learn from are wanted."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """What only the methods with a momentum teacher are told."""

    init: Path | None = None
    """The folder of an earlier run to begin from: its student, teacher and heads."""

    momentum: float | None = None
    """Share of the teacher that a step keeps; by default from the number of steps: 0.9 up to 4,000,
    0.996 from 100,000."""

    prototypes: int | None = None
    """Outputs of the projection head; 256 to 512 for a few hundred images."""

    on_collapse: Literal["stop", "warn"] | None = None
    """What to do when outputs no longer tell images apart; by default stop."""

    sweep: STRINGS = None
    """Short trials of one setting's values instead of a run, such as --sweep
    momentum=0.9,0.99,0.996. Repeat for more."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LabelFlags:
    """What only the methods with labels are told."""

    arch: str | None = None
    """The classifier: timm:NAME or torchvision:NAME, a ViT or a CNN; by default timm:resnet18."""

    label: str | None = None
    """Column of the images' labels; by default `label`, and for a folder without one the folder
    that an image lies in."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClusterFlags:
    """Where the run is to be spread over machines."""

    slurm: bool = False
    """Print a script for Slurm that runs this command, instead of running it: featkit train ...
    --slurm > job.sh."""

    nodes: int = 1
    """Machines."""

    gpus_per_node: int = 8
    """Processes a machine, one for each GPU."""

    time: str = "24:00:00"
    """Longest time of a job; the run is checkpointed ahead of it and queued again."""

    partition: str | None = None
    """Slurm's partition."""
