"""Duplicates in an index: the same bytes, near copies, and similar images.

calibration.py measures which scores edited copies have with this index's model and images, look.py
compares the pixels of two thumbnails, finding.py finds the pairs, grouping.py the groups, and
decisions.py what a user said of them.
"""

from __future__ import annotations

from featkit.duplicates.calibration import calibrate
from featkit.duplicates.finding import Level, Pair, find_pairs
from featkit.duplicates.grouping import Group, group_pairs
from featkit.index.meaning import Calibration

__all__ = ["Calibration", "Group", "Level", "Pair", "calibrate", "find_pairs", "group_pairs"]
