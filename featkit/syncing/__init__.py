"""Keep an index equal to a folder: new, changed, moved and deleted images in one call.

listing.py has what the folder holds now, changes.py the differences from what the index recorded,
applying.py makes them in the index, and run.py is one run of all. Each transaction of the index
leaves a state from which the next run continues, so a run can be killed at any moment.
"""

from __future__ import annotations

from featkit.syncing.changes import Changes, Progress
from featkit.syncing.run import SyncOptions, SyncReport, sync

__all__ = ["Changes", "Progress", "SyncOptions", "SyncReport", "sync"]
