"""`featkit calibrate`: measure what the scores of an index mean."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from featkit.cli.console import ProgressReporter, print_json, stdout
from featkit.cli.options import AsJson, Quiet
from featkit.errors import EnvironmentProblem
from featkit.extras import need_extra

if TYPE_CHECKING:
    from featkit.index import Index
    from featkit.index.meaning import Calibration


def calibrate(index: Path, /, *, quiet: Quiet = False, json_: AsJson = False) -> None:
    """Measure which scores of INDEX mean a copy, something similar, or something unrelated.

    Some of its images are edited and embedded, and their scores are compared with those of the
    nearest other images. `featkit sync` and `featkit index` do this for a new index and after large
    changes. From then on every hit of a search says what its score means.

    Example: featkit calibrate photos.index

    Parameters
    ----------
    index
        A folder from `featkit index` or `featkit sync`.
    """
    need_extra("cpu", "faiss", "onnxruntime")
    from featkit.index import Index

    with Index.open(index) as opened:
        calibration = measure(opened, quiet=quiet or json_)
    if json_:
        print_json(asdict(calibration))
    else:
        stdout().print(in_words(calibration))


def measure(index: Index, *, num_images: int | None = None, quiet: bool) -> Calibration:
    """Calibrate an index, with progress."""
    from featkit.duplicates.calibration import NUM_IMAGES
    from featkit.duplicates.calibration import calibrate as run

    count = NUM_IMAGES if num_images is None else num_images
    total = min(count, len(index))
    with ProgressReporter("calibrating", total=total, quiet=quiet) as progress:
        return run(index, num_images=count, on_progress=progress)


def measure_if_due(index: Index, *, quiet: bool) -> None:
    """Calibrate an index that is not calibrated, or has changed much since, if that is possible
    here."""
    from featkit.duplicates.calibration import TooFewThumbnails, is_due, num_at_first

    if not is_due(index):
        return
    with suppress(
        TooFewThumbnails, EnvironmentProblem
    ):  # without its engine, it is searched anyway
        measure(index, num_images=num_at_first(len(index)), quiet=quiet)


def in_words(calibration: Calibration) -> str:
    """Return what the scores mean."""
    return (
        f"From {calibration.copy:.3f} on a score means a copy ({calibration.copies_found:.1%} of"
        f" edited copies reach it), from {calibration.similar:.3f} on something similar, and less"
        f" something unrelated. Measured on {calibration.num_images:,} of"
        f" {calibration.num_items:,} images."
    )
