"""Duplicates in an index: the same bytes, near copies, and similar images.

calibration.py measures which scores edited copies have with this index's model and images.
finding.py finds the pairs: candidates.py by their vectors (nearest.py), judging.py by the pixels,
and work.py keeps what was done. Judging takes pairs in an order (ordering.py) in which few images
are prepared twice (views.py); processes (lookers.py) look at them (look.py, positions.py,
refining.py). grouping.py makes groups of the pairs with an image to keep (sharpness.py), and
decisions.py remembers what a user said of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featkit.duplicates.calibration import calibrate as calibrate
    from featkit.duplicates.finding import find_pairs as find_pairs
    from featkit.duplicates.finding import finding_pairs as finding_pairs
    from featkit.duplicates.grouping import Group as Group
    from featkit.duplicates.grouping import group_pairs as group_pairs
    from featkit.duplicates.judging import Level as Level
    from featkit.duplicates.judging import Pair as Pair
    from featkit.index.meaning import Calibration as Calibration

# Imported at first use, so that the processes of lookers.py load neither an index nor faiss.
_PUBLIC = {
    "Calibration": "featkit.index.meaning",
    "Group": "featkit.duplicates.grouping",
    "Level": "featkit.duplicates.judging",
    "Pair": "featkit.duplicates.judging",
    "calibrate": "featkit.duplicates.calibration",
    "find_pairs": "featkit.duplicates.finding",
    "finding_pairs": "featkit.duplicates.finding",
    "group_pairs": "featkit.duplicates.grouping",
}

__all__ = [
    "Calibration",
    "Group",
    "Level",
    "Pair",
    "calibrate",
    "find_pairs",
    "finding_pairs",
    "group_pairs",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'featkit.duplicates' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
