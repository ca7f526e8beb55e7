"""Limit the memory of images that are decoded concurrently; large ones wait for their turn.

A JPEG can be decoded at a fraction of its size. Other formats are decoded whole, at 11 to 30 bytes
per pixel, so an image at the limit of 100 million pixels takes 1.4 GB or more, and sixteen threads
could decode sixteen of them at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# Bytes per pixel: the largest growth of a process that decoded and scaled 12 million pixels.
PLAIN, PLAIN_MODES = 15, ("1", "L", "P", "RGB")  # measured: gray to RGB 11 to 14, palette 15
OTHER = 30  # measured: with transparency or another color model 28, WebP 22
DEEP = 45  # 16-bit levels; measured: 24 for an RGB TIFF
# A progressive JPEG keeps the coefficients of its full size, however small it is decoded.
PROGRESSIVE = 6

_this_thread = threading.local()


class MemoryBudget:
    """A number of bytes that threads share, first come, first served.

    A thread that asks for more than the whole budget gets all of it and runs alone.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = max(0, num_bytes)
        self._free = self.num_bytes
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def for_one_image(self) -> Iterator[None]:
        """Draw from the budget for one image decoded in this thread, and return its bytes at the
        end."""
        share = _Share(self)
        _this_thread.share = share
        try:
            yield
        finally:
            _this_thread.share = None
            share.take(0)

    def take(self, num_bytes: int) -> int:
        """Wait until `num_bytes` are free, take them, and return how many were taken."""
        taken = min(num_bytes, self.num_bytes)
        mine = object()
        with self._changed:
            self._line.append(mine)
            self._changed.wait_for(lambda: self._line[0] is mine and self._free >= taken)
            self._line.popleft()
            self._free -= taken
            self._changed.notify_all()
        return taken

    def give(self, num_bytes: int) -> None:
        """Return taken bytes to the budget."""
        with self._changed:
            self._free += num_bytes
            self._changed.notify_all()


class _Share:
    """The bytes that one image holds.

    It returns all of them before it takes more, so no thread waits while it holds some: that could
    deadlock.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget, self._held = budget, 0

    def take(self, num_bytes: int) -> None:
        if num_bytes > self._held or not num_bytes:
            self._budget.give(self._held)
            self._held = 0
            self._held = self._budget.take(num_bytes) if num_bytes else 0


def wait_for_room(height: int, width: int, *, bytes_per_pixel: int = OTHER) -> None:
    """Wait until an image of this size may be decoded here; return at once without a budget."""
    share: _Share | None = getattr(_this_thread, "share", None)
    if share is not None:
        share.take(height * width * bytes_per_pixel)


def wait_for_room_of(
    image: Image.Image, *, full_size: tuple[int, int], is_deep: bool = False
) -> None:
    """Wait as `wait_for_room` does, for an opened image whose scale has been chosen.

    full_size: (width, height) before scaling. is_deep: its 16-bit levels may be needed.
    """
    if getattr(_this_thread, "share", None) is None:
        return
    plain = image.mode in PLAIN_MODES and image.format != "WEBP"
    kept = PROGRESSIVE * full_size[0] * full_size[1] if image.info.get("progressive") else 0
    a_pixel = DEEP if is_deep else PLAIN if plain else OTHER
    wait_for_room(1, 1, bytes_per_pixel=image.width * image.height * a_pixel + kept)
