"""`featkit evaluate copies`: measure whether edited images find their originals."""

from dataclasses import asdict
from pathlib import Path

from featkit.cli.console import ProgressReporter, print_json, print_table, stdout
from featkit.cli.evaluate.common import (
    figure,
    interval,
    last_of,
    limited,
    open_images,
    print_failures,
    refuse_none,
)
from featkit.cli.evaluated_model import open_model
from featkit.cli.options import AsJson, EvaluatedModel, Limit, Quiet
from featkit.cli.selecting import SelectionFlags
from featkit.wording import counted


def copies(
    photos: Path,
    /,
    *,
    model: EvaluatedModel = None,
    seed: int = 0,
    last: int | None = None,
    limit: Limit = None,
    quiet: Quiet = False,
    json_: AsJson = False,
    select: SelectionFlags | None = None,
) -> None:
    """Measure how often an edited image finds its original among all PHOTOS. Needs no labels.

    Each image is searched by four edited copies of itself. Each copy combines a crop, rotation,
    flip and color change with JPEG compression, blur or text. Raw pixels and a perceptual hash are
    measured for comparison.

    Example: featkit evaluate copies images/ --model m.onnx

    Parameters
    ----------
    photos
        A folder of images, a .tar, a .parquet, or anything else that `featkit embed` takes. Use
        images that the model was not trained on.
    seed
        Seed of the random edits.
    last
        Use only the last images of the source, at most this many.
    """
    refuse_none("--last", last)
    refuse_none("--limit", limit)
    opened = open_model(model, quiet=quiet or json_)
    from featkit.evaluate.copies import evaluate_copies

    source = limited(last_of(open_images(photos, flags=select), last), limit)
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
    found = report.separation
    stdout().print(
        f"A score of {found.level:.3f} separates copies from other images:"
        f" {found.copies_above:.1%} of the edited copies reach it, and 1 % of the images have"
        " another that does."
    )
    print_failures(report.failures)
