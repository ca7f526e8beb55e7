"""The flags that all training methods share; the string under each is its --help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from featkit.cli.selecting import SelectionFlags

# The setting that each flag changes.
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
Repeated = Annotated[list[str] | None, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Flags of every method."""

    out: Path
    """Folder of the run: config, metrics, checkpoints, backbone.safetensors and report.html."""

    recipe: str | None = None
    """A shipped recipe or a YAML file; flags override it. Default: `tiny`; `adapt_dinov2` for
    adapt; `small_labeled` for methods with labels."""

    name: str | None = None
    """Name of the model, stored in its file and its indexes. Default: `backbone`."""

    held_out: str | None = None
    """Images to measure on while training. Default: a share of DATA, which is then not trained
    on."""

    steps: int | None = None
    """Optimization steps of each training."""

    batch_size: int | None = None
    """Images per step, over all processes."""

    lr: float | None = None
    """Learning rate after warmup."""

    seed: int | None = None
    """Seed of all randomness."""

    workers: int | None = None
    """Processes that read and crop images."""

    device: str | None = None
    """auto, cpu or cuda."""

    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None
    """Any other setting as section.key=value, such as --set crops.num_local=4; repeatable.
`featkit train --settings` lists them."""

    resume: bool = False
    """Continue from the newest checkpoint in OUT."""

    quiet: bool = False
    """Print nothing but the result."""

    select: SelectionFlags | None = None
    """Files of the data to use."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """Flags of the methods with a momentum teacher."""

    init: Path | None = None
    """Folder of an earlier run to start from: its student, teacher and heads."""

    momentum: float | None = None
    """Share of the teacher's weights that each step keeps. Default: by the number of steps, 0.9 up
    to 4,000 and 0.996 from 100,000."""

    prototypes: int | None = None
    """Outputs of the projection head; 256 to 512 suit a few hundred images."""

    on_collapse: Literal["stop", "warn"] | None = None
    """What to do when outputs no longer distinguish images. Default: stop."""

    sweep: Repeated = None
    """Run short trials of several values of a setting and compare them, such as --sweep
    momentum=0.9,0.99,0.996; repeatable."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LabelFlags:
    """Flags of the methods with labels."""

    arch: str | None = None
    """The classifier: featkit:convnet, timm:NAME or torchvision:NAME, a ViT or a CNN. Default:
    featkit:convnet."""

    label: str | None = None
    """Column of the labels. Default: `label`; in a folder without that column, each image's
    subfolder."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClusterFlags:
    """Flags to run on several machines."""

    slurm: bool = False
    """Print a Slurm script for this command instead of running it: featkit train ... --slurm >
    job.sh."""

    nodes: int = 1
    """Number of machines."""

    gpus_per_node: int = 8
    """Processes on each machine, one for each GPU."""

    time: str = "24:00:00"
    """Time limit of a job. Before it ends, the run is checkpointed and queued again."""

    partition: str | None = None
    """Slurm partition."""
