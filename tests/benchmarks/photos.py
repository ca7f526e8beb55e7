"""The first-run setting of the training benchmarks: learn from 400 photographs, find copies among
the last 200."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featkit.sources import Source, open_source
from tests.benchmarks.record import is_quick
from tests.data import shared_data

NUM_LEARNED = 400
NUM_HELD_OUT = 10 if is_quick() else 200


@dataclass(frozen=True)
class Photos:
    """Return the sources to train on and to hold out."""

    learned: Source
    held_out: Source


def open_photos(folder: Path) -> Photos:
    """The two parts, listed in `folder`."""
    photos = sorted((data_folder() / "photos").iterdir())
    return Photos(
        open_part(photos[:NUM_LEARNED], folder / "first.txt"),
        open_part(photos[-NUM_HELD_OUT:], folder / "last.txt"),
    )


def open_part(files: list[Path], listing: Path) -> Source:
    """Some images of a folder as a source."""
    listing.write_text("\n".join(str(path.resolve()) for path in files))
    return open_source(listing)


def data_folder() -> Path:
    """Return the folder of the data. Raises SystemExit if it is missing."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    return data
