"""`featkit evaluate linear`: what a linear classifier on frozen features tells apart."""

from dataclasses import asdict
from pathlib import Path

from featkit.cli.console import ProgressReporter, print_json, print_table
from featkit.cli.evaluate.common import figure, interval, labels_from, open_two, print_failures, say
from featkit.cli.evaluated_model import open_model
from featkit.cli.selecting import SelectionFlags
from featkit.extras import need_extra
from featkit.wording import counted


def linear(
    train: Path,
    test: Path,
    /,
    *,
    model: Path | None = None,
    label: str = "label",
    seed: int = 0,
    limit: int | None = None,
    quiet: bool = False,
    json_: bool = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure how well a linear classifier of TRAIN's labels, on the model's frozen features, does
    on TEST.

    Multinomial logistic regression on standardized features. Its L2 regularization is chosen on a
    fifth of TRAIN that is held out for that, and it is then fitted to all of TRAIN. The same on raw
    pixels stands beside the model.

    Example: featkit evaluate linear train.tar test.parquet --model m.onnx

    Parameters
    ----------
    train
        The labeled images to learn from: a folder, a .tar, a .parquet, or whatever else `featkit embed` takes.
    test
        The labeled images to classify.
    model
        A model file, or a run folder of `featkit train`, computed in torch; by default featkit-tiny, which ships with featkit.
    label
        The column with the labels, in both; `label` also means a tar's .cls members, or the folder that an image lies in.
    seed
        Of which images of TRAIN are held out.
    limit
        Only so many images of each part, spread evenly over it.
    quiet
        Show no progress.
    json_
        Print the figures as JSON.
    """
    need_extra("evaluate", "sklearn")
    opened = open_model(model)
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
        f"Labels: {labels_from(report.columns)}. Features are standardized by the training part.",
        "Fitted: the least of mean cross-entropy + l2 / 2 * sum of squared weights, with the l2"
        " that held-out images chose.",
        *(
            [f"Labels that no training image has: {counted(report.num_unseen, 'test image')}."]
            if report.num_unseen
            else []
        ),
        *(
            [f"Not at its end after {MAX_ITERATIONS:,} steps: {', '.join(unfinished)}."]
            if unfinished
            else []
        ),
    )
    print_failures(report.failures)
