"""`featkit evaluate`: how good a model is on your own pictures."""

import json
from dataclasses import asdict
from pathlib import Path

from cyclopts import App

from featkit.cli.console import ProgressReporter, print_table, stdout
from featkit.cli.extras import need_extra
from featkit.errors import InputError

app = App(name="evaluate", help="Measure how good a model is on your own pictures.")


@app.command
def copies(
    photos: Path,
    /,
    *,
    model: Path | None = None,
    seed: int = 0,
    last: int | None = None,
    quiet: bool = False,
    json_: bool = False,
) -> None:
    """Measure how often an edited picture finds its original among all PHOTOS; needs no labels.

    Each picture is queried by four compound edits of itself (crop, rotation, flip, colour, and JPEG, blur or text). Raw
    pixels and a perceptual hash are measured beside the model.

    Example: featkit evaluate copies pictures/ --model m.onnx

    Parameters
    ----------
    photos
        A folder of pictures, a .tar, a .parquet or a .txt list of paths; those that the model was not trained on.
    model
        A model file; by default featkit-tiny, which ships with featkit.
    seed
        Of the edits.
    last
        Only the last so many pictures in the source's order.
    quiet
        Show no progress.
    json_
        Print the figures as JSON.
    """
    need_extra("cpu", "onnxruntime")
    if last is not None and last < 1:
        raise InputError(f"--last is {last}; it has to be 1 or more.")
    from featkit.embedder import Embedder
    from featkit.embeddings import SHOWN_FAILURES
    from featkit.evaluate.copies import evaluate_copies
    from featkit.sources import open_source, subset

    source = open_source(photos)
    if last is not None:
        source = subset(source, range(max(0, len(source) - last), len(source)))
    with ProgressReporter("copies", total=len(source), quiet=quiet or json_) as progress:
        report = evaluate_copies(source, Embedder(model), seed=seed, on_progress=progress)
    if json_:
        print(json.dumps(asdict(report), ensure_ascii=False))
        return
    rows = [
        (
            score.name,
            f"{score.recall_at_1:.3f}",
            f"{score.interval[0]:.3f} – {score.interval[1]:.3f}",
            f"{score.recall_at_10:.3f}",
            f"{score.mean_average_precision:.3f}",
        )
        for score in report.methods
    ]
    title = f"Copies among {report.num_pictures:,} pictures (edits v{report.edits_version}, seed {report.seed})"
    print_table(title, ("method", "recall@1", "95 % interval", "recall@10", "mAP"), rows)
    edits = list(report.model.single)
    singles = [(score.name, *(f"{score.single[edit]:.3f}" for edit in edits)) for score in report.methods]
    print_table("recall@1 of each edit by itself", ("method", *edits), singles)
    if report.failures:
        print_table("Left out", ("picture", "why"), report.failures[:SHOWN_FAILURES])
        if len(report.failures) > SHOWN_FAILURES:
            stdout().print(f"... and {len(report.failures) - SHOWN_FAILURES:,} more.")
