"""One command for each method with labels."""

from typing import Annotated, Literal

from cyclopts import Parameter

from featkit.cli.train.courses import run_course
from featkit.cli.train.flags import ClusterFlags, LabelFlags, TrainFlags
from featkit.cli.train.methods import Data
from featkit.errors import InputError

Images = Annotated[list[str], Parameter(consume_multiple=True, negative=())]


def born_again(
    data: Data,
    /,
    *,
    generations: int | None = None,
    patience: int | None = None,
    mode: Literal["kd", "cwtm", "dkpp"] | None = None,
    temperature: float | None = None,
    student: str | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a network, then students of the same architecture, each taught by the one before (arXiv
    1805.04770).

    Use it for labeled images, to get a better network of the same size, or an ensemble. One command
    runs all trainings.

    Example: featkit train born-again images/ --out run/ --generations 3

    Parameters
    ----------
    data
        Images to learn from; see `featkit train dino`. Their labels are a column, or the subfolders
        they are in.
    generations
        Students after the first network. Default: 3.
    patience
        End after this many generations in a row that do not beat their teachers beyond noise.
        Default: 1.
    mode
        What a student learns besides the labels: the teacher's distribution (kd), only the labels
        weighted by the teacher's confidence (cwtm), or the distribution with all but its maximum
        permuted (dkpp). Default: kd.
    temperature
        Temperature of the teacher's and the student's distributions. Default: 1.
    student
        Another architecture for the students, such as timm:resnet34. Default: the first network's.
    """
    settings = {
        "born_again.generations": generations,
        "born_again.patience": patience,
        "knowledge.mode": mode,
        "knowledge.temperature": temperature,
        "born_again.student": None if student is None else {"arch": student},
    }
    run_course("born-again", [data], flags, own, cluster, settings)


def self_training(
    *,
    labeled: Annotated[Images, Parameter(name=("--labeled", "--labelled"))],
    unlabeled: Annotated[Images, Parameter(name=("--unlabeled", "--unlabelled"))],
    rounds: int | None = None,
    patience: int | None = None,
    confidence: float | None = None,
    pseudo: Literal["soft", "hard"] | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a teacher on labels, let it label other images, and train students on both (arXiv
    1911.04252).

    Use it for few labeled images and many unlabeled ones of the same kinds. If the unlabeled images
    have labels, those are ignored.

    Example: featkit train self-training --labeled sorted/ --unlabeled unsorted/ --out run/

    Parameters
    ----------
    labeled
        Images with labels, one or several of what `featkit train dino` takes.
    unlabeled
        Images without labels, one or several.
    rounds
        Students after the teacher. Default: 2.
    patience
        End after this many rounds in a row that do not beat their teachers beyond noise. Default:
        1.
    confidence
        Smallest probability of the teacher's best class for an image to be used. Default: 0.3.
    pseudo
        Let a student learn the teacher's distribution (soft, the default) or its best class (hard).
    """
    settings = {
        "self_training.rounds": rounds,
        "self_training.patience": patience,
        "self_training.confidence": confidence,
        "self_training.pseudo": pseudo,
    }
    run_course("self-training", [labeled, unlabeled], flags, own, cluster, settings)


def internal(
    data: Data,
    /,
    *,
    exits: str | None = None,
    flags: TrainFlags,
    own: LabelFlags | None = None,
    cluster: ClusterFlags | None = None,
) -> None:
    """Train a network with exits, the shallow ones taught by the deepest (Be Your Own Teacher,
    arXiv 1905.08094).

    Use it for labeled images when speed matters: the model can stop at any exit (`featkit export
    run/ --exit 2`), and the table shows the speed and the accuracy of each.

    Example: featkit train internal images/ --out run/ --exits 1,2

    Parameters
    ----------
    data
        Images to learn from; see `featkit train born-again`.
    exits
        Stages of a CNN, or blocks of a ViT, that get an exit besides the deepest, such as 1,2,3.
        Default: the recipe's.
    """
    run_course("internal", [data], flags, own, cluster, {"classifier.exits": _parse_exits(exits)})


def _parse_exits(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise InputError(f"--exits {text} is not a list of stages; write it as 1,2,3.") from error
