"""One command for each method with a momentum teacher."""

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
    """Train by DINO (arXiv 2104.14294): a student matches its momentum teacher across crops.

    Start with this method: it learns from a few hundred images, needs no labels, and is the
    cheapest to run.

    Example: featkit train dino images/ --out run/ --steps 300

    Parameters
    ----------
    data
        Images to learn from, one or several of: folders, tar shards, Parquet files, lists of
        paths, Hugging Face data sets on disk or as hf:NAME, torchvision:NAME.
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
    """Train by iBOT (arXiv 2111.07832): DINO, and the student predicts masked patches.

    Use it when patch features matter: segmentation, retrieval of parts. It needs more images than
    DINO to be worth it.

    Example: featkit train ibot images/ --out run/ --recipe small_vit --steps 2000

    Parameters
    ----------
    data
        Images to learn from; see `featkit train dino`.
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
    """Train by DINOv2 (arXiv 2304.07193): DINO's and iBOT's losses with separate heads,
    Sinkhorn-Knopp and KoLeo.

    Example: featkit train dinov2 shards/ --out run/ --recipe dinov2_vitl14 --slurm --nodes 4

    Parameters
    ----------
    data
        Images to learn from; see `featkit train dino`.
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
    """Train by DINOv3 (arXiv 2508.10104): DINOv2 with rotary positions, and Gram anchoring in a
    later stage.

    Example: featkit train dinov3 shards/ --out gram/ --recipe dinov3_vitl16_gram --init run/

    Parameters
    ----------
    data
        Images to learn from; see `featkit train dino`.
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
    """Train a small student on a larger frozen teacher, as DINOv2's small models were made (arXiv
    2304.07193, section 5).

    The fastest way to a good small model if a published large one knows your kind of images.

    Example: featkit train distill images/ --teacher dinov2_vitb14 --out run/ --recipe
    dinov2_vits14_distill

    Parameters
    ----------
    data
        Images to learn from; see `featkit train dino`.
    teacher
        The model to learn from: a published name (see `featkit export --list`), timm:NAME, a
        Hugging Face folder or a run folder.
    weights
        The teacher's weights as a file or folder, instead of downloading them.
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
    """Continue training published weights on your own images: new heads first, then everything at a
    low learning rate.

    If the score on held-out images falls, the run ends and restores the best model.

    Example: featkit train adapt images/ --model dinov2_vits14 --out run/

    Parameters
    ----------
    data
        Images to learn from; see `featkit train dino`.
    model
        The model to start from: a published name, a Hugging Face folder or a run
        folder.
    weights
        Its weights as a file or folder, instead of downloading them.
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
        Images to learn from; see `featkit train dino`.
    """
    return command
