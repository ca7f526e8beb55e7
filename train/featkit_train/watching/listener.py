"""Callbacks for what a run reports while it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from featkit_train.log import Log
from featkit_train.watching.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Receives a run's logged numbers, its notes as sentences, and its plan; by default ignores
    them."""

    on_log: Callable[[Log], None] = lambda _log: None
    on_note: Callable[[str], None] = lambda _note: None
    on_plan: Callable[[Plan], None] = lambda _plan: None
