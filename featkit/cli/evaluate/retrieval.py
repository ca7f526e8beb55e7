"""`featkit evaluate retrieval`: whether images of one group, or of one landmark, find each other."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featkit.cli.console import ProgressReporter, print_json, print_table
from featkit.cli.evaluate.common import (
    figure,
    interval,
    open_images,
    open_two,
    print_failures,
    say,
)
from featkit.cli.evaluated_model import open_model
from featkit.cli.selecting import SelectionFlags
from featkit.errors import InputError
from featkit.wording import counted

if TYPE_CHECKING:
    from featkit.evaluate.embedding import ImageModel
    from featkit.evaluate.groups import GroupReport
    from featkit.evaluate.revisited import RevisitedReport
    from featkit.sources import Source


def retrieval(
    photos: Path,
    /,
    *,
    group: str | None = None,
    queries: Path | None = None,
    protocol: Literal["group", "revisited"] = "group",
    ground_truth: Path | None = None,
    model: Path | None = None,
    limit: int | None = None,
    quiet: bool = False,
    json_: bool = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure whether the PHOTOS of a query's own group are found first: mean average precision and
    recall@k.

    Every image queries all the others; with --queries, those images query PHOTOS. With
    --protocol revisited it is the protocol of ROxford and RParis instead (arXiv 1803.11285): Easy,
    Medium and Hard, junk ignored, queries cropped.

    Example: featkit evaluate retrieval photos/ --group folder --model m.onnx

    Parameters
    ----------
    photos
        A folder of images, a .tar, a .parquet, or whatever else `featkit embed` takes.
    group
        The column whose value images of one group share, such as folder.
    queries
        Other images, with the same column, to query by.
    protocol
        group, or revisited.
    ground_truth
        For revisited: gnd_roxford5k.pkl, gnd_rparis6k.pkl, or the same as .json.
    model
        A model file, or a run folder of `featkit train`, computed in torch; by default featkit-tiny, which ships with featkit.
    limit
        Only so many images of each source, spread evenly over it.
    quiet
        Show no progress.
    json_
        Print the figures as JSON.
    """
    revisited = protocol == "revisited"
    if revisited != (ground_truth is not None) or revisited == (group is not None):
        raise InputError(
            "Retrieval takes either --group COLUMN, or --protocol revisited with --ground-truth"
            " FILE."
        )
    if revisited and (queries is not None or limit is not None):
        raise InputError(
            "The ground truth says which images there are and which are queries; leave out"
            " --queries and --limit."
        )
    opened = open_model(model)
    if queries is None:
        source, asked = open_images(photos, limit=limit, flags=select), None
    else:
        source, asked = open_two(photos, queries, limit=limit, flags=select)
    if ground_truth is not None:
        _revisited(source, ground_truth, opened, quiet=quiet, as_json=json_)
    elif group is not None:
        _groups(source, asked, group, opened, quiet=quiet, as_json=json_)


def _groups(
    source: "Source",
    asked: "Source | None",
    group: str,
    model: "ImageModel",
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    from featkit.evaluate.groups import evaluate_groups

    total = len(source) + (len(asked) if asked is not None else 0)
    with ProgressReporter("retrieval", total=total, quiet=quiet or as_json) as progress:
        report = evaluate_groups(source, model, group=group, queries=asked, on_progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        _show_groups(report)


def _revisited(
    source: "Source", ground_truth: Path, model: "ImageModel", *, quiet: bool, as_json: bool
) -> None:
    from featkit.evaluate.ground_truth import read_ground_truth
    from featkit.evaluate.revisited import evaluate_revisited

    truth = read_ground_truth(ground_truth)
    total = len(truth.names) + len(truth.queries)
    with ProgressReporter("retrieval", total=total, quiet=quiet or as_json) as progress:
        report = evaluate_revisited(source, truth, model, on_progress=progress)
    if as_json:
        print_json(asdict(report))
    else:
        _show_revisited(report)


def _show_groups(report: "GroupReport") -> None:
    rows = [
        (
            score.name,
            figure(score.mean_average_precision),
            interval(score.interval),
            *map(figure, score.recall.values()),
        )
        for score in report.scores
    ]
    asked = (
        f"{counted(report.num_queries, 'query', 'queries')} among"
        f" {counted(report.num_images, 'image')}"
    )
    title = f"{asked} of {counted(report.num_groups, 'group')}"
    ks = [f"recall@{k}" for k in report.scores[0].recall]
    print_table(title, ("method", "mAP", "95 % interval", *ks), rows)
    column, asked_column = report.columns
    named = (
        f"the column {column}"
        if report.leave_one_out
        else f"the columns {column} and, of the queries, {asked_column}"
    )
    say(
        f"Groups are {named};"
        f" {'each image queries all the others' if report.leave_one_out else 'the queries lie apart'}."
        " recall@k is the share of queries with one of their group among the first k.",
        *(
            [
                f"Not counted: {counted(report.num_alone, 'query', 'queries')} with no other of the"
                " group."
            ]
            if report.num_alone
            else []
        ),
    )
    print_failures(report.failures)


def _show_revisited(report: "RevisitedReport") -> None:
    rows = []
    for score in report.scores:
        for name, setup in score.setups.items():
            precision = [figure(share) for share in setup.precision.values()]
            rows.append(
                (
                    score.name,
                    name,
                    str(setup.num_queries),
                    figure(setup.mean_average_precision),
                    *precision,
                )
            )
    title = (
        f"{counted(report.num_queries, 'query', 'queries')} among"
        f" {counted(report.num_images, 'image')}, revisited"
    )
    print_table(title, ("method", "setup", "queries", "mAP", "mP@1", "mP@5", "mP@10"), rows)
    height, width = report.size
    say(
        "Right and ignored are: easy, hard and junk (Easy); easy and hard, junk (Medium); hard,"
        " easy and junk (Hard).",
        "Average precision by the trapezoid rule; queries without a right image are not counted;"
        " equal scores stand in the order of imlist; images that cannot be read come last.",
        f"Queries are cropped to their box; every image is brought to {height}×{width} by the"
        " model's recipe, at one scale.",
    )
    print_failures(report.failures)
