"""`featkit evaluate retrieval`: measure whether images of one group or landmark find each other."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featkit.cli.console import ProgressReporter, print_json, print_table
from featkit.cli.evaluate.common import (
    figure,
    interval,
    note_if,
    open_images,
    open_two,
    print_failures,
    say,
)
from featkit.cli.evaluated_model import open_model
from featkit.cli.options import AsJson, EvaluatedModel, Limit, Quiet
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
    model: EvaluatedModel = None,
    limit: Limit = None,
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure whether a query finds the PHOTOS of its own group first, by mean average precision
    and recall@k.

    Every image is a query against all others; with --queries, those images are queries against
    PHOTOS. `--protocol revisited` follows ROxford and RParis instead (arXiv 1803.11285): the setups
    Easy, Medium and Hard, with junk images ignored and queries cropped.

    Example: featkit evaluate retrieval photos/ --group folder --model m.onnx

    Parameters
    ----------
    photos
        A folder of images, a .tar, a .parquet, or anything else that `featkit embed` takes.
    group
        The column that names the group of an image, such as folder.
    queries
        Query images, with the same column.
    protocol
        How to evaluate: by the groups of a column, or as ROxford and RParis do.
    ground_truth
        The ground truth of `revisited`: gnd_roxford5k.pkl, gnd_rparis6k.pkl, or the same content as
        .json.
    """
    revisited = protocol == "revisited"
    if revisited != (ground_truth is not None) or revisited == (group is not None):
        raise InputError(
            "Pass either --group COLUMN, or --protocol revisited with --ground-truth FILE."
        )
    if revisited and (queries is not None or limit is not None):
        raise InputError(
            "The ground truth lists the images and the queries; leave out --queries and --limit."
        )
    opened = open_model(model, quiet=quiet or json_)
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
    if report.leave_one_out:
        how = f"Groups are the column {column}; each image is a query against all others."
    else:
        how = f"Groups are the column {column}, and {asked_column} for the separate queries."
    say(
        f"{how} recall@k is the share of queries with an image of their group among the first k.",
        *note_if(
            report.num_alone,
            f"Not counted: {counted(report.num_alone, 'query', 'queries')} whose group has no other"
            " image.",
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
        "Relevant images are easy (Easy), easy and hard (Medium), or hard (Hard). Hard and junk"
        " (Easy), junk (Medium), or easy and junk (Hard) images are ignored.",
        "Average precision follows the trapezoid rule. Queries without a relevant image do not"
        " count, ties keep the order of imlist, and unreadable images rank last.",
        f"Queries are cropped to their box. Every image is resized to {height}×{width} as the model"
        " prescribes, at a single scale.",
    )
    print_failures(report.failures)
