"""`featkit evaluate knn`: classify images by their nearest labeled neighbors."""

from dataclasses import asdict
from pathlib import Path

from featkit.cli.console import ProgressReporter, print_json, print_table
from featkit.cli.evaluate.common import (
    figure,
    interval,
    labels_from,
    near_copies,
    note_if,
    open_two,
    print_failures,
    say,
)
from featkit.cli.evaluated_model import open_model
from featkit.cli.options import AsJson, EvaluatedModel, LabelColumn, Limit, Quiet
from featkit.cli.selecting import SelectionFlags
from featkit.errors import InputError
from featkit.wording import counted


def knn(
    train: Path,
    test: Path,
    /,
    *,
    model: EvaluatedModel = None,
    label: LabelColumn = "label",
    k: tuple[int, ...] = (20,),
    temperature: float = 0.07,
    limit: Limit = None,
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure how often the nearest neighbors of a TEST image among the TRAIN images give its
    label.

    Neighbors vote with the weight exp(cosine / temperature), as in DINO's evaluation, and by plain
    majority. Raw pixels are measured for comparison.

    Example: featkit evaluate knn train.tar test.parquet --model m.onnx

    Parameters
    ----------
    train
        The labeled images to search: a folder, a .tar, a .parquet, or anything else that `featkit
        embed` takes.
    test
        The labeled images to classify.
    k
        How many neighbors vote. Repeat the option to compare several: --k 10 --k 20.
    temperature
        Temperature of the weighted vote.
    """
    if not k or min(k) < 1:
        raise InputError(f"--k is {min(k, default=0)}; it has to be 1 or more.")
    if not temperature > 0:
        raise InputError(f"--temperature is {temperature}; it has to be above 0, such as 0.07.")
    opened = open_model(model, quiet=quiet or json_)
    from featkit.evaluate.knn import evaluate_knn

    gallery, queries = open_two(train, test, limit=limit, flags=select)
    with ProgressReporter(
        "knn", total=len(gallery) + len(queries), quiet=quiet or json_
    ) as progress:
        report = evaluate_knn(
            gallery,
            queries,
            opened,
            label=label,
            ks=k,
            temperature=temperature,
            on_progress=progress,
        )
    if json_:
        print_json(asdict(report))
        return
    rows = [
        (
            score.name,
            str(score.k),
            figure(score.weighted),
            interval(score.interval),
            figure(score.majority),
        )
        for score in report.scores
    ]
    tested = f"{counted(report.num_test, 'image')} of {counted(report.num_labels, 'label')}"
    title = f"{tested} by neighbors among {report.num_train:,}"
    most_frequent = ("most frequent label", "", figure(report.most_frequent), "", "")
    print_table(
        title, ("method", "k", "weighted", "95 % interval", "majority"), [*rows, most_frequent]
    )
    say(
        f"Labels: {labels_from(report.columns)}. The weight of a vote is exp(cosine /"
        f" {report.temperature:g}).",
        *note_if(
            report.num_unseen,
            f"Test images whose label is not in the training set: {report.num_unseen:,}.",
        ),
        *note_if(report.num_near_copies, near_copies(report.num_near_copies)),
    )
    print_failures(report.failures)
