"""Notice that the files of a folder have changed (extra `watch`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from watchfiles import DefaultFilter, watch

# Changes within this time are one: a camera's import writes for minutes.
SETTLE_MS = 2000
# Not every change is announced: those on another machine of a network file system are not.
AT_LEAST_EVERY_MS = 10 * 60 * 1000


class _OutsideOf(DefaultFilter):
    """All changes but those of temporary files and of a folder that featkit itself writes."""

    def __init__(self, own: Path) -> None:
        self._own = str(own.resolve())
        super().__init__()

    def __call__(self, change: object, path: str) -> bool:
        inside = path == self._own or path.startswith(self._own + "/")
        return not inside and super().__call__(change, path)  # type: ignore[arg-type]


def changes_of(folder: Path, *, own: Path) -> Iterator[None]:
    """Yield each time that files of a folder, or of folders in it, have changed and 2 s have passed
    without another change; every 10 minutes in any case. own: a folder whose changes do not count.
    """
    for _ in watch(
        folder.resolve(),
        watch_filter=_OutsideOf(own),
        debounce=5 * SETTLE_MS,
        step=SETTLE_MS,
        rust_timeout=AT_LEAST_EVERY_MS,
        yield_on_timeout=True,
    ):
        yield
