"""Room in memory for images that are decoded side by side: who needs much waits until there is
enough.

A JPEG is decoded at a fraction of its size; other formats are decoded whole, at 11 to 30 bytes a
pixel. An image at the limit of 100 million pixels then takes 1.4 GB or more, and sixteen threads
may meet sixteen of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# Most that a process grew by while it decoded and scaled 12 million pixels, a pixel: gray to RGB 11
# to 14, palette 15.
PLAIN, PLAIN_MODES = 15, ("1", "L", "P", "RGB")
OTHER = 30  # with transparency or another color model 28, WebP 22
DEEP = 45  # with levels of 16 bits: 24 of a TIFF in RGB
# a progressive JPEG keeps the coefficients of its full size, however small it is decoded
PROGRESSIVE = 6

_this_thread = threading.local()


class MemoryBudget:
    """Bytes that threads share. They are let in in the order they came; one that asks for more than
    all has all, alone."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = max(0, num_bytes)
        self._free = self.num_bytes
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def for_one_image(self) -> Iterator[None]:
        """Around the decoding of an image in this thread; what it took meanwhile is given back at
        the end."""
        share = _Share(self)
        _this_thread.share = share
        try:
            yield
        finally:
            _this_thread.share = None
            share.take(0)

    def take(self, num_bytes: int) -> int:
        """Wait for so many bytes; how many were taken."""
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
        """Give taken bytes back."""
        with self._changed:
            self._free += num_bytes
            self._changed.notify_all()


class _Share:
    """What one image holds. It gives all back before it takes more, so that nobody waits while
    holding."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget, self._held = budget, 0

    def take(self, num_bytes: int) -> None:
        if num_bytes > self._held or not num_bytes:
            self._budget.give(self._held)
            self._held = 0
            self._held = self._budget.take(num_bytes) if num_bytes else 0


def wait_for_room(height: int, width: int, *, bytes_per_pixel: int = OTHER) -> None:
    """Wait until so many pixels may be decoded in this thread; at once where nobody set a budget
    around it."""
    share: _Share | None = getattr(_this_thread, "share", None)
    if share is not None:
        share.take(height * width * bytes_per_pixel)


def wait_for_room_of(
    image: Image.Image, *, full_size: tuple[int, int], is_deep: bool = False
) -> None:
    """The same for an image of which the header is read and a scale is chosen; full_size (width,
    height) before that.

    is_deep: its levels of 16 bits may be wanted.
    """
    if getattr(_this_thread, "share", None) is None:
        return
    plain = image.mode in PLAIN_MODES and image.format != "WEBP"
    kept = PROGRESSIVE * full_size[0] * full_size[1] if image.info.get("progressive") else 0
    a_pixel = DEEP if is_deep else PLAIN if plain else OTHER
    wait_for_room(1, 1, bytes_per_pixel=image.width * image.height * a_pixel + kept)
