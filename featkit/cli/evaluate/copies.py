"""`featkit evaluate copies`: whether an edited image finds its original."""

from dataclasses import asdict
from pathlib import Path

from featkit.cli.console import ProgressReporter, print_json, print_table
from featkit.cli.evaluate.common import figure, interval, open_images, print_failures
from featkit.cli.evaluated_model import open_model
from featkit.cli.selecting import SelectionFlags
from featkit.errors import InputError
from featkit.wording import counted


def copies(
    photos: Path,
    /,
    *,
    model: Path | None = None,
    seed: int = 0,
    last: int | None = None,
    quiet: bool = False,
    json_: bool = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure how often an edited image finds its original among all PHOTOS; needs no labels.

    Each image is queried by four compound edits of itself (crop, rotation, flip, color, and
    JPEG, blur or text). Raw pixels and a perceptual hash are measured beside the model.

    Example: featkit evaluate copies images/ --model m.onnx

    Parameters
    ----------
    photos
        A folder of images, a .tar, a .parquet, or whatever else `featkit embed` takes; the model should not know them.
    model
        A model file, or a run folder of `featkit train`, computed in torch; by default featkit-tiny, which ships with featkit.
    seed
        Of the edits.
    last
        Only the last so many images in the source's order.
    quiet
        Show no progress.
    json_
        Print the figures as JSON.
    """
    if last is not None and last < 1:
        raise InputError(f"--last is {last}; it has to be 1 or more.")
    opened = open_model(model)
    from featkit.evaluate.copies import evaluate_copies
    from featkit.sources import subset

    source = open_images(photos, flags=select)
    if last is not None:
        source = subset(source, range(max(0, len(source) - last), len(source)))
    with ProgressReporter("copies", total=len(source), quiet=quiet or json_) as progress:
        report = evaluate_copies(source, opened, seed=seed, on_progress=progress)
    if json_:
        print_json(asdict(report))
        return
    rows = [
        (
            score.name,
            figure(score.recall_at_1),
            interval(score.interval),
            figure(score.recall_at_10),
            figure(score.mean_average_precision),
        )
        for score in report.methods
    ]
    title = (
        f"Copies among {counted(report.num_images, 'image')} (edits v{report.edits_version},"
        f" seed {report.seed})"
    )
    print_table(title, ("method", "recall@1", "95 % interval", "recall@10", "mAP"), rows)
    edits = list(report.model.single)
    singles = [
        (score.name, *(figure(score.single[edit]) for edit in edits)) for score in report.methods
    ]
    print_table("recall@1 of each edit by itself", ("method", *edits), singles)
    print_failures(report.failures)
