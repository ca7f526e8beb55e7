"""A request to open a source, and the openers that answer it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from featkit.images import ImageLimits
from featkit.sources.base import Source
from featkit.sources.selection import Selection


class Request(NamedTuple):
    """A source as the user typed it, with the limits and the selection of its images."""

    spec: str
    path: Path  # of the same text
    limits: ImageLimits
    selection: Selection


class Opener(NamedTuple):
    """One kind of source. open: raises InputError if the source cannot be used."""

    recognizes: Callable[[Request], bool]
    open: Callable[[Request], Source]
