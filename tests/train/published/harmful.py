"""Objects whose pickles ask for calls, as a harmful file's would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call
