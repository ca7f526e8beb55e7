"""Which scores mean that one image is a copy of another, for the model and the images of an index.

Some of the index's own images are edited as for `featkit evaluate copies`, from their thumbnails,
and embedded: the scores with their originals are those of copies. The scores with the nearest other
image of the index are those of strangers, except where a second look shows the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from featkit.duplicates.look import SAME, agreement
from featkit.duplicates.views import Look
from featkit.errors import InputError
from featkit.evaluate.copies import NUM_EDITS, copy_level
from featkit.evaluate.edits import EDITS_VERSION, apply_edits, draw_compound, working_image
from featkit.images import decode
from featkit.index import Index, Item
from featkit.index.meaning import CALIBRATION, Calibration

NUM_IMAGES = 200
FEWEST = 20  # images that a calibration needs
# Of a new index: enough for a first measure, and a fraction of the time of embedding it.
FEWEST_AT_FIRST, SHARE_AT_FIRST = 40, 0.05
STRANGERS_BELOW = 0.05  # share of strangers' scores that are less than `similar`
COPIES_KEPT = 0.95  # share of copies whose score is at least `candidate`
SEED = 0


class TooFewThumbnails(InputError):
    """An index has too few images with thumbnails to be calibrated."""


def num_at_first(num_items: int) -> int:
    """Return on how many images a new index of `num_items` is calibrated."""
    return min(NUM_IMAGES, max(FEWEST_AT_FIRST, int(SHARE_AT_FIRST * num_items)))


def is_due(index: Index) -> bool:
    """Return whether an index has no current calibration, and enough images for one."""
    return len(index) >= FEWEST and stored_calibration(index) is None


def stored_calibration(index: Index) -> Calibration | None:
    """Return the calibration that an index has, if it is still current."""
    stored, num_items = index.read(lambda state: (state.vectors.calibration, len(state)))
    current = stored is not None and stored.is_current(num_items, EDITS_VERSION)
    return stored if current else None


def calibrate(
    index: Index,
    *,
    num_images: int = NUM_IMAGES,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> Calibration:
    """Measure the scores of copies and strangers, and store the result in the index.

    The index is open for reading; another process may write it. TooFewThumbnails if fewer than 20
    images have one; EnvironmentProblem if its model cannot run.
    """
    index_id, num_items, sample = index.read(
        lambda state: (state.id, len(state), state.sample(4 * num_images, seed=SEED))
    )
    items = _with_thumbnails(index, sample, num_images)
    if len(items) < FEWEST:
        raise TooFewThumbnails(
            f"{index.path} has {len(items)} images with thumbnails; calibration takes at least"
            f" {FEWEST}. Embed the images with `featkit sync` or `featkit embed`."
        )
    copies: list[float] = []
    strangers: list[float] = []
    for done, (item, jpeg) in enumerate(items, 1):
        copies += _scores_of_copies(index, item, jpeg)
        if (score := _nearest_stranger(index, item, jpeg)) is not None:
            strangers.append(score)
        on_progress(done, 0)
    copy, copies_found = copy_level(copies, strangers)
    similar = float(np.quantile(strangers, STRANGERS_BELOW)) if strangers else copy
    calibration = Calibration(
        candidate=round(float(np.quantile(copies, 1 - COPIES_KEPT)), 4),
        copy=round(copy, 4),
        similar=round(similar, 4),
        copies_found=round(copies_found, 4),
        num_images=len(items),
        num_items=num_items,
        edits_version=EDITS_VERSION,
        made=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    index.publish(index_id, {CALIBRATION: calibration.to_json()})
    return calibration


def for_both(first: Calibration, second: Calibration) -> Calibration:
    """Return which scores mean a copy if items of one index are compared with those of another.

    The more images there are, the nearer is the nearest stranger; so the larger score counts.
    """
    return replace(
        first,
        candidate=min(first.candidate, second.candidate),
        copy=max(first.copy, second.copy),
        similar=max(first.similar, second.similar),
        copies_found=min(first.copies_found, second.copies_found),
    )


def _with_thumbnails(index: Index, items: list[Item], most: int) -> list[tuple[Item, bytes]]:
    found: list[tuple[Item, bytes]] = []
    for item in items:
        jpeg = index.thumbnail(item.id)
        if jpeg:
            found.append((item, jpeg))
        if len(found) == most:
            break
    return found


def _scores_of_copies(index: Index, item: Item, jpeg: bytes) -> list[float]:
    """Return the scores of edited copies of an item with the item."""
    original = working_image(decode(jpeg, name=item.key).pixels)
    views = [
        np.asarray(apply_edits(original, draw_compound(seed=SEED, key=item.key, number=number)))
        for number in range(NUM_EDITS)
    ]
    vectors = index.embedder.embed(views).astype(np.float64)
    scores: list[float] = (vectors @ index.vector(item.id).astype(np.float64)).tolist()
    return scores


def _nearest_stranger(index: Index, item: Item, jpeg: bytes) -> float | None:
    """Return the score of the nearest item that does not show the same; None if there is none
    among the first few."""
    own = Look.of(jpeg)
    for hit in index.search(item=item.id, k=5):
        if hit.id == item.id:
            continue
        other = index.thumbnail(hit.id)
        if other and agreement(own, Look.of(other), enough=SAME) < SAME:
            return hit.score
    return None
