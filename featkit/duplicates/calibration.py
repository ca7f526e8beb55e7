"""Which scores mean that one image is a copy of another, for the model and the images of an index.

Some of the index's own images are edited as for `featkit evaluate copies`, from their thumbnails,
and embedded: the scores with their originals are those of copies. The scores with the nearest other
image of the index are those of strangers, except where a second look shows the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from featkit.duplicates.look import SAME, Look, agreement
from featkit.errors import InputError
from featkit.evaluate.copies import NUM_EDITS
from featkit.evaluate.edits import EDITS_VERSION, apply_edits, draw_compound, working_image
from featkit.images import decode
from featkit.index import Index, Item

SETTING = "calibration"
NUM_IMAGES = 200
FEWEST = 20  # images that a calibration needs
COPIES_KEPT = 0.95  # share of copies whose score is at least `candidate`
STRANGERS_ABOVE = 0.01  # share of strangers' scores that are at least `copy`
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The scores of copies and strangers in one index.

    candidate: 95 % of edited copies score at least this. copy: 1 % of nearest strangers score at
    least this. copies_found: the share of edited copies that do. similar: the median score of the
    nearest stranger. made: when, in UTC. num_items: of the index at that time.
    """

    candidate: float
    copy: float
    similar: float
    copies_found: float
    num_images: int
    num_items: int
    edits_version: int
    made: str

    @classmethod
    def from_json(cls, text: str) -> Calibration | None:
        """Read what `to_json` wrote; None for anything else, which is measured again."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def to_json(self) -> str:
        """Return it as the text of a setting."""
        return json.dumps(asdict(self))

    def is_current(self, num_items: int) -> bool:
        """Return whether it still holds for an index of this many items."""
        return self.edits_version == EDITS_VERSION and (
            0.5 <= num_items / max(1, self.num_items) <= 2
        )

    def meaning(self, score: float) -> str:
        """Return what a score means: "copy", "similar" or "unrelated"."""
        if score >= self.copy:
            return "copy"
        return "similar" if score >= self.similar else "unrelated"


def stored_calibration(index: Index) -> Calibration | None:
    """Return the calibration that an index has, if it is still current."""
    text, num_items = index.read(
        lambda state: (state.catalogue.settings().get(SETTING), len(state))
    )
    stored = None if text is None else Calibration.from_json(str(text))
    return stored if stored is not None and stored.is_current(num_items) else None


def calibrate(
    index: Index,
    *,
    num_images: int = NUM_IMAGES,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> Calibration:
    """Measure the scores of copies and strangers, and store the result in the index.

    The index is open for reading; another process may write it. InputError if fewer than 20 images
    have a thumbnail; EnvironmentProblem if its model cannot run.
    """
    index_id, num_items, sample = index.read(
        lambda state: (state.id, len(state), state.sample(4 * num_images, seed=SEED))
    )
    items = _with_thumbnails(index, sample, num_images)
    if len(items) < FEWEST:
        raise InputError(
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
    copy = float(np.quantile(strangers, 1 - STRANGERS_ABOVE)) if strangers else 1.0
    calibration = Calibration(
        candidate=round(float(np.quantile(copies, 1 - COPIES_KEPT)), 4),
        copy=round(copy, 4),
        similar=round(float(np.median(strangers)) if strangers else 1.0, 4),
        copies_found=round(float(np.mean(np.array(copies) >= copy)), 4),
        num_images=len(items),
        num_items=num_items,
        edits_version=EDITS_VERSION,
        made=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    index.publish(index_id, {SETTING: calibration.to_json()})
    return calibration


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
