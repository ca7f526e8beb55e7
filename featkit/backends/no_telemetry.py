"""Import OpenVINO without its telemetry: nothing leaves the machine unless a command was asked to
fetch.

`import openvino` makes its model converter's package send an event to Google Analytics, from a
forked process, and write a client's number below ~/intel; who never answered is taken to agree
(openvino/tools/ovc/__init__.py, openvino_telemetry/main.py, 2026.4). Where openvino_telemetry
cannot be imported OpenVINO has a stand-in that does nothing. So it cannot, for that moment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TELEMETRY = "openvino_telemetry"


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Around the first import of openvino in a process; afterwards the module can be imported by
    others as before."""
    modules: dict[str, Any] = sys.modules
    before = {TELEMETRY: modules[TELEMETRY]} if TELEMETRY in modules else {}
    modules[TELEMETRY] = None  # how Python is told that a module is not there
    try:
        yield
    finally:
        del modules[TELEMETRY]
        modules.update(before)
