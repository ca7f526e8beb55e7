"""Duplicates in an index: the same bytes, near copies, and similar images.

calibration.py measures which scores edited copies have with this index's model and images.
finding.py finds the pairs: candidates.py by their vectors (nearest.py), judging.py by the pixels,
and work.py keeps what was done. Judging takes pairs in an order (ordering.py) in which few images
are prepared twice (views.py); processes (lookers.py) look at them (look.py, positions.py,
refining.py). grouping.py makes groups of the pairs with an image to keep (sharpness.py), and
decisions.py remembers what a user said of them.
"""

from __future__ import annotations

from featkit.duplicates.calibration import calibrate
from featkit.duplicates.finding import find_pairs, finding_pairs
from featkit.duplicates.grouping import Group, group_pairs
from featkit.duplicates.judging import Level, Pair
from featkit.index.meaning import Calibration

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
