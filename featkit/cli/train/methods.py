"""The methods with a momentum teacher as commands: what each is for, and the settings that only it
has."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from featkit.cli.train.flags import ClusterFlags, TeacherFlags, TrainFlags
from featkit.cli.train.running import run
from featkit_train.method_list import MethodCard

Data = Annotated[list[str], Parameter(consume_multiple=True)]


def dino(
    data: Data,
    /,
    *,
    flags: TrainFlags,
    own: TeacherFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train by DINO (arXiv 2104.14294): a student matches its own momentum teacher across crops of
    an image.

    The one to begin with: it learns from a few hundred images, and needs the least of a machine.
    No labels are needed.

    Example: featkit train dino images/ --out run/ --steps 300

    Parameters
    ----------
    data
        Where the images are: folders, tar shards, Parquet files, lists of paths, Hugging Face data sets on disk or as
        hf:NAME, torchvision:NAME; one or several.
    """
    run("dino", data, flags, own, cluster)


def ibot(
    data: Data,
    /,
    *,
    flags: TrainFlags,
    own: TeacherFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train by iBOT (arXiv 2111.07832): DINO, and the student fills in patches that it could not
    see.

    For patch tokens that mean something: segmentation, retrieval of parts. Takes more images than
    DINO before it pays.

    Example: featkit train ibot images/ --out run/ --recipe small --steps 2000

    Parameters
    ----------
    data
        Where the images are; see `featkit train dino`.
    """
    run("ibot", data, flags, own, cluster)


def dinov2(
    data: Data,
    /,
    *,
    flags: TrainFlags,
    own: TeacherFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train by DINOv2 (arXiv 2304.07193): DINO's and iBOT's losses with heads of their own,
    Sinkhorn-Knopp and KoLeo.

    Example: featkit train dinov2 shards/ --out run/ --recipe dinov2_vitl14 --slurm --nodes 4

    Parameters
    ----------
    data
        Where the images are; see `featkit train dino`.
    """
    run("dinov2", data, flags, own, cluster)


def dinov3(
    data: Data,
    /,
    *,
    flags: TrainFlags,
    own: TeacherFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train by DINOv3 (arXiv 2508.10104): DINOv2 over rotary positions, and Gram anchoring in a
    later stage.

    Example: featkit train dinov3 shards/ --out gram/ --recipe dinov3_vitl16_gram --init run/

    Parameters
    ----------
    data
        Where the images are; see `featkit train dino`.
    """
    run("dinov3", data, flags, own, cluster)


def distill(
    data: Data,
    /,
    *,
    teacher: str | None = None,
    weights: Path | None = None,
    flags: TrainFlags,
    own: TeacherFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a small student by a larger frozen teacher, as DINOv2's small models were made (arXiv
    2304.07193, section 5).

    The fastest way to a good small model where a large one that knows your kind of images is
    published.

    Example: featkit train distill images/ --teacher dinov2_vitb14 --out run/ --recipe
    dinov2_vits14_distill

    Parameters
    ----------
    data
        Where the images are; see `featkit train dino`.
    teacher
        What to learn from: a published name (`featkit export --help` tells where they are), timm:NAME, a folder of Hugging
        Face's or of a run.
    weights
        The teacher's weights as a file or folder, instead of the hub.
    """
    run(
        "distill",
        data,
        flags,
        own,
        cluster,
        {
            "pretrained.name": teacher,
            "pretrained.weights": str(weights) if weights is not None else None,
        },
    )


def adapt(
    data: Data,
    /,
    *,
    model: str | None = None,
    weights: Path | None = None,
    flags: TrainFlags,
    own: TeacherFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Go on from published weights on your own images: new heads first, then everything at a low
    rate.

    The run ends and takes the best model back when copies, or neighbors of one label, are found
    less often than before.

    Example: featkit train adapt images/ --model dinov2_vits14 --out run/

    Parameters
    ----------
    data
        Where the images are; see `featkit train dino`.
    model
        What to go on from: a published name, or a folder of Hugging Face's or of a run.
    weights
        Its weights as a file or folder, instead of the hub.
    """
    run(
        "adapt",
        data,
        flags,
        own,
        cluster,
        {
            "pretrained.name": model,
            "pretrained.weights": str(weights) if weights is not None else None,
        },
    )


def command_for(card: MethodCard) -> Callable[..., None]:
    """Return the command of a method without labels and without flags of its own."""

    def command(
        data: Data,
        /,
        *,
        flags: TrainFlags,
        own: TeacherFlags | None = None,
        cluster: ClusterFlags | None = None,
    ) -> None:
        run(card.name, data, flags, own, cluster)

    command.__doc__ = f"""Train by {card.title} ({card.paper}).

    Use it for {card.when}.

    Example: featkit train {card.name} images/ --out run/

    Parameters
    ----------
    data
        Where the images are; see `featkit train dino`.
    """
    return command
