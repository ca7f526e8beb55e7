"""The pixels' agreement of edited copies, and of strangers that look alike to the model.

160 photographs: each with one edited copy of itself, as `featkit evaluate copies` makes them, and
with the eight nearest other photographs by featkit-tiny, which is how many are looked at.

Run: python tests/benchmarks/bench_look.py [--quick]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.duplicates.finding import MAX_LOOKS
from featkit.duplicates.look import SAME, SURELY_SAME, Look, agreement
from featkit.embedder import Embedder
from featkit.evaluate.edits import apply_edits, draw_compound, working_image
from featkit.images import decode, thumbnail_jpeg
from tests.benchmarks.photos import data_folder
from tests.benchmarks.record import is_quick, write_result

NUM_PHOTOS = 160


def main() -> None:
    """Measure and record."""
    paths = sorted((data_folder() / "photos").iterdir())[-(8 if is_quick() else NUM_PHOTOS) :]
    photos = [
        working_image(decode(path.read_bytes(), name=path.name, shorter_side=256).pixels)
        for path in paths
    ]
    vectors = Embedder(threads=1).embed([np.asarray(photo) for photo in photos])
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -1)
    looks = [Look.of(thumbnail_jpeg(np.asarray(photo))) for photo in photos]
    copies = [
        Look.of(
            thumbnail_jpeg(
                np.asarray(apply_edits(photo, draw_compound(seed=0, key=path.name, number=0)))
            )
        )
        for path, photo in zip(paths, photos, strict=True)
    ]
    started = time.perf_counter()
    of_copies = np.array([agreement(*pair) for pair in zip(looks, copies, strict=True)])
    seconds = time.perf_counter() - started
    nearest = np.argsort(-scores, axis=1)[:, :MAX_LOOKS]
    of_strangers = np.array(
        [
            [agreement(look, looks[other]) for other in others]
            for look, others in zip(looks, nearest, strict=True)
        ]
    )
    figures = {
        "photographs": len(photos),
        **{
            f"share of {whose} that reach {bound}": round(float((values >= bound).mean()), 4)
            for bound in (SAME, SURELY_SAME)
            for whose, values in (("copies", of_copies), ("near strangers", of_strangers))
        },
        "median agreement of copies": round(float(np.median(of_copies)), 3),
        "median agreement of strangers": round(float(np.median(of_strangers)), 3),
        "ms of a look": round(1000 * seconds / len(photos), 1),
    }
    write_result("look", figures)


if __name__ == "__main__":
    main()
