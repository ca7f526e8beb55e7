"""Limits on images, checked before they are decoded, and file names for messages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from featkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """The largest image that is decoded; anything larger is refused."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        for option, limit in (("--max-bytes", self.max_bytes), ("--max-pixels", self.max_pixels)):
            if limit < 1:
                raise InputError(f"{option} is {limit}; it has to be 1 or more.")


DEFAULT_LIMITS = ImageLimits()
_OPTION = re.compile(r"; (raise it with|lower) --max-[a-z]+[^.;]*")


def check_num_bytes(num_bytes: int, *, name: str, limits: ImageLimits) -> None:
    """Raise InputError if an image has more bytes than `limits` allow."""
    if num_bytes > limits.max_bytes:
        raise InputError(
            f"{name} has {num_bytes:,} bytes, more than the limit of {limits.max_bytes:,}; raise it"
            " with --max-bytes."
        )


def check_num_pixels(height: int, width: int, *, name: str, limits: ImageLimits) -> None:
    """Raise InputError if an image has no pixels, or more than `limits` allow."""
    if height == 0 or width == 0:
        raise InputError(f"{name} has no pixels ({width}×{height}).")
    if height * width > limits.max_pixels:
        raise InputError(
            f"{name} has {height * width:,} pixels ({width}×{height}){over_limit(limits)}"
        )


def over_limit(limits: ImageLimits) -> str:
    """Return the end of a message about too many pixels."""
    return f", more than the limit of {limits.max_pixels:,}; raise it with --max-pixels."


def without_options(sentence: str) -> str:
    """Remove the advice to raise a limit by an option from one of this package's messages.

    For readers who have no command line, such as clients of the service.
    """
    return _OPTION.sub("", sentence)


def printable(name: str) -> str:
    """Return a file name as valid UTF-8, with bytes that are not text escaped: `caf\\xe9.jpg`."""
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a UTF-16 surrogate pair, which is not a byte of any name
        encoded = name.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")
