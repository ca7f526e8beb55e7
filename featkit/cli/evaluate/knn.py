"""`featkit evaluate knn`: what images are by their nearest labeled neighbors."""

from dataclasses import asdict
from pathlib import Path

from featkit.cli.console import ProgressReporter, print_json, print_table
from featkit.cli.evaluate.common import figure, interval, labels_from, open_two, print_failures, say
from featkit.cli.evaluated_model import open_model
from featkit.cli.selecting import SelectionFlags
from featkit.errors import InputError
from featkit.wording import counted


def knn(
    train: Path,
    test: Path,
    /,
    *,
    model: Path | None = None,
    label: str = "label",
    k: tuple[int, ...] = (20,),
    temperature: float = 0.07,
    limit: int | None = None,
    quiet: bool = False,
    json_: bool = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure how often the nearest neighbors of a TEST image among the labeled TRAIN images
    say what it is.

    Neighbors vote by exp(cosine / temperature), as DINO's do, and by plain majority. Raw pixels
    are measured beside the model.

    Example: featkit evaluate knn train.tar test.parquet --model m.onnx

    Parameters
    ----------
    train
        The labeled images that are searched: a folder, a .tar, a .parquet, or whatever else `featkit embed` takes.
    test
        The labeled images to classify.
    model
        A model file, or a run folder of `featkit train`, computed in torch; by default featkit-tiny, which ships with featkit.
    label
        The column with the labels, in both; `label` also means a tar's .cls members, or the folder that an image lies in.
    k
        How many neighbors vote; several numbers are several rows: --k 10 --k 20.
    temperature
        Of the weighted vote.
    limit
        Only so many images of each part, spread evenly over it.
    quiet
        Show no progress.
    json_
        Print the figures as JSON.
    """
    if not k or min(k) < 1:
        raise InputError(f"--k is {min(k, default=0)}; it has to be 1 or more.")
    if not temperature > 0:
        raise InputError(f"--temperature is {temperature}; it has to be above 0, such as 0.07.")
    opened = open_model(model)
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
        f"Labels: {labels_from(report.columns)}. A weighted vote counts exp(cosine /"
        f" {report.temperature:g}).",
        *(
            [f"Labels that no training image has: {counted(report.num_unseen, 'test image')}."]
            if report.num_unseen
            else []
        ),
    )
    print_failures(report.failures)
