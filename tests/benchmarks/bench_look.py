"""The pixels' agreement of edited copies, and of strangers that look alike to the model.

300 photographs, each with one edited copy of itself, as `featkit evaluate copies` makes them, and
with that copy squeezed to 84×84 pixels. Strangers: 600 photographs, each with the eight nearest of
38,125 small images of things by featkit-tiny, which is how many are looked at. Ten photographs are
among these in a small version (DUPLICATES, checked by eye).

Run: python tests/benchmarks/bench_look.py [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from PIL import Image

from featkit.duplicates.finding import MAX_LOOKS
from featkit.duplicates.look import SAME, SURELY_SAME, agreements
from featkit.duplicates.lookers import PAIRS_PER_TASK
from featkit.duplicates.views import Look
from featkit.embedder import Embedder
from featkit.evaluate.edits import apply_edits, draw_compound, working_image
from featkit.images import decode, thumbnail_jpeg
from featkit.index.exact import exact_search
from featkit.sources import open_source
from tests.benchmarks.photos import data_folder
from tests.benchmarks.record import is_quick, write_result

SMALL_SIDE, SMALL_QUALITY = 84, 75
EMBEDDED_AT_ONCE = 256
DUPLICATES = frozenset(
    (
        "n01532829_house_finch.jpg",
        "n01644900_tailed_frog.jpg",
        "n01910747_jellyfish.jpg",
        "n02788148_bannister.jpg",
        "n03026506_Christmas_stocking.jpg",
        "n03424325_gasmask.jpg",
        "n03447721_gong.jpg",
        "n04243546_slot.jpg",
        "n04265275_space_heater.jpg",
        "n04328186_stopwatch.jpg",
    )
)


def things(most: int | None) -> list[bytes]:
    """Return the files of the small images, or the first of them."""
    source = open_source(str(data_folder() / "things" / "train-*.parquet"))
    return [source.read(number) for number in range(len(source) if most is None else most)]


def looked_at(pairs: Sequence[tuple[bytes, bytes]]) -> tuple[np.ndarray, float]:
    """Return the agreement of pairs of thumbnails, and the milliseconds that each took."""
    started = time.perf_counter()
    values: list[float] = []
    for start in range(0, len(pairs), PAIRS_PER_TASK):
        some = pairs[start : start + PAIRS_PER_TASK]
        looks = {jpeg: Look.of(jpeg) for jpeg in {jpeg for pair in some for jpeg in pair}}
        values += agreements([(looks[first], looks[second], 1.0) for first, second in some])
    return np.array(values), 1000 * (time.perf_counter() - started) / max(1, len(pairs))


def main() -> None:
    """Measure and record."""
    paths = sorted((data_folder() / "photos").iterdir())[: 16 if is_quick() else None]
    photos = [
        working_image(decode(path.read_bytes(), name=path.name, shorter_side=256).pixels)
        for path in paths
    ]
    jpegs = [thumbnail_jpeg(np.asarray(photo)) for photo in photos]
    copies, small = [], []
    for path, photo, jpeg in [*zip(paths, photos, jpegs, strict=True)][::2]:
        copy = apply_edits(photo, draw_compound(seed=0, key=path.name, number=0)).convert("RGB")
        squeezed = copy.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BICUBIC)
        copies.append((jpeg, thumbnail_jpeg(np.asarray(copy))))
        small.append((jpeg, thumbnail_jpeg(np.asarray(squeezed), quality=SMALL_QUALITY)))
    embedder = Embedder()
    queries = embedder.embed([np.asarray(photo) for photo in photos])
    files = things(500 if is_quick() else None)
    vectors = np.concatenate(
        [
            embedder.embed(files[start : start + EMBEDDED_AT_ONCE])
            for start in range(0, len(files), EMBEDDED_AT_ONCE)
        ]
    )
    nearest = exact_search(queries, vectors, k=MAX_LOOKS, allowed=np.ones(len(vectors), bool))
    strangers = [
        (jpeg, thumbnail_jpeg(decode(files[i], name=str(i)).pixels))
        for jpeg, each in zip(jpegs, nearest, strict=True)
        for i in each.ids.tolist()
    ]
    of_copies, _ = looked_at(copies)
    of_small, _ = looked_at(small)
    of_strangers, ms = looked_at(strangers)
    best = of_strangers.reshape(len(photos), MAX_LOOKS).max(axis=1)
    is_duplicate = np.array([path.name in DUPLICATES for path in paths])
    figures: dict[str, object] = {"photographs": len(photos), "things": len(files)}
    for bound in (SAME, SURELY_SAME):
        figures |= {
            f"share of copies that reach {bound}": round(float(np.mean(of_copies >= bound)), 4),
            f"share of squeezed copies that reach {bound}": round(
                float(np.mean(of_small >= bound)), 4
            ),
            f"duplicates of {is_duplicate.sum()} that reach {bound}": int(
                np.count_nonzero(best[is_duplicate] >= bound)
            ),
            f"other photographs with a stranger that reaches {bound}": int(
                np.count_nonzero(best[~is_duplicate] >= bound)
            ),
        }
    write_result("look", {**figures, "ms of a look at strangers": round(ms, 1)})


if __name__ == "__main__":
    main()
