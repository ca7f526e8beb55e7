"""`featkit evaluate linear`: train a linear classifier on frozen features."""

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
from featkit.extras import need_extra
from featkit.wording import counted


def linear(
    train: Path,
    test: Path,
    /,
    *,
    model: EvaluatedModel = None,
    label: LabelColumn = "label",
    seed: int = 0,
    limit: Limit = None,
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Fit a linear classifier to the model's frozen features of TRAIN, and measure its accuracy on
    TEST.

    The classifier is multinomial logistic regression on standardized features. Its L2
    regularization is chosen on a held-out fifth of TRAIN, then it is fitted to all of TRAIN. Raw
    pixels are measured for comparison.

    Example: featkit evaluate linear train.tar test.parquet --model m.onnx

    Parameters
    ----------
    train
        The labeled images to train on: a folder, a .tar, a .parquet, or anything else that `featkit
        embed` takes.
    test
        The labeled images to classify.
    seed
        Seed that selects the held-out images of TRAIN.
    """
    need_extra("evaluate", "sklearn")
    opened = open_model(model, quiet=quiet or json_)
    from featkit.evaluate.linear import MAX_ITERATIONS, evaluate_linear

    fitted, judged = open_two(train, test, limit=limit, flags=select)
    with ProgressReporter(
        "linear", total=len(fitted) + len(judged), quiet=quiet or json_
    ) as progress:
        report = evaluate_linear(
            fitted,
            judged,
            opened,
            label=label,
            seed=seed,
            on_progress=progress,
            on_step=progress.line,
        )
    if json_:
        print_json(asdict(report))
        return
    rows = [
        (score.name, figure(score.accuracy), interval(score.interval), f"{score.l2:g}")
        for score in report.scores
    ]
    tested = f"{counted(report.num_test, 'image')} of {counted(report.num_labels, 'label')}"
    title = f"{tested} by a classifier fitted to {report.num_train:,}"
    most_frequent = ("most frequent label", figure(report.most_frequent), "", "")
    print_table(title, ("method", "accuracy", "95 % interval", "l2"), [*rows, most_frequent])
    tried = [(score.name, *map(figure, score.held_out)) for score in report.scores]
    title = (
        f"Accuracy on {counted(report.num_held_out, 'training image')} held out (seed"
        f" {report.seed}), by l2"
    )
    print_table(title, ("method", *(f"{l2:g}" for l2 in report.grid)), tried)
    unfinished = [score.name for score in report.scores if not score.converged]
    say(
        f"Labels: {labels_from(report.columns)}. Features are standardized on the training images.",
        "The fit minimizes mean cross-entropy + l2 / 2 * sum of squared weights, with the l2 of the"
        " best held-out accuracy.",
        *note_if(
            report.num_unseen,
            f"Test images whose label is not in the training set: {report.num_unseen:,}.",
        ),
        *note_if(report.num_near_copies, near_copies(report.num_near_copies)),
        *note_if(
            len(unfinished),
            f"Not converged after {MAX_ITERATIONS:,} steps: {', '.join(unfinished)}.",
        ),
    )
    print_failures(report.failures)
