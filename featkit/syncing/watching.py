"""Notice that the files of a folder have changed (extra `watch`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from watchfiles import DefaultFilter, watch

SETTLE_MS = 2000  # changes are one if no more than this passes between them
MOST_MS = 30_000  # an import from a camera may write for minutes
TICK_MS = 1000
# Not every change is announced: those on another machine of a network file system are not.
AT_LEAST_EVERY_S = 600.0


class _OutsideOf(DefaultFilter):
    """All changes but those of temporary files and of a folder that featkit itself writes."""

    def __init__(self, own: Path) -> None:
        self._own = str(own.resolve())
        super().__init__()

    def __call__(self, change: object, path: str) -> bool:
        inside = path == self._own or path.startswith(self._own + "/")
        return not inside and super().__call__(change, path)  # type: ignore[arg-type]


def changes_of(folder: Path, *, own: Path) -> Iterator[None]:
    """Yield once when changes begin to be noticed, then each time that files have changed.

    That is: below the folder, and not within the folder `own`, when 2 s have passed without another
    change. Also every 10 minutes without one.
    """
    changes = watch(
        folder.resolve(),
        watch_filter=_OutsideOf(own),
        debounce=MOST_MS,
        step=SETTLE_MS,
        rust_timeout=TICK_MS,
        yield_on_timeout=True,
    )
    last = float("-inf")
    for changed in changes:
        if changed or time.monotonic() > last + AT_LEAST_EVERY_S:
            yield
            last = time.monotonic()
