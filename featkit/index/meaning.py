"""The meaning of scores in one index: measured by `featkit calibrate`, and kept with the index.

A stranger of an image is another image that does not show the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

CALIBRATION = "calibration"  # the setting
Meaning: TypeAlias = Literal["copy", "similar", "unrelated"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The scores of copies and strangers in one index.

    candidate: 95 % of edited copies score at least this. copy: 1 % of nearest strangers score at
    least this. copies_found: the share of edited copies that do. similar: the nearest stranger of
    95 % of the images scores at least this. made: when, in UTC. num_items: of the index at that
    time.
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

    def is_current(self, num_items: int, edits_version: int) -> bool:
        """Return whether it still holds for an index of this many items, and for these edits."""
        return self.edits_version == edits_version and (
            0.5 <= num_items / max(1, self.num_items) <= 2
        )

    def meaning(self, score: float) -> Meaning:
        """Return what the score of a hit means."""
        if score >= self.copy:
            return "copy"
        return "similar" if score >= self.similar else "unrelated"
